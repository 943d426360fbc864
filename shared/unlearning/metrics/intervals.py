"""How far a measured value may be from the one that was meant: intervals over rows, and over seeds.

An interval over rows says what other rows of the same kind would have given for these very models. It says nothing of
other seeds: for that, several models are needed (`seed_interval`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

CELLS = 1 << 22
"""Drawn numbers held at once: bounds memory, and changes no result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A value and where the true one lies with the given confidence.

    Attributes:
        value: As measured.
        low: Lower end.
        high: Upper end.
        level: Confidence, in (0, 1).
    """

    value: float
    low: float
    high: float
    level: float

    def holds(self, value: float) -> bool:
        """Whether a value lies in it, ends included."""
        return self.low <= value <= self.high


def auc_interval(members: Array, non_members: Array, *, seed: int, draws: int = 1000, level: float = 0.95) -> Interval:
    """Bootstrap interval of the AUC of "a member has the lower statistic"; in [0, 1], ties count half.

    Both sides are drawn anew, with replacement and apart; the ends are quantiles of the drawn AUCs. With perfect
    separation every draw is alike and the interval is a point: then the number of rows is what limits the claim.

    Args:
        members: The statistic of members, shape (M,).
        non_members: Of non-members, shape (N,).
        seed: Of the draws.
        draws: How many; >= 1.
        level: In (0, 1).

    Raises:
        ValueError: For an empty side, NaN, or settings out of range.
    """
    return auc_difference_interval((members, non_members), None, seed=seed, draws=draws, level=level)


def auc_difference_interval(
    one: tuple[Array, Array],
    other: tuple[Array, Array] | None,
    *,
    seed: int,
    draws: int = 1000,
    level: float = 0.95,
) -> Interval:
    """Bootstrap interval of the AUC of one model less that of another on the same rows; in [-1, 1].

    Every draw takes the same rows from both models, so what makes a row easy for both cancels.

    Args:
        one: Statistics of members (M,) and non-members (N,) under the one model.
        other: Of the same rows under the other; None: nothing is subtracted.
        seed: Of the draws.
        draws: How many; >= 1.
        level: In (0, 1).

    Raises:
        ValueError: For an empty side, NaN, different rows, or settings out of range.
    """
    if other is not None and [len(side) for side in one] != [len(side) for side in other]:
        raise ValueError(f"wanted the same rows of both models, got {[*map(len, one)]} and {[*map(len, other)]}")
    sorts = [_sorted(*pair) for pair in (one, other) if pair is not None]

    def score(counts: list[Array]) -> Array:
        weights = np.concatenate(counts, axis=1)  # (B, M + N)
        scores = [_weighted_auc(weights, len(one[0]), *kept) for kept in sorts]
        return scores[0] if len(scores) == 1 else scores[0] - scores[1]

    return _bootstrap([len(one[0]), len(one[1])], score, seed=seed, draws=draws, level=level)


def auc_gap_error(one: tuple[Array, Array], other: tuple[Array, Array]) -> float:
    """Standard error over rows of the AUC of one model less that of another on the same rows; >= 0.

    The larger of two, both exact in O(N log N) where the bootstrap (`auc_difference_interval`) needs hundreds of draws.
    DeLong, DeLong and Clarke-Pearson's (1988), from each row's share in the AUC: what makes a row easy for both models
    cancels. And what chance alone gives when neither model saw any of the rows, so that any of them might have been
    called a member: Mann and Whitney's, times sqrt(2 - 2 r), r the rank correlation of the two models' statistics. The
    first comes out too small by luck where a side has few rows, the second does not.

    Args:
        one: The statistic of members (M,) and of non-members (N,) under the one model.
        other: Of the same rows under the other.

    Raises:
        ValueError: For an empty side, NaN, or different rows.
    """
    if [len(side) for side in other] != [len(side) for side in one] or min(map(len, one)) == 0:
        raise ValueError(f"wanted the same rows of both models, got {[*map(len, one)]} and {[*map(len, other)]}")
    ours, theirs = _shares(*one), _shares(*other)
    m, n = map(len, one)
    null = (m + n + 1) / (6 * m * n) * (1 - _correlation(ours[2], theirs[2]))
    if min(m, n) < 2:
        return math.sqrt(max(null, 0.0))
    apart = [(a - b).var(ddof=1) / len(a) for a, b in zip(ours[:2], theirs[:2], strict=True)]
    return math.sqrt(max(float(sum(apart)), null, 0.0))


def _correlation(one: Array, other: Array) -> float:
    """Pearson's; 0 where one of the two does not vary."""
    a, b = one - one.mean(), other - other.mean()
    size = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / size if size > 0 else 0.0


def _shares(members: Array, non_members: Array) -> tuple[Array, Array, Array]:
    """Of each member the share of non-members above it, of each non-member that of members below; and all ranks."""
    from scipy.stats import rankdata

    values = np.concatenate([members, non_members])
    if np.isnan(values).any():
        raise ValueError("the statistic holds NaN: the model's outputs are broken")
    among_all = rankdata(values)
    first, second = among_all[: len(members)], among_all[len(members) :]
    above = 1 - (first - rankdata(members)) / len(non_members)
    below = (second - rankdata(non_members)) / len(members)
    return above, below, among_all


def mean_difference_interval(
    one: Array, other: Array, *, seed: int, draws: int = 1000, level: float = 0.95
) -> Interval:
    """Bootstrap interval of mean(one) - mean(other) of two independent sets of rows, in their unit.

    Args:
        one: Shape (M,).
        other: Shape (N,).
        seed: Of the draws.
        draws: How many; >= 1.
        level: In (0, 1).

    Raises:
        ValueError: For an empty side, values that are not finite, or settings out of range.
    """
    for side in (one, other):
        _finite(side)

    def score(counts: list[Array]) -> Array:
        return counts[0] @ one / len(one) - counts[1] @ other / len(other)

    return _bootstrap([len(one), len(other)], score, seed=seed, draws=draws, level=level)


