import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unlearning.metrics.accuracy import accuracy, confusion, per_class_accuracy, prediction_distribution

C = 3
# Five samples of three classes; predicted 0, 1, 1, 2, 0.
LOGITS = torch.tensor([[3.0, 1, 2], [0, 2, 1], [-3, -1, -2], [0.1, 0.2, 0.3], [9, 8, 7]])
TARGETS = torch.tensor([0, 1, 0, 1, 0])

predictions = st.lists(st.tuples(st.integers(0, C - 1), st.integers(0, C - 1)), min_size=1, max_size=40)


def outputs(pairs: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Logits whose largest is the first of each pair, and the second of each as target."""
    predicted, targets = (torch.tensor(column) for column in zip(*pairs, strict=True))
    return torch.nn.functional.one_hot(predicted, C).float(), targets


def test_by_hand() -> None:
    assert accuracy(LOGITS, TARGETS) == 3 / 5
    counts = confusion(LOGITS, TARGETS, classes=C)
    assert counts.tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 0]]
    assert counts.dtype == torch.int64
    assert per_class_accuracy(counts) == [2 / 3, 1 / 2, None]  # no sample of class 2
    shares = prediction_distribution(LOGITS, classes=4)
    assert shares.tolist() == [0.4, 0.4, 0.2, 0.0]
    assert shares.dtype == torch.float64


@given(predictions)
def test_equal_the_slow_loops(pairs: list[tuple[int, int]]) -> None:
    logits, targets = outputs(pairs)
    counts = [[0] * C for _ in range(C)]
    for predicted, target in pairs:
        counts[target][predicted] += 1
    assert confusion(logits, targets, classes=C).tolist() == counts
    assert accuracy(logits, targets) == pytest.approx(sum(counts[c][c] for c in range(C)) / len(pairs))
    for c, found in enumerate(per_class_accuracy(torch.tensor(counts))):
        assert found == (counts[c][c] / sum(counts[c]) if sum(counts[c]) else None)
    wanted = [sum(predicted == c for predicted, _ in pairs) / len(pairs) for c in range(C)]
    assert prediction_distribution(logits, classes=C).tolist() == pytest.approx(wanted)


@given(predictions, st.randoms(use_true_random=False))
def test_the_order_of_samples_does_not_matter(pairs: list[tuple[int, int]], random: object) -> None:
    shuffled = sorted(pairs)
    random.shuffle(shuffled)
    (logits, targets), (others, their_targets) = outputs(pairs), outputs(shuffled)
    assert accuracy(logits, targets) == accuracy(others, their_targets)
    assert torch.equal(confusion(logits, targets, classes=C), confusion(others, their_targets, classes=C))
    assert torch.equal(prediction_distribution(logits, classes=C), prediction_distribution(others, classes=C))


@given(predictions)
def test_shares_stay_in_their_bounds_and_sum_to_one(pairs: list[tuple[int, int]]) -> None:
    logits, targets = outputs(pairs)
    assert 0 <= accuracy(logits, targets) <= 1
    assert accuracy(logits, logits.argmax(1)) == 1
    assert accuracy(logits, (logits.argmax(1) + 1) % C) == 0
    shares = prediction_distribution(logits, classes=C)
    assert shares.min() >= 0
    assert shares.sum().item() == pytest.approx(1)


def test_no_samples_have_no_accuracy() -> None:
    empty, none = torch.empty(0, C), torch.empty(0, dtype=torch.int64)
    for refused in (
        lambda: accuracy(empty, none),
        lambda: confusion(empty, none, classes=C),
        lambda: prediction_distribution(empty, classes=C),
    ):
        with pytest.raises(ValueError, match="wanted outputs for at least one sample, got none"):
            refused()


def test_every_sample_needs_a_target() -> None:
    with pytest.raises(ValueError, match="wanted one target for each sample, got 5 outputs and 4 targets"):
        accuracy(LOGITS, TARGETS[:4])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_output_that_is_not_finite_refuses_them_all(value: float) -> None:
    broken = LOGITS.clone()
    broken[4, 2] = value
    for refused in (
        lambda: accuracy(broken, TARGETS),
        lambda: confusion(broken, TARGETS, classes=C),
        lambda: prediction_distribution(broken, classes=C),
    ):
        with pytest.raises(ValueError, match="outputs hold NaN or infinity: the model is broken"):
            refused()
