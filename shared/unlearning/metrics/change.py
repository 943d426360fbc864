"""Whether something changed at all, where, and whether it went too far: known ways to look forgotten without being so.

Every check has a wide margin, chosen so that a model retrained from scratch is never named. A finding is a reason to
look, or to refuse; its absence proves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unlearning.attacks.membership import entropy, population_attack
from unlearning.methods.likeness import likeness
from unlearning.metrics.accuracy import accuracy
from unlearning.metrics.classification import Outputs, weights_changed
from unlearning.metrics.distance import layer_distances

Code = Literal[
    "no_reference", "not_finite", "no_change", "output_permuted", "head_only", "randomised", "over_forgotten"
]

STILL = 1e-5
"""Relative distance below which weights or outputs count as unmoved; training moves them by more than 1e-3."""

KEPT_SKILL = 0.25
"""Less than this share of the accuracy above chance on retain rows: nothing is left of the model."""

UNSURE = 0.9
"""AUC of the entropies of forget rows, ours against a retrained model's; between two retrained ones 0.3 to 0.65."""

FEWEST = 20
"""Rows from which that AUC is looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        code: What, for programs.
        sentence: What, for people, with the figures it rests on.
    """

    code: Code
    sentence: str


NO_REFERENCE = Finding(
    code="no_reference",
    sentence="the model that was given as the retrained one is the original: there is nothing to compare with",
)
"""What is wrong when the two are one."""


def diagnose(
    original: Mapping[str, Tensor],
    unlearned: Mapping[str, Tensor],
    *,
    head: str,
    before: Mapping[str, Outputs],
    after: Mapping[str, Outputs],
    reference: Mapping[str, Outputs] | None = None,
) -> list[Finding]:
    """What is wrong with the unlearned model; empty when nothing known is.

    - `not_finite`: NaN or infinity in weights or outputs; nothing else is looked at then.
    - `no_change`: the weights are the original's, or the outputs on forget rows are.
    - `output_permuted`: the output layer alone changed, and only by reordering its classes or shifting its biases: the
      forgotten class is under another name, or never said.
    - `head_only`: the output layer alone changed: all features of what was to be forgotten are there.
    - `randomised`: on retain rows little above chance is left.
    - `over_forgotten`: forget rows stand out. They are answered worse than unseen rows, or (with a reference) worse or
      with less certainty than by a retrained model. The loss itself is not compared with the reference's: on classes
      that no model was taught it differs between two retrained models as much as anywhere.

    Args:
        original: Parameters and buffers by name, as of `state_dict`.
        unlearned: The same names and shapes.
        head: Name of the output layer, from `features.output_layer`.
        before: The original's outputs on forget.train, retain.test and, where the request has its own held-out rows,
            forget.test.
        after: The unlearned model's on the same.
        reference: A retrained model's on the same, or None.

    Raises:
        ValueError: When models or sets do not fit together.
    """
    for outputs in (before, after, *([reference] if reference is not None else [])):
        if not {"forget.train", "retain.test"} <= outputs.keys() or outputs.keys() != before.keys():
            raise ValueError(
                "wanted every model's outputs on forget.train, retain.test and perhaps forget.test, got "
                f"{', '.join(outputs)}"
            )
    if broken := _not_finite(unlearned, after):
        return [broken]
    original, unlearned = (
        {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}  # counters are no weights
        for state in (original, unlearned)
    )
    checks = (
        _unmoved(original, unlearned, head, before, after),
        _randomised(before["retain.test"], after["retain.test"]),
        _over_forgotten(after, reference),
    )
    return [found for found in checks if found is not None]


def _not_finite(weights: Mapping[str, Tensor], outputs: Mapping[str, Outputs]) -> Finding | None:
    named = [f"the weights {name}" for name, tensor in weights.items() if not bool(tensor.isfinite().all())]
    named += [f"the outputs on {name}" for name, one in outputs.items() if not bool(one.logits.isfinite().all())]
    if not named:
        return None
    more = f" and {len(named) - 3} more" if len(named) > 3 else ""
    return Finding(code="not_finite", sentence=f"NaN or infinity in {', '.join(named[:3])}{more}: the model is broken")


