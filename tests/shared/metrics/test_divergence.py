import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import jensenshannon

from unlearning.metrics.divergence import (
    activation_distance,
    jensen_shannon,
    legacy_zrf,
    zero_retrain_forgetting,
)

LOW = -1e4  # a probability of exactly 0

logits = arrays(np.float64, (5, 4), elements=st.floats(-60, 60))


def of(*rows: list[float]) -> torch.Tensor:
    """Logits of these probabilities."""
    return torch.tensor(rows, dtype=torch.float64).log().clamp_min(LOW)


def test_equal_outputs_have_no_divergence_and_disjoint_ones_a_bit() -> None:
    p = of([1.0, 0.0], [0.5, 0.5])
    assert jensen_shannon(p, p).tolist() == [0.0, 0.0]
    assert jensen_shannon(of([1.0, 0.0]), of([0.0, 1.0])).tolist() == [1.0]


def test_the_divergence_by_hand() -> None:
    # p = (1, 0), q = (1/2, 1/2), m = (3/4, 1/4): (log2(4/3) + (log2(2/3) + log2(2)) / 2) / 2
    by_hand = (math.log2(4 / 3) + 0.5 * math.log2(2 / 3) + 0.5) / 2
    assert jensen_shannon(of([1.0, 0.0]), of([0.5, 0.5])).item() == pytest.approx(by_hand, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(logits, logits)
def test_the_divergence_is_scipys_bounded_symmetric_and_blind_to_the_order_of_classes(
    a: np.ndarray, b: np.ndarray
) -> None:
    p, q = torch.from_numpy(a), torch.from_numpy(b)
    js = jensen_shannon(p, q)
    with np.errstate(all="ignore"):
        theirs = jensenshannon(p.softmax(1).numpy(), q.softmax(1).numpy(), base=2, axis=1) ** 2
    assert np.allclose(js.numpy(), np.nan_to_num(theirs), atol=1e-7)
    assert bool(((js >= 0) & (js <= 1)).all())
    assert torch.allclose(js, jensen_shannon(q, p), atol=1e-12)
    assert torch.allclose(js, jensen_shannon(p.flip(1), q.flip(1)), atol=1e-12)


def test_extreme_logits_give_finite_values() -> None:
    p, q = torch.tensor([[1e4, -1e4, 0.0]]), torch.tensor([[-1e4, 1e4, 0.0]])
    assert jensen_shannon(p, q).item() == 1
    assert math.isfinite(legacy_zrf(p, q))
    assert activation_distance(p, q) == pytest.approx(math.sqrt(2))


def test_zrf_is_one_minus_the_mean_divergence_over_rows_and_networks() -> None:
    model = of([1.0, 0.0], [0.5, 0.5])
    same, other = of([1.0, 0.0], [0.5, 0.5]), of([0.0, 1.0], [0.5, 0.5])
    found = zero_retrain_forgetting(model, [same, other])
    assert found.each == pytest.approx((1.0, 0.5))
    assert found.mean == pytest.approx(0.75)
    assert found.spread == pytest.approx(np.std([1.0, 0.5], ddof=1))
    single = zero_retrain_forgetting(model, [other])
    assert (single.mean, single.spread) == (pytest.approx(0.5), 0.0)


def test_the_legacy_value_by_hand_and_out_of_the_range_of_the_exact_one() -> None:
    # p = (3/4, 1/4), q = (1/4, 3/4), m = (1/2, 1/2): each side (ln(2/3) + ln 2) / 2 nats, over two classes
    by_hand = 1 - 0.5 * (math.log(2 / 3) + math.log(2)) / 2
    assert legacy_zrf(of([0.75, 0.25]), of([0.25, 0.75])) == pytest.approx(by_hand, abs=1e-12)
    far = legacy_zrf(torch.tensor([[100.0, 0.0]]), torch.tensor([[0.0, 100.0]]))
    assert far < 0


def test_the_activation_distance_by_hand() -> None:
    p, q = of([1.0, 0.0], [0.5, 0.5]), of([0.0, 1.0], [0.5, 0.5])
    assert activation_distance(p, q) == pytest.approx(math.sqrt(2) / 2)
    assert activation_distance(p, p) == 0


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4), "same rows and classes"),
        (torch.zeros(0, 3), torch.zeros(0, 3), "same rows and classes"),
        (torch.zeros(3), torch.zeros(3), "same rows and classes"),
        (torch.full((1, 2), math.nan), torch.zeros(1, 2), "NaN"),
    ],
)
def test_what_cannot_be_compared_is_refused(a: torch.Tensor, b: torch.Tensor, words: str) -> None:
    for metric in (jensen_shannon, legacy_zrf, activation_distance):
        with pytest.raises(ValueError, match=words):
            metric(a, b)  # type: ignore[operator]
    with pytest.raises(ValueError, match=words):
        zero_retrain_forgetting(a, [b])


def test_zrf_needs_a_network() -> None:
    with pytest.raises(ValueError, match="at least one untrained network"):
        zero_retrain_forgetting(torch.zeros(1, 2), [])
