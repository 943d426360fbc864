"""Accuracy of predictions, whole and per class, and where a class's samples go."""

from __future__ import annotations

import torch
from torch import Tensor


def accuracy(logits: Tensor, targets: Tensor) -> float:
    """Share of samples whose largest output is their target's; in [0, 1].

    Args:
        logits: Shape (N, C).
        targets: Class indices, shape (N,).

    Raises:
        ValueError: For no samples, or outputs that are not finite: neither has an accuracy.

    Example:
        >>> accuracy(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0]))
        0.5
    """
    checked(logits, targets)
    return (logits.argmax(1) == targets).double().mean().item()


def confusion(logits: Tensor, targets: Tensor, *, classes: int) -> Tensor:
    """Counts of samples by true class (row) and predicted class (column), shape (C, C), int64."""
    checked(logits, targets)
    cells = targets * classes + logits.argmax(1)
    return torch.bincount(cells, minlength=classes * classes).view(classes, classes)


def per_class_accuracy(counts: Tensor) -> list[float | None]:
    """Accuracy of each true class from a confusion matrix (C, C); None for a class without samples."""
    totals = counts.sum(1)
    return [(counts[c, c].item() / total) if (total := int(totals[c].item())) else None for c in range(len(counts))]


def prediction_distribution(logits: Tensor, *, classes: int) -> Tensor:
    """Share of samples predicted as each class, shape (C,), float64, sums to 1.

    Meant for the forget class's held-out samples: one dominating class says where the forgotten class went.
    """
    checked(logits)
    return torch.bincount(logits.argmax(1), minlength=classes).double() / len(logits)


def balanced_accuracy(counts: Tensor) -> float:
    """Mean accuracy over the true classes that have samples, from a confusion matrix (C, C); in [0, 1].

    Raises:
        ValueError: When no class has a sample.
    """
    present = [value for value in per_class_accuracy(counts) if value is not None]
    if not present:
        raise ValueError("wanted a confusion matrix of at least one sample, got none")
    return sum(present) / len(present)


def checked(logits: Tensor, targets: Tensor | None = None) -> None:
    """Nothing, when there are finite outputs and, where targets are given, one for each row.

    Raises:
        ValueError: For no rows, other counts, or outputs that are not finite.
    """
    if len(logits) == 0:
        raise ValueError("wanted outputs for at least one sample, got none")
    if targets is not None and len(logits) != len(targets):
        raise ValueError(f"wanted one target for each sample, got {len(logits)} outputs and {len(targets)} targets")
    if not bool(torch.isfinite(logits).all()):
        raise ValueError("outputs hold NaN or infinity: the model is broken")
