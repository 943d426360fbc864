import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp, wasserstein_distance
from sklearn.metrics import mean_absolute_error, mean_pinball_loss, mean_squared_error

from unlearning.metrics.regression import (
    coverage,
    crossing_share,
    error_by_bin,
    ks_residuals,
    mae,
    mse,
    pinball,
    relative_difference,
    rmse,
    skill,
    wasserstein,
)

numbers = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40)


def random(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=shape)


def test_errors_are_means_over_values_not_over_batches() -> None:
    predictions, targets = random(11), random(11, seed=1)
    assert mae(predictions, targets) == pytest.approx(mean_absolute_error(targets, predictions))
    assert mse(predictions, targets) == pytest.approx(mean_squared_error(targets, predictions))
    assert rmse(predictions, targets) == pytest.approx(math.sqrt(mean_squared_error(targets, predictions)))
    forecasts, truth = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, 4.0]])
    assert mae(forecasts, truth) == 5 / 4
    assert mse(forecasts, truth) == 13 / 4


@settings(deadline=None)
@given(numbers, numbers)
def test_the_distance_of_two_samples_is_scipys_for_any_sizes(first: list[float], second: list[float]) -> None:
    expected = wasserstein_distance(first, second)
    assert wasserstein(first, second) == pytest.approx(expected, rel=1e-9, abs=1e-6)
    assert wasserstein(first, second) == pytest.approx(wasserstein(second, first), abs=1e-9)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)), min_size=1, max_size=40))
def test_the_fast_path_for_equal_sizes_is_scipys_distance(pairs: list[tuple[float, float]]) -> None:
    first, second = zip(*pairs, strict=True)
    assert wasserstein(first, second) == pytest.approx(wasserstein_distance(first, second), rel=1e-9, abs=1e-9)


def test_a_sample_moved_by_a_constant_is_that_far_away_and_order_does_not_matter() -> None:
    values = torch.randn(30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert wasserstein(values, values.flip(0) + 2.5) == pytest.approx(2.5)
    assert wasserstein(values, values.flip(0)) == 0.0


def test_residuals_are_compared_by_kolmogorov_and_smirnov() -> None:
    first, second = random(50), random(40, seed=1) + 1
    expected = ks_2samp(first, second)
    found = ks_residuals(torch.from_numpy(first), second)
    assert (found.statistic, found.p) == (pytest.approx(expected.statistic), pytest.approx(expected.pvalue))
    assert found.p < 0.01
    assert ks_residuals(first, first).p == 1.0


def test_the_error_of_each_bin_of_targets_by_hand() -> None:
    bins = error_by_bin([0.0, 1.0, 2.0, 4.0, 9.0], [1.0, 0.0, 5.0, 3.0, 0.0], [0.0, 2.0, 3.0, 4.0])
    assert [(one.low, one.high, one.count) for one in bins] == [(0.0, 2.0, 2), (2.0, 3.0, 1), (3.0, 4.0, 1)]
    assert [one.mae for one in bins] == [1.0, 3.0, 1.0]  # the upper edge belongs to the last bin, 9 to none
    assert [one.bias for one in bins] == [0.0, 3.0, -1.0]
    empty = error_by_bin([0.5], [0.5], [0.0, 1.0, 2.0])[1]
    assert (empty.count, empty.mae, empty.bias) == (0, None, None)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 10), st.floats(-10, 20)), min_size=1, max_size=40))
def test_the_bins_together_hold_the_whole_error(pairs: list[tuple[float, float]]) -> None:
    targets, predictions = zip(*pairs, strict=True)
    bins = error_by_bin(targets, predictions, [0, 1, 5, 10])
    assert sum(one.count for one in bins) == len(pairs)
    total = sum(one.count * one.mae for one in bins if one.mae is not None)
    assert total / len(pairs) == pytest.approx(mae(predictions, targets))


@pytest.mark.parametrize("edges", [[1.0], [1.0, 1.0], [2.0, 1.0]])
def test_edges_that_are_no_bins_are_refused(edges: list[float]) -> None:
    with pytest.raises(ValueError, match="two or more rising edges"):
        error_by_bin([1.0], [1.0], edges)


