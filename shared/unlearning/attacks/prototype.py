"""Prototype attack: are a few rows of a forgotten class enough to recognise it again, without any training?

The mean feature of a few rows of each class stands for the class, and a row goes to the class whose mean is nearest by
angle. Features come from `metrics.features`. After arXiv:2506.01318, of which only the idea was known while this was
written, not its protocol.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class PrototypeAttack:
    """How well nearest class means classify.

    Attributes:
        forget_accuracy: On rows of the forgotten classes, in [0, 1]. Hold it against a retrained model's: features that
            never saw a class may tell it apart nonetheless.
        retain_accuracy: On rows of the other classes, in [0, 1]; None without such rows.
        per_class: Accuracy by class; None where there are no rows to classify.
    """

    forget_accuracy: float
    retain_accuracy: float | None
    per_class: tuple[float | None, ...]


def prototypes(features: Tensor, targets: Tensor, *, classes: int) -> Tensor:
    """Mean of each class's rows of unit length, of unit length itself, shape (C, D), float64; NaN without rows.

    Args:
        features: Shape (N, D).
        targets: Class indices, shape (N,).
        classes: C.

    Raises:
        ValueError: For other shapes, or features that are not finite.
    """
    _check(features, targets)
    sums = torch.zeros((classes, features.shape[1]), dtype=torch.float64)
    sums.index_add_(0, targets, F.normalize(features.double(), dim=1))
    found = F.normalize(sums, dim=1)
    found[torch.bincount(targets, minlength=classes) == 0] = torch.nan
    return found


def prototype_attack(
    shots: Tensor,
    shot_targets: Tensor,
    features: Tensor,
    targets: Tensor,
    *,
    classes: int,
    forget_classes: tuple[int, ...],
) -> PrototypeAttack:
    """Recognise rows by the nearest class mean of a few others; classes without shots are never said.

    Args:
        shots: Features of the attacker's rows, shape (S, D): a few of every class, the forgotten ones among them.
        shot_targets: Shape (S,).
        features: Of held-out rows, shape (N, D), under the same model.
        targets: Shape (N,).
        classes: C.
        forget_classes: Those forgotten; each needs shots, and rows among `features`.

    Raises:
        ValueError: When one of them has none, or for features that are not finite.
    """
    _check(features, targets)
    means = prototypes(shots, shot_targets, classes=classes)
    if features.shape[1] != shots.shape[1]:
        raise ValueError(f"wanted features of one model, got {shots.shape[1]} and {features.shape[1]} of them")
    present = torch.bincount(targets, minlength=classes)
    if lacking := [c for c in forget_classes if bool(means[c].isnan().any()) or not present[c]]:
        raise ValueError(f"wanted shots and held-out rows of every forgotten class, got none of {lacking}")
    if not forget_classes:
        raise ValueError("wanted at least one forgotten class, got none: rows alone have no prototype")
    nearness = F.normalize(features.double(), dim=1) @ means.T  # (N, C)
    right = (nearness.nan_to_num(nan=-2.0).argmax(1) == targets).double()
    hits = torch.zeros(classes, dtype=torch.float64).index_add_(0, targets, right)
    gone = torch.isin(targets, torch.tensor(forget_classes))
    return PrototypeAttack(
        forget_accuracy=right[gone].mean().item(),
        retain_accuracy=right[~gone].mean().item() if bool((~gone).any()) else None,
        per_class=tuple((hits[c] / present[c]).item() if present[c] else None for c in range(classes)),
    )


def _check(features: Tensor, targets: Tensor) -> None:
    if features.dim() != 2 or len(features) != len(targets) or len(features) == 0:
        raise ValueError(f"wanted features (N, D) and N targets, got {list(features.shape)} and {len(targets)}")
    if not bool(features.isfinite().all()):
        raise ValueError("the features hold NaN or infinity: the model is broken")
