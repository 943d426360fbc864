import numpy as np
import pytest
import torch

from unlearning.data.overlap import overlap
from unlearning.data.samples import TensorSamples, TokenSamples
from unlearning.errors import DataError
from unlearning.policy.overlaps import warnings


def samples(inputs: torch.Tensor) -> TensorSamples:
    return TensorSamples(inputs, torch.zeros(len(inputs), dtype=torch.int64), mean=(0.0,) * inputs.shape[1], std=(1.0,))


def test_copies_and_twins_are_counted_by_where_they_are() -> None:
    inputs = torch.randn(60, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    inputs[20:23] = inputs[0:3]  # forget rows 0 to 2 are retained as well
    inputs[50] = inputs[3]  # forget row 3 is measured with
    inputs[51] = inputs[30]  # so is a retained one
    inputs[31] = inputs[4] + 0.01
    inputs[52] = inputs[5] + 0.01
    found = overlap(samples(inputs), np.arange(10), np.arange(10, 45), np.arange(45, 60))
    assert found == {
        "overlap.test_in_train.exact": 2,
        "overlap.forget_in_retain.exact": 3,
        "overlap.forget_in_retain.share": pytest.approx(0.3),
        "overlap.forget_in_test.exact": 1,
        "overlap.forget_in_retain.near": 1,
        "overlap.forget_in_test.near": 1,
        "overlap.looked.forget": 10,
        "overlap.looked.retain": 35,
        "overlap.looked.test": 15,
    }
    assert warnings(found) == (
        "2 held-out rows repeat a training row byte for byte: what is measured on unseen rows is flattered by that.",
        "3 rows to forget have an exact copy among the retained rows: what that teaches is not forgotten.",
        "1 row to forget has an exact copy among the held-out rows, which then are not unseen.",
        "1 row to forget has a near twin among the retained rows: what that teaches is not forgotten.",
        "1 row to forget has a near twin among the held-out rows, which then are not unseen.",
    )
    assert found == overlap(samples(inputs), np.arange(10), np.arange(10, 45), np.arange(45, 60))


def test_a_clean_data_set_needs_no_warning() -> None:
    inputs = torch.randn(60, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    found = overlap(samples(inputs), np.arange(10), np.arange(10, 45), np.arange(45, 60))
    assert sum(value for name, value in found.items() if "looked" not in name) == 0
    assert warnings(found) == warnings({}) == ()


def test_tokens_are_compared_whole() -> None:
    tokens = torch.tensor([[1, 2, 3], [4, 5, 6], [1, 2, 3], [7, 8, 9]], dtype=torch.int32)[:, None]
    found = overlap(TokenSamples(tokens, torch.zeros(4)), np.array([0]), np.array([1, 2]), np.array([3]))
    assert found["overlap.forget_in_retain.exact"] == 1
    assert not any(name.endswith(".near") for name in found)


def test_sets_that_share_a_row_are_refused() -> None:
    with pytest.raises(DataError, match="both forgotten and retained, or both trained on and held out"):
        overlap(samples(torch.randn(9, 1, 2, 2)), np.array([0]), np.array([0, 1]), np.array([2]))