def test_the_pinball_loss_of_each_quantile_is_sklearns() -> None:
    levels = (0.1, 0.5, 0.9)
    predictions, targets = random(20, 3), random(20, seed=1)
    found = pinball(predictions, targets, levels)
    for place, level in enumerate(levels):
        assert found[level] == pytest.approx(mean_pinball_loss(targets, predictions[:, place], alpha=level))
    assert found[0.5] == pytest.approx(mae(predictions[:, 1], targets) / 2)
    forecasts = pinball(random(4, 5, 3), random(4, 5, seed=1), levels)
    assert set(forecasts) == set(levels)


def test_coverage_counts_targets_at_or_below_each_quantile() -> None:
    predictions = [[0.0, 2.0], [0.0, 2.0], [0.0, 2.0], [0.0, 2.0]]
    assert coverage(predictions, [-1.0, 0.0, 1.0, 3.0], (0.2, 0.8)) == {0.2: 0.5, 0.8: 0.75}


def test_true_quantiles_cover_what_they_promise() -> None:
    levels, values = (0.1, 0.5, 0.9), random(20_000)
    quantiles = np.broadcast_to(np.quantile(random(20_000, seed=1), levels), (20_000, 3))
    for level, share in coverage(quantiles, values, levels).items():
        assert share == pytest.approx(level, abs=0.02)


def test_quantiles_in_the_wrong_order_are_counted_once_for_each_value() -> None:
    assert crossing_share([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [1.0, 3.0, 2.0], [1.0, 1.0, 1.0]]) == 0.5
    assert crossing_share([[[1.0, 2.0], [2.0, 1.0]]]) == 0.5
    with pytest.raises(ValueError, match="quantiles on a last axis"):
        crossing_share([1.0, 2.0])


def test_the_relative_difference_leaves_targets_of_zero_out() -> None:
    assert relative_difference([1.0, 2.0, 3.0], [2.0, 2.0, 9.0], [2.0, 0.0, -3.0]).tolist() == [0.5, 2.0]
    with pytest.raises(ValueError, match="every target is 0"):
        relative_difference([1.0], [2.0], [0.0])
    with pytest.raises(ValueError, match="a target for each of 2 values, got 1"):
        relative_difference([1.0, 2.0], [2.0, 1.0], [1.0])


TWO: dict[str, Callable[[Any, Any], Any]] = {
    "mae": mae,
    "mse": mse,
    "rmse": rmse,
    "wasserstein": wasserstein,
    "ks_residuals": ks_residuals,
    "error_by_bin": lambda first, second: error_by_bin(first, second, [0.0, 1.0]),
    "relative_difference": lambda first, second: relative_difference(first, second, [1.0]),
    "pinball": lambda first, second: pinball(np.asarray(first)[:, None], second, (0.5,)),
    "coverage": lambda first, second: coverage(np.asarray(first)[:, None], second, (0.5,)),
    "crossing_share": lambda first, second: crossing_share([first, second]),
}


@pytest.mark.parametrize("name", TWO)
@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_broken_values_are_refused_on_either_side(name: str, broken: float) -> None:
    for pair in (([broken], [1.0]), ([1.0], [broken])):
        with pytest.raises(ValueError, match="NaN or infinity"):
            TWO[name](*pair)


@pytest.mark.parametrize("name", TWO)
def test_no_values_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="at least one value"):
        TWO[name]([], [])


@pytest.mark.parametrize("metric", [mae, mse, rmse])
def test_values_are_never_broadcast(metric: Callable[[Any, Any], float]) -> None:
    with pytest.raises(ValueError, match="must have one shape"):
        metric(torch.zeros(3, 1), torch.zeros(3))
    with pytest.raises(ValueError, match="do not fit 2 quantiles"):
        pinball(random(3, 3), random(3), (0.1, 0.9))


def test_skill_is_the_share_of_the_spread_that_is_explained() -> None:
    assert skill([1.0, 2.0, 4.0], [1.0, 3.0, 5.0]) == pytest.approx(1 - (2 / 3) / (4 / 3))
    assert skill([3.0, 3.0, 3.0], [1.0, 3.0, 5.0]) == 0  # the median itself
    assert skill([9.0, 9.0], [1.0, 2.0]) == 0  # worse than it
    assert (skill([2.0, 2.0], [2.0, 2.0]), skill([2.0, 3.0], [2.0, 2.0])) == (1, 0)
    with pytest.raises(ValueError, match="at least one value"):
        skill([], [])
