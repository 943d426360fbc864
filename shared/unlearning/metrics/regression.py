"""Metrics of predicted values: how wrong they are, and how far two models' predictions lie apart.

All are pure, in float64, means over values and never over batches. Predictions and targets are (N,), or (N, H) for
forecasts; quantile forecasts are (N, H, Q). An empty set has no error, and NaN says that a model is broken: both are
refused. What is wanted on forget rows is the retrained model's figure, not the largest error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Array = NDArray[np.float64]


def mae(predictions: ArrayLike | Tensor, targets: ArrayLike | Tensor) -> float:
    """Mean absolute error, in the targets' unit, >= 0; lower is better on retain rows.

    Raises:
        ValueError: For no values, values that are not finite, or shapes that differ; so do all functions here.

    Example:
        >>> mae([1.0, 4.0], [3.0, 3.0])
        1.5
    """
    return float(np.abs(_errors(predictions, targets)).mean())


def mse(predictions: ArrayLike | Tensor, targets: ArrayLike | Tensor) -> float:
    """Mean squared error, in the square of the targets' unit, >= 0; lower is better on retain rows."""
    return float(np.square(_errors(predictions, targets)).mean())


def rmse(predictions: ArrayLike | Tensor, targets: ArrayLike | Tensor) -> float:
    """Root of the mean squared error, in the targets' unit, >= 0, at least the MAE; lower is better on retain rows."""
    return float(np.sqrt(mse(predictions, targets)))


def skill(predictions: ArrayLike | Tensor, targets: ArrayLike | Tensor) -> float:
    """Share of the targets' own spread that the predictions explain; in [0, 1], the counterpart of an accuracy.

    1 - MAE / (mean absolute deviation from the targets' median), and 0 for what errs more than the median would. Of
    targets that do not vary it is 1 when they are met exactly, else 0.

    Example:
        >>> skill([1.0, 2.0, 4.0], [1.0, 3.0, 5.0])
        0.5
    """
    error = mae(predictions, targets)
    values = _values(targets, "targets")
    spread = float(np.abs(values - np.median(values)).mean())
    if spread == 0:
        return float(error == 0)
    return max(0.0, 1 - error / spread)


