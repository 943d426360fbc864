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
    auc_interval,
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
