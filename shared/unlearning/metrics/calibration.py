"""Whether a classifier is as often right as it is sure: calibration error, Brier score, log loss, histograms.

The plug-in calibration error is biased upwards: even a perfectly calibrated model scores above 0 on finitely many rows,
about in proportion to sqrt(bins / rows). Compare it with a retrained model's on the same rows, never with 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from unlearning.metrics.accuracy import checked

Bins = Literal["equal_mass", "equal_width"]


def expected_calibration_error(logits: Tensor, targets: Tensor, *, bins: int = 15, by: Bins = "equal_mass") -> float:
    """Mean over rows of | accuracy - mean confidence | of the row's bin; in [0, 1], lower is better calibrated.

    Args:
        logits: Shape (N, C).
        targets: Class indices, shape (N,).
        bins: At most this many; >= 1.
        by: "equal_mass" gives bins of as many rows each, up to one (rows of equal confidence stay together);
            "equal_width" cuts [0, 1] into equal parts, as in arXiv:1706.04599.

    Raises:
        ValueError: For no rows, outputs that are not finite, or no bins.
    """
    sure, right = _confidence(logits, targets)
    place = _places(sure, bins, by)
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, right - sure)  # sum over the bin's rows
    return min(1.0, gaps.abs().sum().item() / len(sure))


def brier_score(logits: Tensor, targets: Tensor) -> float:
    """Mean over rows of sum_c (p_c - [c is the target])^2; in [0, 2], lower is better.

    Args:
        logits: Shape (N, C).
        targets: Class indices, shape (N,).
    """
    checked(logits, targets)
    p = logits.double().softmax(1)
    p[torch.arange(len(p)), targets] -= 1
    return p.square().sum(1).mean().item()


def negative_log_likelihood(logits: Tensor, targets: Tensor) -> float:
    """Mean over rows of - ln p_target, in nats; >= 0, lower is better.

    Args:
        logits: Shape (N, C).
        targets: Class indices, shape (N,).
    """
    checked(logits, targets)
    return F.cross_entropy(logits.double(), targets).item()


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfidenceHistogram:
    """Rows by the model's confidence in its prediction, in bins of equal width.

    Attributes:
        edges: Rising from 0 to 1, one more than bins; a row on an edge belongs to the bin below.
        rows: How many in each bin.
        accuracy: Of each bin, None without rows.
        confidence: Mean of each bin, None without rows.
    """

    edges: tuple[float, ...]
    rows: tuple[int, ...]
    accuracy: tuple[float | None, ...]
    confidence: tuple[float | None, ...]


def confidence_histogram(logits: Tensor, targets: Tensor, *, bins: int = 10) -> ConfidenceHistogram:
    """How many rows the model is how sure of, and how often it is right about them: a reliability diagram's figures.

    Args:
        logits: Shape (N, C).
        targets: Class indices, shape (N,).
        bins: Of equal width; >= 1.
    """
    sure, right = _confidence(logits, targets)
    place = _places(sure, bins, "equal_width")
    counts = torch.bincount(place, minlength=bins)
    hits, total = (torch.zeros(bins, dtype=torch.float64).index_add_(0, place, one) for one in (right, sure))

    def means(sums: Tensor) -> tuple[float | None, ...]:
        return tuple(one / n if n else None for one, n in zip(sums.tolist(), counts.tolist(), strict=True))

    edges = tuple(edge / bins for edge in range(bins + 1))
    return ConfidenceHistogram(edges=edges, rows=tuple(counts.tolist()), accuracy=means(hits), confidence=means(total))


def _confidence(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Largest probability of each row, and whether the prediction is right; both shape (N,), float64."""
    checked(logits, targets)
    sure, predicted = logits.double().softmax(1).max(1)
    return sure, (predicted == targets).double()


def _places(sure: Tensor, bins: int, by: Bins) -> Tensor:
    """The bin of each row, shape (N,), in 0 .. bins - 1."""
    if bins < 1:
        raise ValueError(f"wanted at least one bin, got {bins}")
    if by == "equal_width":
        return (sure * bins).ceil().long().sub(1).clamp(0, bins - 1)
    ordered = sure.sort().values
    first = torch.searchsorted(ordered, sure)  # rows of equal confidence share the first one's rank
    return first * bins // len(sure)
