"""Means and deviations of inputs over some rows, exact for pixels and the same on every machine."""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np

from unlearning.data.card import Scaling
from unlearning.errors import DataError

Array = np.ndarray[Any, Any]


class Inputs(Protocol):
    """An array, or what reads its rows when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all."""
        ...

    @property
    def ndim(self) -> int:
        """How many axes."""
        ...

    @property
    def dtype(self) -> Any:
        """Of the values."""
        ...

    def __getitem__(self, rows: Any) -> Any:
        """A row, or rows by their numbers."""
        ...


def fitted(inputs: Inputs, rows: Array) -> Scaling:
    """The scaling of inputs over the given rows, to seven digits; a deviation of 0 counts as 1.

    Pixels are summed as integers, so every machine finds the same numbers. A missing value (NaN) counts as the median
    of its feature over the rows.

    Args:
        inputs: Shape (N, C, H, W), (N, D) or (N, steps, values); uint8 counts as scaled to 0..1.
        rows: Row numbers to fit on: those of the train split, or the retained ones alone.

    Raises:
        DataError: When there are no rows, or a feature is missing in all of them.
    """
    if not len(rows):
        raise DataError("the source has no train rows: it needs some to train on")
    fill = _medians(inputs, rows)
    axis = 2 if inputs.ndim == 3 else 1  # of the channels, features or values
    axes = tuple(place for place in range(inputs.ndim) if place != axis)
    scale, kind = (255.0, np.int64) if inputs.dtype == np.uint8 else (1.0, np.float64)
    size = math.prod(inputs.shape[1:])
    step = max(1, (1 << 22) // max(1, size))
    chunks = [rows[start : start + step] for start in range(0, len(rows), step)]
    count = len(rows) * size // inputs.shape[axis]
    shift: Any = 0
    if kind is not np.int64:
        shift = sum(_filled(inputs[part], fill).sum(axis=axes, dtype=kind) for part in chunks) / count
    ones = [1] * inputs.ndim
    ones[axis] = -1
    shift = np.reshape(shift, ones).astype(kind)
    total = np.zeros(inputs.shape[axis], dtype=kind)
    squares = np.zeros(inputs.shape[axis], dtype=kind)
    for part in chunks:
        values = _filled(inputs[part], fill).astype(kind) - shift
        total += values.sum(axis=axes)
        squares += (values * values).sum(axis=axes)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0)) / scale
    mean = (mean + shift.reshape(-1)) / scale
    return Scaling(_digits(mean), tuple(value or 1.0 for value in _digits(std)), _digits(fill))


def _medians(inputs: Inputs, rows: Array) -> Array:
    """Per feature over the rows, or nothing when no value is missing anywhere."""
    if inputs.dtype.kind != "f" or inputs.ndim != 2 or not isinstance(inputs, np.ndarray) or not np.isnan(inputs).any():
        return np.empty(0)
    picked = inputs[rows]
    if np.isnan(picked).all(axis=0).any():
        raise DataError("a feature is missing in every train row: leave it out")
    return np.asarray(np.nanmedian(picked, axis=0), dtype=np.float64)


def _filled(inputs: Array, fill: Array) -> Array:
    return np.where(np.isnan(inputs), fill, inputs) if len(fill) else inputs


def _digits(values: Array) -> tuple[float, ...]:
    return tuple(float(f"{value:.7g}") for value in values)
