import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from unlearning.attacks.membership import population_attack
from unlearning.metrics import intervals
from unlearning.metrics.intervals import (
    auc_difference_interval,
    auc_gap_error,
    auc_interval,
    gap_to,
    mean_difference_interval,
    paired_interval,
    seed_interval,
)

Array = NDArray[np.float64]
few = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=30).map(np.array)


def normal(seed: int, count: int, mean: float = 0.0) -> Array:
    return np.random.default_rng(seed).normal(mean, size=count)


@settings(max_examples=60, deadline=None)
@given(few, few)
def test_the_value_is_the_population_attacks_and_the_interval_holds_it_within_bounds(one: Array, other: Array) -> None:
    found = auc_interval(one, other, seed=0, draws=50)
    assert found.value == pytest.approx(population_attack(one, other).auc)
    assert 0 <= found.low <= found.high <= 1
    turned = auc_interval(-one, -other, seed=0, draws=50)
    assert (turned.low, turned.high) == pytest.approx((1 - found.high, 1 - found.low))


def test_the_auc_interval_is_that_of_a_slow_bootstrap() -> None:
    one, other = normal(0, 60).round(1), normal(1, 80, 0.5).round(1)
    source = np.random.default_rng(5)
    slow = [population_attack(source.choice(one, len(one)), source.choice(other, len(other))).auc for _ in range(3000)]
    found = auc_interval(one, other, seed=0, draws=3000)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])), abs=0.01)


def test_mean_differences_are_scipys_percentile_bootstrap() -> None:
    one, other = normal(0, 70, 1.0), normal(1, 50)
    theirs = stats.bootstrap(
        (one, other),
        lambda a, b, axis: a.mean(axis) - b.mean(axis),
        vectorized=True,
        n_resamples=5000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    found = mean_difference_interval(one, other, seed=0, draws=5000)
    assert found.value == pytest.approx(one.mean() - other.mean())
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.03)
    paired = paired_interval(one, seed=0, draws=5000)
    theirs = stats.bootstrap(
        (one,), np.mean, n_resamples=5000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert (paired.low, paired.high) == pytest.approx((theirs.low, theirs.high), abs=0.03)


def test_the_auc_interval_holds_the_true_auc_about_as_often_as_it_says() -> None:
    truth = float(stats.norm.cdf(0.5 / np.sqrt(2)))
    held = [
        auc_interval(normal(seed, 80), normal(seed + 1000, 80, 0.5), seed=seed, draws=300, level=0.9).holds(truth)
        for seed in range(200)
    ]
    assert 0.84 <= np.mean(held) <= 0.96  # three standard errors about 0.9


def test_two_models_that_agree_differ_by_nothing_and_shared_rows_narrow_the_interval() -> None:
    one, other = normal(0, 100), normal(1, 100, 0.7)
    same = auc_difference_interval((one, other), (one, other), seed=0, draws=200)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    noisy = one + 0.1 * normal(2, 100), other + 0.1 * normal(3, 100)
    paired = auc_difference_interval((one, other), noisy, seed=0, draws=500)
    alone = auc_interval(one, other, seed=0, draws=500)
    assert paired.high - paired.low < (alone.high - alone.low) / 2


def test_the_size_of_a_chunk_changes_nothing_and_a_seed_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = normal(0, 30), normal(1, 20)
    whole = auc_interval(one, other, seed=3, draws=40)
    monkeypatch.setattr(intervals, "CELLS", 120)
    assert auc_interval(one, other, seed=3, draws=40) == whole
    assert auc_interval(one, other, seed=4, draws=40) != whole


@settings(deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=10), st.sampled_from([0.5, 0.9, 0.99]))
def test_the_seed_interval_is_scipys_t_interval(values: list[float], level: float) -> None:
    found = seed_interval(values, level=level)
    error = stats.sem(values)
    if error > 1e-9:
        wanted = stats.t.interval(level, len(values) - 1, loc=np.mean(values), scale=error)
        assert (found.low, found.high) == pytest.approx(wanted)
    assert found.value == pytest.approx(np.mean(values))
    assert found.holds(found.value)


def test_the_seed_interval_by_hand() -> None:
    # 1, 2, 3: mean 2, standard error 1 / sqrt 3, t of 2 degrees at 95%: 4.3027
    found = seed_interval([1, 2, 3])
    assert (found.low, found.high) == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)