def _unmoved(
    original: Mapping[str, Tensor],
    unlearned: Mapping[str, Tensor],
    head: str,
    before: Mapping[str, Outputs],
    after: Mapping[str, Outputs],
) -> Finding | None:
    moved = weights_changed(original, unlearned)
    if moved < STILL:
        return Finding(code="no_change", sentence=f"the weights are the original's (relative distance {moved:.1g})")
    answers = _outputs_moved(before["forget.train"].logits, after["forget.train"].logits)
    if answers < STILL:
        return Finding(
            code="no_change",
            sentence=f"the outputs on forget rows are the original's (relative distance {answers:.1g})",
        )
    layers = {one.layer: one.relative for one in layer_distances(original, unlearned)}
    if head not in layers:
        raise ValueError(f'wanted the name of the output layer, got "{head}" (layers: {", ".join(layers)})')
    if any(relative >= STILL for layer, relative in layers.items() if layer != head):
        same = _same_but_for_order(before["retain.test"].logits, after["retain.test"].logits)
        if not same:
            return None
        return Finding(
            code="output_permuted",
            sentence="the outputs are the original's in another order or shifted by constants, whatever else changed",
        )
    first, second = (_head_rows(state, head) for state in (original, unlearned))
    if first is not None and second is not None and _same_rows(first, second):
        return Finding(
            code="output_permuted",
            sentence=f"only {head} changed, and only in the order of its classes or in its biases: all is still there",
        )
    return Finding(
        code="head_only",
        sentence=f"only {head} changed (by {layers[head]:.2g} of its norm): every feature is as it was, and a few rows "
        "are enough to bring the answers back",
    )


def _outputs_moved(before: Tensor, after: Tensor) -> float:
    """Distance of the two models' logits over the first one's norm, each row centred, so that shifts do not count."""
    one, other = (logits.double() - logits.double().mean(1, keepdim=True) for logits in (before, after))
    size = one.norm().item()
    distance: float = (one - other).norm().item()
    return distance / size if size else distance


def _head_rows(state: Mapping[str, Tensor], head: str) -> Tensor | None:
    weight = state.get(f"{head}.weight")
    return None if weight is None else weight.double().flatten(1)


def _same_rows(first: Tensor, second: Tensor) -> bool:
    """Whether the second's rows are the first's in some order."""
    from scipy.optimize import linear_sum_assignment

    apart = torch.cdist(first, second)
    rows, columns = linear_sum_assignment(apart.numpy())
    return bool(apart[rows, columns].norm() < STILL * first.norm())


def _same_but_for_order(before: Tensor, after: Tensor) -> bool:
    """Whether each class's logits are some class's of the original plus a constant, after every row is centred."""
    one, other = (logits.double() - logits.double().mean(1, keepdim=True) for logits in (before, after))
    one, other = one - one.mean(0), other - other.mean(0)
    return _same_rows(one.T, other.T) and bool(one.norm() > 0)


def _randomised(before: Outputs, after: Outputs) -> Finding | None:
    chance = (torch.bincount(before.targets).max() / len(before.targets)).item()
    had, has = (accuracy(one.logits, one.targets) for one in (before, after))
    error = (chance * (1 - chance) / len(before.targets)) ** 0.5
    if had - chance < 4 * error or has - chance >= KEPT_SKILL * (had - chance):
        return None
    return Finding(
        code="randomised",
        sentence=f"accuracy on retain rows fell from {had:.3f} to {has:.3f}, where always saying the same class gives "
        f"{chance:.3f}: what the model knew of other rows is gone",
    )


def _over_forgotten(after: Mapping[str, Outputs], reference: Mapping[str, Outputs] | None) -> Finding | None:
    forget = after["forget.train"]
    unseen = after.get("forget.test", after["retain.test"])
    now = likeness(forget.logits, forget.targets, unseen.logits, unseen.targets)
    if now is not None:
        wanted = 0.5
        if reference is not None:
            theirs = reference.get("forget.test", reference["retain.test"])
            mine = reference["forget.train"]
            fair = likeness(mine.logits, mine.targets, theirs.logits, theirs.targets)
            wanted = min(0.5, fair.loss_auc) if fair is not None else 0.5
        if now.loss_auc < wanted - max(0.1, 4 * now.standard_error):
            return Finding(
                code="over_forgotten",
                sentence=f"forget rows are answered worse than unseen rows of their classes (AUC of the loss "
                f"{now.loss_auc:.3f}, wanted {wanted:.3f}): they stand out",
            )
    if reference is not None:
        mine, theirs = after["forget.train"], reference["forget.train"]
        ours, fair_share = (accuracy(one.logits, one.targets) for one in (mine, theirs))
        error = (max(fair_share * (1 - fair_share), 0.05) / len(mine.targets)) ** 0.5
        if ours < fair_share - max(0.1, 4 * error):
            return Finding(
                code="over_forgotten",
                sentence=f"accuracy on forget rows is {ours:.3f}, a retrained model's {fair_share:.3f}: they stand out",
            )
        unsure = population_attack(entropy(theirs.logits), entropy(mine.logits)).auc
        if unsure > UNSURE and len(mine.targets) >= FEWEST:
            return Finding(
                code="over_forgotten",
                sentence=f"forget rows are answered with less certainty than by a retrained model (AUC of the entropy "
                f"{unsure:.3f}, wanted 0.5): they stand out",
            )
    return None
