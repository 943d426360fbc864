import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss
from torch import Tensor

from unlearning.metrics.calibration import (
    Bins,
    brier_score,
    confidence_histogram,
    expected_calibration_error,
    negative_log_likelihood,
)

METRICS: list[Callable[..., Any]] = [
    expected_calibration_error,
    brier_score,
    negative_log_likelihood,
    confidence_histogram,
]
cases = st.tuples(st.integers(0, 10_000), st.integers(1, 60), st.integers(2, 6), st.integers(1, 20))


def draw(seed: int, rows: int, classes: int) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    logits = (torch.randn((rows, classes), generator=source) * 3).round(decimals=1)
    return logits, torch.randint(classes, (rows,), generator=source)


def of(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def slow_error(logits: Tensor, targets: Tensor, bins: int, by: Bins) -> float:
    p = logits.double().softmax(1).numpy()
    sure, right = p.max(1), p.argmax(1) == targets.numpy()
    ranks = [sum(other < value for other in sure) for value in sure]
    total = 0.0
    for place in range(bins):
        rows = [
            row
            for row, value in enumerate(sure)
            if (
                ranks[row] * bins // len(sure) == place
                if by == "equal_mass"
                else place / bins < value <= (place + 1) / bins
            )
        ]
        if rows:
            total += len(rows) / len(sure) * abs(np.mean(right[rows]) - np.mean(sure[rows]))
    return float(total)


def test_the_scores_by_hand() -> None:
    logits, targets = of([0.75, 0.25], [0.4, 0.6]), torch.tensor([0, 0])
    assert brier_score(logits, targets) == pytest.approx((2 * 0.25**2 + 2 * 0.6**2) / 2)
    assert negative_log_likelihood(logits, targets) == pytest.approx(-(math.log(0.75) + math.log(0.4)) / 2)
    # Two bins: 0.6 (wrong) and 0.75 (right), each alone: (0.6 + 0.25) / 2; one bin: |1/2 - 0.675|.
    assert expected_calibration_error(logits, targets, bins=2) == pytest.approx(0.425)
    assert expected_calibration_error(logits, targets, bins=1) == pytest.approx(0.175)
    assert expected_calibration_error(logits, targets, bins=2, by="equal_width") == pytest.approx(0.175)


def test_sure_and_right_scores_zero_and_sure_and_wrong_the_worst() -> None:
    logits = torch.tensor([[1000.0, 0.0, 0.0]]).repeat(5, 1)
    right, wrong = torch.zeros(5, dtype=torch.int64), torch.ones(5, dtype=torch.int64)
    assert [m(logits, right) for m in METRICS[:3]] == [0.0, 0.0, 0.0]
    assert [m(logits, wrong) for m in METRICS[:3]] == [1.0, 2.0, 1000.0]


@settings(max_examples=60, deadline=None)
@given(cases, st.sampled_from(["equal_mass", "equal_width"]))
def test_the_calibration_error_equals_the_slow_loop_and_stays_in_bounds(
    case: tuple[int, int, int, int], by: Bins
) -> None:
    seed, rows, classes, bins = case
    logits, targets = draw(seed, rows, classes)
    found = expected_calibration_error(logits, targets, bins=bins, by=by)
    assert found == pytest.approx(slow_error(logits, targets, bins, by), abs=1e-9)
    assert 0 <= found <= 1
    shuffled = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    assert expected_calibration_error(logits[shuffled], targets[shuffled], bins=bins, by=by) == pytest.approx(found)


@settings(max_examples=40, deadline=None)
@given(cases)
def test_brier_and_log_loss_are_scikit_learns_and_blind_to_the_order_of_classes(
    case: tuple[int, int, int, int],
) -> None:
    seed, rows, classes, _ = case
    logits, targets = draw(seed, rows, classes)
    p = logits.double().softmax(1).numpy()
    labels = list(range(classes))
    assert negative_log_likelihood(logits, targets) == pytest.approx(log_loss(targets, p, labels=labels), abs=1e-6)
    assert brier_score(logits, targets) == pytest.approx(
        brier_score_loss(targets, p, labels=labels, scale_by_half=False), abs=1e-9
    )
    assert 0 <= brier_score(logits, targets) <= 2
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(seed))
    moved = torch.argsort(order)[targets]
    for metric in (brier_score, negative_log_likelihood):
        assert metric(logits[:, order], moved) == pytest.approx(metric(logits, targets))


def test_rows_of_equal_confidence_share_a_bin_of_equal_mass() -> None:
    # Six equally sure rows, half of them right: apart they would look badly calibrated, together they are perfect.
    logits = of([0.5, 0.5]).repeat(6, 1)
    targets = torch.tensor([0, 0, 0, 1, 1, 1])
    assert expected_calibration_error(logits, targets, bins=3) == pytest.approx(0)


def test_a_histogram_counts_every_row_once_with_the_edge_below() -> None:
    logits = of([0.5, 0.5], [0.75, 0.25], [0.1, 0.9])
    found = confidence_histogram(logits, torch.tensor([0, 1, 1]), bins=4)
    assert found.edges == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert found.rows == (0, 1, 1, 1)
    assert found.accuracy == (None, 1.0, 0.0, 1.0)
    assert found.confidence == (None, pytest.approx(0.5), pytest.approx(0.75), pytest.approx(0.9))


@settings(max_examples=30, deadline=None)
@given(cases)
def test_the_histograms_means_give_the_equal_width_error(case: tuple[int, int, int, int]) -> None:
    seed, rows, classes, bins = case
    logits, targets = draw(seed, rows, classes)
    found = confidence_histogram(logits, targets, bins=bins)
    assert sum(found.rows) == rows
    gaps = [
        n * abs(a - c)
        for n, a, c in zip(found.rows, found.accuracy, found.confidence, strict=True)
        if a is not None and c is not None
    ]
    whole = expected_calibration_error(logits, targets, bins=bins, by="equal_width")
    assert sum(gaps) / rows == pytest.approx(whole, abs=1e-9)


@pytest.mark.parametrize("metric", METRICS)
def test_no_rows_nan_and_other_counts_are_refused(metric: Callable[..., Any]) -> None:
    for logits, targets, words in (
        (torch.zeros((0, 2)), torch.zeros(0, dtype=torch.int64), "at least one sample"),
        (torch.tensor([[math.nan, 0.0]]), torch.zeros(1, dtype=torch.int64), "NaN"),
        (torch.zeros((2, 2)), torch.zeros(1, dtype=torch.int64), "one target for each"),
    ):
        with pytest.raises(ValueError, match=words):
            metric(logits, targets)


def test_no_bins_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one bin, got 0"):
        expected_calibration_error(torch.zeros((1, 2)), torch.zeros(1, dtype=torch.int64), bins=0)
