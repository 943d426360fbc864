import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unlearning.data.samples import Joined, Rows, TensorSamples, TokenSamples, WindowSamples


def numbered(count: int, first: int = 0) -> TensorSamples:
    """Features that say which row they are."""
    rows = torch.arange(first, first + count)
    return TensorSamples(rows[:, None].float(), rows % 3, mean=[0.0], std=[1.0])


def numbers(inputs: Tensor) -> list[int]:
    return inputs[:, 0].int().tolist()


def test_pixels_are_scaled_to_one_then_normalised_by_channel() -> None:
    pixels = torch.tensor([[[[0, 255]], [[51, 102]]]], dtype=torch.uint8)  # one image, two channels of 1 x 2
    inputs, targets = TensorSamples(pixels, torch.tensor([4]), mean=[0.5, 0.2], std=[0.25, 0.1]).batch(
        torch.tensor([0])
    )
    # (0 - 0.5) / 0.25, (1 - 0.5) / 0.25; (0.2 - 0.2) / 0.1, (0.4 - 0.2) / 0.1
    assert inputs.flatten().tolist() == pytest.approx([-2.0, 2.0, 0.0, 2.0], abs=1e-5)
    assert inputs.shape == (1, 2, 1, 2)
    assert inputs.dtype == torch.float32
    assert targets.tolist() == [4]


def test_float_features_are_normalised_by_feature_and_not_scaled() -> None:
    features = torch.tensor([[1.0, 100.0], [3.0, 50.0]], dtype=torch.float64)
    inputs, _ = TensorSamples(features, torch.tensor([0, 1]), mean=[1.0, 50.0], std=[2.0, 25.0]).batch(torch.arange(2))
    assert inputs.tolist() == [[0.0, 2.0], [1.0, 0.0]]
    assert inputs.dtype == torch.float32


def test_batches_follow_the_order_asked_for_and_leave_what_is_held() -> None:
    samples = numbered(6)
    held = samples.inputs.clone()
    inputs, targets = samples.batch(torch.tensor([4, 0, 4]))
    assert (numbers(inputs), targets.tolist()) == ([4, 0, 4], [1, 0, 1])
    inputs.zero_()
    assert torch.equal(samples.inputs, held)
    assert len(samples) == 6
    assert samples.targets.tolist() == [0, 1, 2, 0, 1, 2]


def test_normalising_a_batch_leaves_float_inputs_as_they_were() -> None:
    features = torch.ones(3, 2)
    TensorSamples(features, torch.zeros(3).long(), mean=[5.0, 5.0], std=[2.0, 2.0]).batch(torch.arange(3))
    assert torch.equal(features, torch.ones(3, 2))


def test_inputs_and_targets_must_have_one_length() -> None:
    with pytest.raises(ValueError, match="inputs and targets must have one length, got 3 and 2"):
        TensorSamples(torch.zeros(3, 1), torch.zeros(2).long(), mean=[0.0], std=[1.0])


def test_rows_count_within_themselves_and_may_be_taken_of_rows() -> None:
    outer = Rows(numbered(10), torch.tensor([9, 7, 5, 3]))
    assert len(outer) == 4
    assert outer.targets.tolist() == [0, 1, 2, 0]
    inputs, targets = outer.batch(torch.tensor([3, 0]))
    assert (numbers(inputs), targets.tolist()) == ([3, 9], [0, 0])
    inner = Rows(outer, torch.tensor([2, 1]))
    assert numbers(inner.batch(torch.arange(2))[0]) == [5, 7]
    assert inner.targets.tolist() == [2, 1]


def test_a_mixed_batch_keeps_the_order_asked_for() -> None:
    joined = Joined(numbered(3), numbered(4, first=100))
    assert len(joined) == 7
    assert joined.targets.tolist() == [0, 1, 2, 1, 2, 0, 1]
    inputs, targets = joined.batch(torch.tensor([6, 0, 3, 2, 3]))
    assert numbers(inputs) == [103, 0, 100, 2, 100]
    assert targets.tolist() == [1, 0, 1, 2, 1]


@given(st.lists(st.integers(0, 6), max_size=12))
def test_any_batch_of_joined_samples_is_that_of_their_concatenation(rows: list[int]) -> None:
    first, second = numbered(3), numbered(4, first=100)
    whole = TensorSamples(
        torch.cat([first.inputs, second.inputs]), torch.cat([first.targets, second.targets]), mean=[0.0], std=[1.0]
    )
    picked = torch.tensor(rows, dtype=torch.int64)
    for found, wanted in zip(Joined(first, second).batch(picked), whole.batch(picked), strict=True):
        assert torch.equal(found, wanted)
        assert found.dtype == wanted.dtype


def test_tokens_are_int64_in_a_batch_and_keep_their_targets() -> None:
    ids = torch.tensor([[[0, 2], [3, 1]], [[4, 4], [0, 0]]], dtype=torch.int32)
    samples = TokenSamples(ids, torch.tensor([0.5, 1.5]))
    inputs, targets = samples.batch(torch.tensor([1]))
    assert (inputs.dtype, inputs.tolist(), targets.tolist()) == (torch.int64, [[[4, 4], [0, 0]]], [1.5])
    with pytest.raises(ValueError, match="one length"):
        TokenSamples(ids, torch.zeros(3))


def test_sequences_are_scaled_per_value_and_gaps_filled_before() -> None:
    inputs = torch.tensor([[[1.0, 10.0], [3.0, 30.0], [5.0, 20.0]]])
    scaled, _ = TensorSamples(inputs, torch.zeros(1), mean=(3.0, 20.0), std=(2.0, 10.0)).batch(torch.tensor([0]))
    assert scaled.tolist() == [[[-1, -1], [0, 1], [1, 0]]]
    table = torch.tensor([[float("nan"), 2.0]])
    filled, _ = TensorSamples(table, torch.zeros(1), mean=(1.0, 0.0), std=(2.0, 1.0), fill=(5.0, 9.0)).batch(
        torch.tensor([0])
    )
    assert filled.tolist() == [[2, 2]]


def test_windows_that_leave_their_series_are_refused() -> None:
    values, known = torch.zeros(10, 1), torch.zeros(10, 1)
    for first in (2, 9):
        with pytest.raises(ValueError, match="leave the 10 steps"):
            WindowSamples(values, known, torch.tensor([first]), torch.tensor([0]), encoder=3, horizon=2, alone=False)


def test_forecasts_of_two_sets_mix_in_one_batch() -> None:
    values = torch.arange(20.0)[:, None]
    firsts = torch.arange(4, 16)
    windows = WindowSamples(
        values, torch.zeros(20, 2), firsts, torch.zeros(12, dtype=torch.int64), encoder=4, horizon=2, alone=False
    )
    joined = Joined(Rows(windows, torch.tensor([0, 1])), Rows(windows, torch.tensor([7])))
    inputs, targets = joined.batch(torch.tensor([2, 0]))
    assert inputs[:, :4, 0].tolist() == [[7, 8, 9, 10], [0, 1, 2, 3]]
    assert targets.tolist() == [[11, 12], [4, 5]]
    assert joined.targets.tolist() == [[4, 5], [5, 6], [11, 12]]