def wasserstein(first: ArrayLike | Tensor, second: ArrayLike | Tensor) -> float:
    r"""W1 between two sets of predictions, the area between their distribution functions: \int |F - G|.

    In the predictions' unit, >= 0; lower is closer. Of an unlearned and a retrained model on the same forget rows it
    says whether both answer alike as a whole; not whether row by row. Shapes are flattened and may differ in size.

    Example:
        >>> wasserstein([0.0, 1.0, 3.0], [5.0, 6.0, 8.0])
        5.0
    """
    a, b = np.sort(_values(first, "first").ravel()), np.sort(_values(second, "second").ravel())
    if len(a) == len(b):
        return float(np.abs(a - b).mean())
    both = np.sort(np.concatenate([a, b]))
    below = [np.searchsorted(side, both[:-1], side="right") / len(side) for side in (a, b)]
    return float((np.abs(below[0] - below[1]) * np.diff(both)).sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Ks:
    """Of a two-sample Kolmogorov-Smirnov test.

    Attributes:
        statistic: Largest distance between the two distribution functions, in [0, 1]; lower is more alike.
        p: Probability of as much or more if both sides came from one distribution, in [0, 1]; small: they differ.
    """

    statistic: float
    p: float


def ks_residuals(first: ArrayLike | Tensor, second: ArrayLike | Tensor) -> Ks:
    """Whether two sets of residuals (target - prediction) may come from one distribution; flattened, any sizes.

    Of forgotten training rows against held-out rows of their kind: a model that forgot them treats both alike.
    """
    from scipy.stats import ks_2samp

    result = ks_2samp(_values(first, "first").ravel(), _values(second, "second").ravel())
    return Ks(statistic=float(result.statistic), p=float(result.pvalue))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """The error of the values whose targets lie in [low, high); the last bin holds its upper edge as well.

    Attributes:
        low: Edge, in the targets' unit.
        high: Likewise.
        count: Values in it.
        mae: Their mean absolute error; None when there are none.
        bias: Their mean of prediction - target; None when there are none.
    """

    low: float
    high: float
    count: int
    mae: float | None
    bias: float | None


def error_by_bin(targets: ArrayLike | Tensor, predictions: ArrayLike | Tensor, edges: Sequence[float]) -> list[Bin]:
    """The error as it depends on the target: one figure for each bin, in the targets' unit.

    A forgotten band of targets shows as bins whose error has grown and whose bias leans towards what was kept.

    Args:
        targets: Shape (N,) or (N, H).
        predictions: Of the same shape.
        edges: K + 1 rising edges of K bins; targets outside them are left out.

    Raises:
        ValueError: As `mae`; also when there are fewer than two edges or they do not rise.
    """
    bounds = _values(list(edges), "edges")
    if len(bounds) < 2 or not bool((np.diff(bounds) > 0).all()):
        raise ValueError(f"wanted two or more rising edges, got {list(edges)}")
    errors = -_errors(predictions, targets).ravel()
    y = _values(targets, "targets").ravel()
    place = np.searchsorted(bounds, y, side="right") - 1
    place[y == bounds[-1]] = len(bounds) - 2
    found = []
    for k in range(len(bounds) - 1):
        inside = errors[place == k]
        found.append(
            Bin(
                low=float(bounds[k]),
                high=float(bounds[k + 1]),
                count=len(inside),
                mae=float(np.abs(inside).mean()) if len(inside) else None,
                bias=float(inside.mean()) if len(inside) else None,
            )
        )
    return found


def pinball(
    predictions: ArrayLike | Tensor, targets: ArrayLike | Tensor, quantiles: Sequence[float]
) -> dict[float, float]:
    """The mean pinball loss of each quantile q, max(q e, (q - 1) e) with e = y - y_q, in the targets' unit, >= 0.

    Lower is better on retain rows. At q = 0.5 it is half the MAE.

    Args:
        predictions: y_q, shape (N, H, Q), or (N, Q) where H = 1.
        targets: y, shape (N, H) or (N,).
        quantiles: Q levels in (0, 1).
    """
    e = _above(predictions, targets, quantiles)
    return {q: float(np.maximum(q * e[..., k], (q - 1) * e[..., k]).mean()) for k, q in enumerate(quantiles)}


def coverage(
    predictions: ArrayLike | Tensor, targets: ArrayLike | Tensor, quantiles: Sequence[float]
) -> dict[float, float]:
    """The share of targets at or below each predicted quantile q, in [0, 1]; q itself is best.

    Args:
        predictions: Shape (N, H, Q), or (N, Q) where H = 1.
        targets: Shape (N, H) or (N,).
        quantiles: Q levels in (0, 1).
    """
    e = _above(predictions, targets, quantiles)
    return {q: float((e[..., k] <= 0).mean()) for k, q in enumerate(quantiles)}


def crossing_share(predictions: ArrayLike | Tensor) -> float:
    """The share of values some of whose quantiles are in the wrong order, in [0, 1]; 0 is best.

    Args:
        predictions: Quantiles in the order of their levels, shape (N, H, Q) or (N, Q).
    """
    values = _values(predictions, "predictions")
    if values.ndim < 2:
        raise ValueError(f"wanted quantiles on a last axis, got shape {values.shape}")
    return float((np.diff(values, axis=-1) < 0).any(-1).mean())


def relative_difference(
    predictions: ArrayLike | Tensor, reference: ArrayLike | Tensor, targets: ArrayLike | Tensor
) -> Array:
    """|y' - y''| / |y| of two models' predictions, for each value with a target other than 0; shape (M,), >= 0.

    Dimensionless; 0 where both models agree. Meant for a density plot over the forget rows.

    Args:
        predictions: y', of the unlearned model, shape (N,) or (N, H).
        reference: y'', of the retrained one, of the same shape.
        targets: y, of the same shape.

    Raises:
        ValueError: As `mae`; also when every target is 0.
    """
    apart = np.abs(_errors(predictions, reference)).ravel()
    y = _values(targets, "targets").ravel()
    if len(y) != len(apart):
        raise ValueError(f"wanted a target for each of {len(apart)} values, got {len(y)}")
    if not bool((y != 0).any()):
        raise ValueError("every target is 0: a relative difference needs others")
    found: Array = apart[y != 0] / np.abs(y[y != 0])
    return found


def _values(values: ArrayLike | Tensor, what: str) -> Array:
    if isinstance(values, Tensor):
        values = values.detach().to("cpu", torch.float64).numpy()
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ValueError(f"wanted at least one value in {what}, got none")
    if not bool(np.isfinite(array).all()):
        raise ValueError(f"{what} hold NaN or infinity: the model or the data is broken")
    return array


def _errors(predictions: ArrayLike | Tensor, targets: ArrayLike | Tensor) -> Array:
    """Target - prediction, value by value."""
    y, found = _values(targets, "targets"), _values(predictions, "predictions")
    if y.shape != found.shape:
        raise ValueError(f"predictions {found.shape} and targets {y.shape} must have one shape")
    return y - found


def _above(predictions: ArrayLike | Tensor, targets: ArrayLike | Tensor, quantiles: Sequence[float]) -> Array:
    """Target - quantile, shape (N, H, Q) or (N, Q)."""
    y, found = _values(targets, "targets"), _values(predictions, "predictions")
    if found.shape != (*y.shape, len(quantiles)):
        raise ValueError(f"predictions {found.shape} do not fit {len(quantiles)} quantiles of targets {y.shape}")
    return y[..., None] - found
