"""Rows that nearly repeat what is to be forgotten, among the rows that stay or that are measured with.

A forgotten row with a twin among the retained ones cannot be forgotten; a twin among the test rows spoils the measure.
The same check serves pixels, features, windows of time and rows of tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]

_MOST_EXAMPLES = 20
_DIRECTIONS = 64
"""Random directions that rows are thrown on before they are compared; distances keep to about 9%."""
_WIDER = 1.5
"""Thrown rows this many times the limit apart are compared in full: 5 of those 9% away from missing a twin."""
_ROUNDING = 1e-5
"""Of a product of two rows in float32, as a share of their squared lengths: what is that close is compared in full."""
_MOST_PAIRS = 100_000
"""Compared in full, the nearest ones: bounds the time where everything resembles everything."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Twins:
    """What `near_twins` found.

    Attributes:
        rows: Rows of the first list that have a twin in the second: nearly, not exactly, the same.
        looked: How many distinct rows of the first list were looked at.
        among: And how many of the second.
    """

    rows: int
    looked: int
    among: int


def near_twins(
    take: Callable[[Array], Array],
    rows_a: Array,
    rows_b: Array,
    *,
    prints: tuple[Array, Array] | None = None,
    limit: float = 0.05,
    most_a: int = 2000,
    most_b: int = 20_000,
    seed: int = 0,
    block: int = 1024,
) -> Twins:
    """How many rows of one list have a near twin in another, within bounded time and memory.

    The distance is that of `near_duplicates` for rows that are no tokens. Rows are thrown on 64 random directions first
    and only pairs that come close there are compared in full, so time grows with the rows, not with their pairs times
    their size. Lists longer than the bounds are drawn down: what was looked at is said.

    Args:
        take: Row numbers (M,) to their inputs (M, ...).
        rows_a: Row numbers: the forget set.
        rows_b: Row numbers: the retain set, or a test set.
        prints: `fingerprints` of both lists, where they are known.
        limit: Largest distance of a twin, > 0.
        most_a: Rows of the first list that are looked at.
        most_b: Rows of the second list.
        seed: Of the draws and the directions.
        block: Rows taken at a time.

    Raises:
        ValueError: For a limit or bounds out of range.
    """
    if not limit > 0 or min(most_a, most_b, block) < 1:
        raise ValueError(f"limit, most and block must be above 0, got {limit}, {most_a}, {most_b} and {block}")
    draws = np.random.default_rng(seed)
    chosen = []
    for place, (rows, most) in enumerate(((rows_a, most_a), (rows_b, most_b))):
        some = draws.permutation(len(rows))[:most]
        some = some[np.argsort(rows[some])]
        known = fingerprints(take, rows[some], block=block) if prints is None else prints[place][some]
        _, firsts = np.unique(known, return_index=True)
        chosen.append(rows[some[np.sort(firsts)]])
    first, second = chosen
    if not len(first) or not len(second):
        return Twins(rows=0, looked=len(first), among=len(second))
    center = sum(_flat(take(part)).sum(axis=0) for part in _blocks(first, block)) / len(first)
    directions, wider = np.eye(len(center)), 1.0
    if len(center) > _DIRECTIONS:
        directions, wider = draws.standard_normal((len(center), _DIRECTIONS)) / np.sqrt(_DIRECTIONS), _WIDER

    def thrown(rows: Array) -> Array:
        values = take(rows).reshape(len(rows), -1)
        exact = np.result_type(values.dtype, np.float32)
        along: Array = (values - center.astype(exact)) @ directions.astype(exact)
        return along.astype(np.float32)

    of_a = np.concatenate([thrown(part) for part in _blocks(first, block)])
    near = _close(of_a, (thrown(part) for part in _blocks(second, block)), limit * wider)
    found: set[int] = set()
    for part in _blocks(near, block):
        of_a, of_b = _flat(take(first[part[:, 0]])) - center, _flat(take(second[part[:, 1]])) - center
        scale = np.sqrt(((of_a**2).sum(axis=1) + (of_b**2).sum(axis=1)) / 2)
        gaps = np.sqrt(((of_a - of_b) ** 2).sum(axis=1))
        found |= set(part[(gaps > 0) & (gaps <= limit * scale), 0].tolist())
    return Twins(rows=len(found), looked=len(first), among=len(second))


