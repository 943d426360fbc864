"""What earlier batches made a model forget, measured again in the model that the next batch made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from unlearning.config import as_plain
from unlearning_components.surroundings import fetch_manifest, open_for

if TYPE_CHECKING:
    from unlearning.data.manifest import Manifest
    from unlearning.models.bundle import Bundle

MOST_ROWS = 5000
"""Rows of each side that are looked at; a draw when there are more."""


def retest(bundle: Bundle, about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The gates about all that was forgotten before this batch, as plain mappings; none when nothing was.

    Forgotten classes shall not be recognised by the very rows that they were learned from. Forgotten rows shall be
    known no better than held-out rows of their classes, and their losses not tell them from those.

    Args:
        bundle: The model that the batch made.
        about: What `next_batch` left: `manifest`, `forgotten`, `retest`.
    """
    from unlearning.policy.gates import judge, retest_policy

    before = about["forgotten"]
    policy = retest_policy(about["retest"])
    if not policy or not (before["classes"] or before["rows"]):
        return []
    values, errors = measured(bundle, fetch_manifest(about["manifest"]), before["classes"], before["rows"])
    bounds = {name: bound for name, bound in policy.items() if name in values}
    return [as_plain(gate) for gate in judge(values, errors, bounds).gates] if bounds else []


def measured(
    bundle: Bundle, data: Manifest, classes: list[str], rows: str
) -> tuple[dict[str, float], dict[str, float]]:
    """Values and standard errors, by the names of `RETEST_POLICY`; what there are no rows for is left out.

    Args:
        bundle: Of the model.
        data: The data set.
        classes: Those that were forgotten before.
        rows: Numbers of rows that were, as ranges.
    """
    import numpy as np
    import torch

    from unlearning.attacks.membership import cross_entropy, population_attack
    from unlearning.data.samples import Rows
    from unlearning.data.selection import from_ranges
    from unlearning.models.bundle import load_bundle
    from unlearning.training import best_device, predict

    network, card = load_bundle(bundle.folder)
    samples, network = open_for(card, data), network.to(best_device())
    draw = np.random.default_rng(0)
    is_regression = card.task == "regression"
    targets = data.targets()
    gone = [card.classes.index(name) for name in classes]

    def losses_of(numbers: Any) -> tuple[Any, float]:
        """The loss of each row, and the share that is predicted right."""
        chosen = np.sort(draw.choice(numbers, MOST_ROWS, replace=False)) if len(numbers) > MOST_ROWS else numbers
        part = Rows(samples, torch.from_numpy(chosen.copy()))
        outputs = predict(network, part)
        if is_regression:
            errors = (outputs.reshape(len(outputs), -1) - part.targets.reshape(len(outputs), -1)).abs().mean(1)
            return errors.double().numpy(), 0.0
        return cross_entropy(outputs, part.targets), float((outputs.argmax(1) == part.targets).double().mean())

    values, errors = dict[str, float](), dict[str, float]()
    train, test = data.rows("train"), data.rows("test")
    if gone and len(known := train[np.isin(targets[train], gone)]):
        right = losses_of(known)[1]
        values["retest.class_accuracy"] = right
        errors["retest.class_accuracy"] = _error(right, min(len(known), MOST_ROWS))
    before = from_ranges(rows, most=len(data))
    before = before if is_regression else before[~np.isin(targets[before], gone)]
    unseen = test if is_regression else test[np.isin(targets[test], np.unique(targets[before]))]
    if len(before) and len(unseen):
        (mine, right), (theirs, theirs_right) = losses_of(before), losses_of(unseen)
        roc = population_attack(mine, theirs)
        values["retest.membership_auc"], errors["retest.membership_auc"] = roc.auc, roc.auc_standard_error
        if not is_regression:
            values["retest.seen_gap"] = right - theirs_right
            errors["retest.seen_gap"] = (_error(right, len(mine)) ** 2 + _error(theirs_right, len(theirs)) ** 2) ** 0.5
    return values, errors


def _error(share: float, rows: int) -> float:
    """Standard error of a share, that of one more success and failure, so that it is never 0."""
    smooth = (share * rows + 1) / (rows + 2)
    return float((smooth * (1 - smooth) / rows) ** 0.5)
