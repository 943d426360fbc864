import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlearning.data.duplicates import near_duplicates

RANDOM = np.random.default_rng(0)


def test_copies_and_noisy_copies_are_found_by_their_row_numbers() -> None:
    inputs = RANDOM.normal(size=(60, 30)).astype(np.float32)
    inputs[41] = inputs[3]
    inputs[55] = inputs[7] + 0.01
    found = near_duplicates(inputs, np.arange(20), np.arange(20, 60), limit=0.1, block=7)
    assert (found.exact, found.near) == (1, 1)
    (a, b, same), (c, d, close) = found.examples
    assert (a, b, same) == (3, 41, 0)
    assert (c, d) == (7, 55)
    assert 0 < close < 0.05


def test_the_distance_is_the_one_that_a_plain_loop_finds() -> None:
    inputs = RANDOM.normal(size=(9, 2, 3))
    rows_a, rows_b = np.arange(4), np.arange(4, 9)
    center = inputs[rows_a].mean(axis=0)
    expected = {}
    for a in rows_a.tolist():
        for b in rows_b.tolist():
            x, y = inputs[a] - center, inputs[b] - center
            expected[a, b] = np.sqrt(((x - y) ** 2).sum() / (((x**2).sum() + (y**2).sum()) / 2))
    found = near_duplicates(inputs, rows_a, rows_b, limit=5, block=2)
    assert found.near == 20
    assert {(a, b): distance for a, b, distance in found.examples} == pytest.approx(expected)


def test_tokens_count_the_places_that_differ() -> None:
    inputs = np.array([[[1, 2], [3, 4]], [[1, 2], [3, 5]], [[9, 8], [7, 6]], [[1, 2], [3, 4]]], dtype=np.int32)
    found = near_duplicates(inputs, np.array([0]), np.array([1, 2, 3]), limit=0.25)
    assert (found.exact, found.near, found.examples) == (1, 1, ((0, 3, 0.0), (0, 1, 0.25)))


def test_rows_may_come_from_a_function_and_none_have_no_twins() -> None:
    series = RANDOM.normal(size=50)
    series[30:40] = series[0:10]

    def window(rows: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        return series[rows[:, None] + np.arange(10)]

    found = near_duplicates(window, np.array([0]), np.arange(20, 40), limit=0.01)
    assert (found.exact, found.examples[0][:2]) == (1, (0, 30))
    assert near_duplicates(window, np.array([], dtype=np.int64), np.arange(3), limit=1).exact == 0
    assert near_duplicates(window, np.arange(3), np.array([], dtype=np.int64), limit=1).exact == 0


@given(st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_the_block_size_changes_nothing(block: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 3, (16, 1, 2, 2)).astype(np.uint8)
    rows_a, rows_b = np.arange(7), np.arange(7, 16)
    one, other = (near_duplicates(pixels, rows_a, rows_b, limit=0.7, block=size) for size in (block, 100))
    assert (one.exact, one.near) == (other.exact, other.near)


@pytest.mark.parametrize(("limit", "block"), [(0, 1), (float("nan"), 1), (0.1, 0)])
def test_limits_out_of_range_are_refused(limit: float, block: int) -> None:
    with pytest.raises(ValueError, match="limit must be above 0"):
        near_duplicates(np.zeros((2, 2)), np.arange(1), np.arange(1), limit=limit, block=block)
