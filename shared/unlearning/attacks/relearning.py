"""Relearning attacks: what fine-tuning brings back, of an unlearned model and of one that never knew.

Two of them: on a few of the forgotten rows, as someone who holds some would; and on retain rows alone, which is what
happens to a model in use anyway (arXiv:2505.22310 reports that this alone may restore what was unlearned).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from unlearning.data.samples import Rows, Samples
from unlearning.metrics.relearning import RelearnConfig, RelearnCurve, area_between, relearn
from unlearning.progress import Progress, silent


@dataclass(frozen=True, slots=True, kw_only=True)
class RelearningAttack:
    """Curves of both models, one for each seed; accuracy is that on the watched rows.

    Attributes:
        unlearned: Of the model under attack.
        reference: Of the retrained one.
        area: Mean over seeds of the area between the two; in [-1, 1]. 0 is ideal, above 0 the attack regains what a
            model that never knew does not.
        area_spread: Its standard deviation over seeds; 0 for a single one.
        final: Mean over seeds of the unlearned model's last accuracy less the reference's; in [-1, 1], 0 is ideal.
    """

    unlearned: tuple[RelearnCurve, ...]
    reference: tuple[RelearnCurve, ...]
    area: float
    area_spread: float
    final: float


def relearning_attack(
    unlearned: nn.Module,
    reference: nn.Module,
    samples: Samples,
    watched: Samples,
    config: RelearnConfig,
    *,
    seeds: Sequence[int],
    quantiles: Sequence[float] | None = None,
    progress: Progress = silent,
) -> RelearningAttack:
    """Fine-tune copies of both models alike on the same rows; neither model is changed.

    Args:
        unlearned: Under attack.
        reference: Retrained without the forget rows.
        samples: What the attacker fine-tunes on: `few_shots` of the forget rows, or retain rows.
        watched: Rows of what was forgotten, not among `samples`.
        config: Of the fine-tuning.
        seeds: Of the orders; at least one.
        quantiles: For models that predict values, as for `relearn`; their `regression.skill` stands for the accuracy.
        progress: Called after every look.

    Raises:
        ValueError: Without seeds or rows.
        FloatingPointError: When a loss is not finite.
    """
    if not seeds:
        raise ValueError("wanted at least one seed, got none")
    ours, theirs = (
        tuple(
            relearn(model, samples, watched, config, seed=seed, quantiles=quantiles, progress=progress)
            for seed in seeds
        )
        for model in (unlearned, reference)
    )
    pairs = list(zip(ours, theirs, strict=True))
    areas = [area_between(*pair) for pair in pairs]
    return RelearningAttack(
        unlearned=ours,
        reference=theirs,
        area=statistics.fmean(areas),
        area_spread=statistics.stdev(areas) if len(areas) > 1 else 0.0,
        final=statistics.fmean(one.accuracies[-1] - other.accuracies[-1] for one, other in pairs),
    )


def few_shots(samples: Samples, shots: int, draws: torch.Generator) -> Rows:
    """At most `shots` rows of every class there is, drawn at random.

    Args:
        samples: Usually the forget rows.
        shots: For each class; >= 1.
        draws: Of the rows.

    Raises:
        ValueError: For no rows or no shots.
    """
    if len(samples) == 0 or shots < 1:
        raise ValueError(f"wanted rows and at least one shot, got {len(samples)} rows and {shots} shots")
    order = torch.randperm(len(samples), generator=draws)
    targets = samples.targets[order]
    picked = [order[targets == target][:shots] for target in targets.unique()]
    return Rows(samples, torch.cat(picked))
