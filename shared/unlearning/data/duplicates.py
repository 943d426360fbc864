"""Rows that nearly repeat what is to be forgotten, among the rows that stay or that are measured with.

A forgotten row with a twin among the retained ones cannot be forgotten; a twin among the test rows spoils the measure.
The same check serves pixels, features, windows of time and rows of tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]

_MOST_EXAMPLES = 20


@dataclass(frozen=True)
class Duplicates:
    """What `near_duplicates` found.

    Attributes:
        exact: Rows of the second list that repeat a row of the first, byte for byte.
        near: Pairs that are not the same and no farther apart than the limit.
        examples: Row of the first list, row of the second, distance; the closest pairs, at most 20, exact ones first.
    """

    exact: int
    near: int
    examples: tuple[tuple[int, int, float], ...]


def near_duplicates(
    inputs: Array | Callable[[Array], Array], rows_a: Array, rows_b: Array, *, limit: float, block: int = 1024
) -> Duplicates:
    """How many rows of two lists repeat each other, exactly or nearly.

    The distance of rows of whole numbers other than uint8 (tokens) is the share of places where they differ. Of all
    others it is |a - b| / sqrt((|a|^2 + |b|^2) / 2), after the mean of the first list is taken off: 0 for the same,
    about 1.4 for unrelated rows, 2 for opposite ones. Scale features beforehand: a large one would drown the others.

    Args:
        inputs: Shape (N, ...), or a function of row numbers (M,) that gives (M, ...): windows need not be made at once.
        rows_a: Row numbers: the forget set.
        rows_b: Row numbers: the retain set, or a test set.
        limit: Largest distance of a near pair, > 0; 0.05 finds copies with noise, 0.2 near relatives.
        block: Rows of each list compared at a time; memory is block^2 + 2 block x size of a row, in float64.

    Raises:
        ValueError: For a limit or block out of range.
    """
    if not limit > 0 or block < 1:
        raise ValueError(f"limit must be above 0 and block 1 or more, got {limit} and {block}")
    take = inputs if callable(inputs) else lambda rows: inputs[rows]
    known: dict[bytes, int] = {}
    total, count = None, 0
    for rows in _blocks(rows_a, block):
        values = take(rows)
        for row, value in zip(rows.tolist(), values, strict=True):
            known.setdefault(_fingerprint(value), row)
        summed = values.reshape(len(values), -1).sum(axis=0, dtype=np.float64)
        total, count = summed if total is None else total + summed, count + len(values)
    if total is None:
        return Duplicates(0, 0, ())
    center = total / count
    exact, near, examples = 0, 0, []
    for part_b in _blocks(rows_b, block):
        of_b = take(part_b)
        prints = [known.get(_fingerprint(value)) for value in of_b]
        exact += sum(twin is not None for twin in prints)
        examples += [(twin, row, 0.0) for twin, row in zip(prints, part_b.tolist(), strict=True) if twin is not None]
        for part_a in _blocks(rows_a, block):
            of_a = take(part_a)
            distances = _distances(of_a, of_b, center)
            close = np.argwhere(distances <= limit)
            same = np.array([np.array_equal(of_a[a], of_b[b]) for a, b in close], dtype=bool)
            close = close[~same] if len(close) else close
            near += len(close)
            order = np.argsort(distances[tuple(close.T)], kind="stable")[:_MOST_EXAMPLES]
            examples += [(int(part_a[a]), int(part_b[b]), float(distances[a, b])) for a, b in close[order]]
        examples = sorted(examples, key=lambda pair: pair[2])[:_MOST_EXAMPLES]
    return Duplicates(exact, near, tuple(examples))


def _distances(of_a: Array, of_b: Array, center: Array) -> Array:
    a, b = of_a.reshape(len(of_a), -1), of_b.reshape(len(of_b), -1)
    if a.dtype.kind in "iu" and a.dtype != np.uint8:
        differing = np.zeros((len(a), len(b)), dtype=np.int32)
        for place in range(a.shape[1]):
            differing += a[:, place, None] != b[None, :, place]
        return differing / a.shape[1]
    a, b = a.astype(np.float64) - center, b.astype(np.float64) - center
    norms_a, norms_b = (a * a).sum(axis=1)[:, None], (b * b).sum(axis=1)[None, :]
    size = (norms_a + norms_b) / 2
    squares = np.maximum(norms_a + norms_b - 2 * a @ b.T, 0)
    distances: Array = np.sqrt(np.divide(squares, size, out=np.zeros_like(size), where=size > 0))
    return distances


def _blocks(rows: Array, block: int) -> list[Array]:
    return [rows[start : start + block] for start in range(0, len(rows), block)]


def _fingerprint(values: Array) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(values).tobytes(), digest_size=16).digest()