def paired_interval(differences: Array, *, seed: int, draws: int = 1000, level: float = 0.95) -> Interval:
    """Bootstrap interval of the mean of row-wise differences between two models, in their unit.

    Args:
        differences: One for each row, shape (N,).
        seed: Of the draws.
        draws: How many; >= 1.
        level: In (0, 1).

    Raises:
        ValueError: For no rows, values that are not finite, or settings out of range.
    """
    _finite(differences)
    return _bootstrap(
        [len(differences)],
        lambda counts: counts[0] @ differences / len(differences),
        seed=seed,
        draws=draws,
        level=level,
    )


def seed_interval(values: Sequence[float], *, level: float = 0.95) -> Interval:
    """Student's t interval of the mean over seeds: what further seeds would give, as far as these few can tell.

    Args:
        values: One for each seed; at least two.
        level: In (0, 1).

    Raises:
        ValueError: For fewer than two values, values that are not finite, or another level.
    """
    from scipy.special import stdtrit

    _level(level)
    each = np.asarray(values, dtype=np.float64)
    if len(each) < 2:
        raise ValueError(f"wanted values of at least two seeds, got {len(each)}: one seed has no spread")
    _finite(each)
    mean, error = float(each.mean()), float(each.std(ddof=1)) / math.sqrt(len(each))
    wide = float(stdtrit(len(each) - 1, (1 + level) / 2)) * error
    return Interval(value=mean, low=mean - wide, high=mean + wide, level=level)


def gap_to(value: float, references: Sequence[float], rows_error: float) -> tuple[float, float]:
    """A model's figure less the mean of the retrained models', and the gap's standard error.

    With several retrained models, what they differ by from seed to seed, s, adds to the error: the model in question is
    one more draw, held against a mean of K, so its own part is s squared times (1 + 1 / K). With one, only the rows'
    part is known.

    Args:
        value: Of the model in question.
        references: Of the retrained models, at least one; the rows' error belongs to the first.
        rows_error: Standard error of the gap over rows.

    Raises:
        ValueError: Without a retrained model, or for NaN.
    """
    each = np.asarray(references, dtype=np.float64)
    if not len(each) or np.isnan(each).any() or math.isnan(value):
        raise ValueError(f"wanted the figures of at least one retrained model, none of them NaN, got {each.tolist()}")
    seeds = float(each.var(ddof=1)) * (1 + 1 / len(each)) if len(each) > 1 else 0.0
    return value - float(each.mean()), math.hypot(rows_error, math.sqrt(seeds))


def _bootstrap(
    rows: list[int], score: Callable[[list[Array]], Array], *, seed: int, draws: int, level: float
) -> Interval:
    """Quantiles of `score` over draws; it takes how often each row was drawn, one (B, rows) array for each set."""
    _level(level)
    if min(rows) == 0:
        raise ValueError(f"wanted rows on every side, got {' and '.join(map(str, rows))}")
    if draws < 1:
        raise ValueError(f"wanted at least one draw, got {draws}")
    value = float(score([np.ones((1, count)) for count in rows])[0])
    drawn = np.concatenate([score(counts) for counts in _draws(rows, seed, draws)])
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value=value, low=float(low), high=float(high), level=level)


def _draws(rows: list[int], seed: int, draws: int) -> Iterator[list[Array]]:
    """How often each row was drawn, some draws at a time; the same for any `CELLS`."""
    chunk = max(1, CELLS // sum(rows))
    sources = [np.random.default_rng([seed, side]) for side in range(len(rows))]
    for start in range(0, draws, chunk):
        some = min(chunk, draws - start)
        counts = []
        for count, source in zip(rows, sources, strict=True):
            picked = source.integers(0, count, (some, count)) + np.arange(some)[:, None] * count
            counts.append(np.bincount(picked.ravel(), minlength=some * count).reshape(some, count).astype(np.float64))
        yield counts


def _sorted(members: Array, non_members: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The order of all values, and where in it each group of equal values begins."""
    values = np.concatenate([members, non_members])
    if np.isnan(values).any():
        raise ValueError("the statistic holds NaN: the model's outputs are broken")
    order = np.argsort(values, kind="stable")
    ranked = values[order]
    starts = np.flatnonzero(np.concatenate([[True], ranked[1:] > ranked[:-1]])[: len(ranked)])
    return order, starts


def _weighted_auc(weights: Array, members: int, order: NDArray[np.int64], starts: NDArray[np.int64]) -> Array:
    """The AUC of rows that count `weights` (B, M + N) times each, shape (B,)."""
    ours, theirs = weights.copy(), weights.copy()
    ours[:, members:] = 0
    theirs[:, :members] = 0
    mine, other = (np.add.reduceat(side[:, order], starts, axis=1) for side in (ours, theirs))  # (B, distinct)
    total = other.sum(1, keepdims=True)
    above = total - np.cumsum(other, axis=1)  # non-members with a higher value
    return ((mine * (above + 0.5 * other)).sum(1) / (members * total[:, 0])).astype(np.float64)  # type: ignore[no-any-return]


def _finite(values: Array) -> None:
    if not np.isfinite(values).all():
        raise ValueError("the values hold NaN or infinity: a model's outputs are broken")


def _level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"wanted a level between 0 and 1, got {level}")