def test_what_gives_no_interval_is_refused() -> None:
    ok, none, broken = np.zeros(3), np.empty(0), np.array([0.0, np.nan])
    for call, words in (
        (lambda: auc_interval(ok, none, seed=0), "rows on every side, got 3 and 0"),
        (lambda: mean_difference_interval(none, ok, seed=0), "rows on every side"),
        (lambda: paired_interval(none, seed=0), "rows on every side"),
        (lambda: auc_interval(ok, broken, seed=0), "NaN"),
        (lambda: mean_difference_interval(ok, broken, seed=0), "NaN"),
        (lambda: paired_interval(np.array([np.inf]), seed=0), "infinity"),
        (lambda: auc_interval(ok, ok, seed=0, level=1.0), "level between 0 and 1"),
        (lambda: auc_interval(ok, ok, seed=0, draws=0), "at least one draw"),
        (lambda: auc_difference_interval((ok, ok), (ok, ok[:2]), seed=0), "same rows of both models"),
        (lambda: seed_interval([1.0]), "at least two seeds"),
        (lambda: seed_interval([1.0, float("nan")]), "NaN"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_the_error_of_a_gap_is_that_of_the_bootstrap() -> None:
    ease = normal(0, 200), normal(1, 300)  # what makes a row easy for both models
    one = tuple(side + normal(2 + at, len(side)) - at for at, side in enumerate(ease))
    other = tuple(side + normal(4 + at, len(side)) for at, side in enumerate(ease))
    found = auc_gap_error((one[0], one[1]), (other[0], other[1]))
    interval = auc_difference_interval((one[0], one[1]), (other[0], other[1]), seed=0, draws=2000)
    assert found == pytest.approx((interval.high - interval.low) / 2 / 1.96, rel=0.1)


def test_the_error_of_a_gap_is_never_below_what_chance_gives_when_no_row_was_seen() -> None:
    one, other = (normal(6, 8), normal(7, 12)), (normal(8, 8), normal(9, 12))
    both = [np.concatenate(pair) for pair in (one, other)]
    source = np.random.default_rng(0)
    drawn = []
    for _ in range(4000):  # any 8 of the 20 rows might have been called members
        picked = source.permutation(20)
        aucs = [population_attack(values[picked[:8]], values[picked[8:]]).auc for values in both]
        drawn.append(aucs[0] - aucs[1])
    assert auc_gap_error(one, other) >= 0.97 * float(np.std(drawn))


def test_the_error_of_a_gap_of_a_model_to_itself_is_nothing_and_of_single_rows_is_large() -> None:
    side = normal(0, 9), normal(1, 9)
    assert auc_gap_error(side, side) == pytest.approx(0, abs=1e-7)
    assert auc_gap_error((normal(0, 1), normal(1, 50)), (normal(2, 1), normal(3, 50))) > 0.2
    with pytest.raises(ValueError, match="the same rows of both models"):
        auc_gap_error(side, (side[0], side[1][:3]))
    with pytest.raises(ValueError, match="NaN"):
        auc_gap_error(side, (side[0], np.full(9, np.nan)))


@settings(deadline=None)
@given(few, few, st.integers(0, 99))
def test_the_error_of_a_gap_is_alike_both_ways_and_for_any_order_of_the_rows(one: Array, two: Array, seed: int) -> None:
    other = normal(seed, len(one)), normal(seed + 1, len(two))
    found = auc_gap_error((one, two), other)
    assert found >= 0
    assert auc_gap_error(other, (one, two)) == pytest.approx(found, abs=1e-12)
    order = np.random.default_rng(seed).permutation(len(one))
    assert auc_gap_error((one[order], two), (other[0][order], other[1])) == pytest.approx(found, abs=1e-12)
    assert auc_gap_error((two, one), other[::-1]) == pytest.approx(found, abs=1e-12)


def test_a_gap_to_several_references_counts_what_they_differ_by() -> None:
    assert gap_to(0.6, [0.5], 0.03) == (pytest.approx(0.1), pytest.approx(0.03))
    gap, error = gap_to(0.6, [0.4, 0.5, 0.6], 0.03)  # variance 0.01 over seeds
    assert gap == pytest.approx(0.1)
    assert error == pytest.approx(np.sqrt(0.03**2 + 0.01 * 4 / 3))