def _close(of_a: Array, parts_of_b: Iterable[Array], limit: float) -> Array:
    """Places of all pairs of rows no farther apart than the limit, and of few others, shape (M, 2), nearest ones first.

    |a - b|^2 <= limit^2 (|a|^2 + |b|^2) / 2 is a.b - k |a|^2 - k |b|^2 >= 0 with k = (1 - limit^2 / 2) / 2: one product
    of rows that have two values more.

    Args:
        of_a: Centered rows, shape (A, D), float32.
        parts_of_b: Centered rows, in parts of shape (B, D), float32.
        limit: Of the distance that `near_duplicates` has.
    """
    scale = np.abs(of_a).max() or 1.0  # squares of what is left neither overflow nor vanish
    of_a = of_a / scale
    k = (1 - limit**2 / 2) / 2 - _ROUNDING
    squares_a = np.einsum("ij,ij->i", of_a, of_a)
    left = np.column_stack([of_a, -k * squares_a, np.ones_like(squares_a)]).astype(np.float32)
    pairs, nearness, start = np.empty((0, 2), dtype=np.int64), np.empty(0, dtype=np.float32), 0
    for part in parts_of_b:
        of_b = part / scale
        squares_b = np.einsum("ij,ij->i", of_b, of_b)
        right = np.column_stack([of_b, np.ones_like(squares_b), -k * squares_b]).astype(np.float32)
        margins = (left @ right.T).ravel()
        close = np.flatnonzero(margins >= 0)
        a, b = np.divmod(close, len(of_b))
        size = np.maximum(squares_a[a] + squares_b[b], np.finfo(np.float32).tiny)
        pairs = np.concatenate([pairs, np.column_stack([a, b + start])])
        nearness = np.concatenate([nearness, margins[close] / size])
        if len(pairs) > _MOST_PAIRS:
            kept = np.argsort(-nearness, kind="stable")[:_MOST_PAIRS]
            pairs, nearness = pairs[kept], nearness[kept]
        start += len(of_b)
    return pairs[np.argsort(-nearness, kind="stable")]


def fingerprints(take: Callable[[Array], Array], rows: Array, *, block: int = 1024) -> Array:
    """A 64-bit number for the inputs of each row, shape (N,): equal inputs, byte for byte, have equal ones.

    Not to be compared with numbers of another call: a quick sum tells most rows apart, those that it cannot are hashed.

    Args:
        take: Row numbers (M,) to their inputs (M, ...).
        rows: Row numbers.
        block: Rows taken at a time.
    """
    if not len(rows):
        return np.empty(0, dtype=np.uint64)
    prints = np.concatenate([_sums(take(part)) for part in _blocks(rows, block)])
    _, place, counts = np.unique(prints, return_inverse=True, return_counts=True)
    again = np.flatnonzero(counts[place] > 1)
    for part in _blocks(again, block):
        digests = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in take(rows[part])]
        prints[part] = np.frombuffer(b"".join(digests), dtype=np.uint64)
    return prints


def _sums(values: Array) -> Array:
    """Of each row's bytes, eight at a time, a weighted sum modulo 2^64; of rows that differ seldom the same."""
    content = np.ascontiguousarray(values).reshape(len(values), -1).view(np.uint8)
    if missing := -content.shape[1] % 8:
        content = np.pad(content, ((0, 0), (0, missing)))
    eights = content.view(np.uint64)
    weights = np.random.default_rng(0).integers(0, 1 << 63, eights.shape[1], dtype=np.uint64) * 2 + 1
    sums: Array = np.einsum("ij,j->i", eights ^ (eights >> np.uint64(32)), weights)
    return sums


def _flat(values: Array) -> Array:
    return values.reshape(len(values), -1).astype(np.float64)


def _distances(of_a: Array, of_b: Array, center: Array) -> Array:
    a, b = of_a.reshape(len(of_a), -1), of_b.reshape(len(of_b), -1)
    if a.dtype.kind in "iu" and a.dtype != np.uint8:
        differing = np.zeros((len(a), len(b)), dtype=np.int32)
        for place in range(a.shape[1]):
            differing += a[:, place, None] != b[None, :, place]
        return differing / a.shape[1]
    a, b = a.astype(np.float64) - center, b.astype(np.float64) - center
    return _apart(a, b)


def _apart(a: Array, b: Array) -> Array:
    """Distances of centered rows, shape (A, B)."""
    norms_a, norms_b = (a * a).sum(axis=1)[:, None], (b * b).sum(axis=1)[None, :]
    size = (norms_a + norms_b) / 2
    squares = np.maximum(norms_a + norms_b - 2 * a @ b.T, 0)
    distances: Array = np.sqrt(np.divide(squares, size, out=np.zeros_like(size), where=size > 0))
    return distances


def _blocks(rows: Array, block: int) -> list[Array]:
    return [rows[start : start + block] for start in range(0, len(rows), block)]


def _fingerprint(values: Array) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(values).tobytes(), digest_size=16).digest()
