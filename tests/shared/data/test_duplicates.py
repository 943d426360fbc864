import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlearning.data.duplicates import fingerprints, near_duplicates, near_twins

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
    one, other = (near_duplicates(pixels, rows_a, rows_b, limit=0.69314718, block=size) for size in (block, 100))
    assert (one.exact, one.near) == (other.exact, other.near)


@pytest.mark.parametrize(("limit", "block"), [(0, 1), (float("nan"), 1), (0.1, 0)])
def test_limits_out_of_range_are_refused(limit: float, block: int) -> None:
    with pytest.raises(ValueError, match="limit must be above 0"):
        near_duplicates(np.zeros((2, 2)), np.arange(1), np.arange(1), limit=limit, block=block)


def test_near_twins_are_those_that_the_full_comparison_finds() -> None:
    inputs = RANDOM.normal(size=(300, 3, 8, 8)).astype(np.float32)  # 192 values: thrown on 64 directions first
    inputs[200:210] = inputs[:10] + RANDOM.normal(scale=0.02, size=(10, 3, 8, 8)).astype(np.float32)
    inputs[210:215] = inputs[10:15]  # the same, byte for byte: no near twins
    inputs[220:230] = inputs[20:30] + RANDOM.normal(scale=0.2, size=(10, 3, 8, 8)).astype(np.float32)  # too far
    rows_a, rows_b = np.arange(100), np.arange(100, 300)
    found = near_twins(lambda rows: inputs[rows], rows_a, rows_b, limit=0.05, block=64)
    assert (found.rows, found.looked, found.among) == (10, 100, 200)
    slow = near_duplicates(inputs, rows_a, rows_b, limit=0.05)
    assert slow.near == 10
    assert near_twins(lambda rows: inputs[rows], rows_a, rows_b, limit=0.5).rows == 20


def test_near_twins_look_at_no_more_rows_than_they_may_and_say_how_many() -> None:
    inputs = np.repeat(RANDOM.normal(size=(50, 4)), 4, axis=0)  # four copies of each row
    found = near_twins(lambda rows: inputs[rows], np.arange(100), np.arange(100, 200), most_a=30, most_b=40)
    assert found.looked <= 25
    assert found.among <= 25
    assert found.rows == 0
    assert near_twins(lambda rows: inputs[rows], np.arange(0), np.arange(9)).rows == 0
    with pytest.raises(ValueError, match="must be above 0"):
        near_twins(lambda rows: inputs[rows], np.arange(1), np.arange(1), most_a=0)


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.sampled_from([0.0, 50.0]))
def test_near_twins_of_short_rows_are_those_of_a_slow_loop(seed: int, block: int, offset: float) -> None:
    draws = np.random.default_rng(seed)
    inputs = draws.normal(size=(40, 5)) + offset
    inputs[20:30] = inputs[:10] + draws.normal(scale=0.05, size=(10, 5))  # some of them within the limit
    inputs[30] = inputs[19]
    center = inputs[:20].mean(axis=0)
    twins = set()
    for a in range(20):
        for b in range(20, 40):
            x, y = inputs[a] - center, inputs[b] - center
            distance = np.sqrt(((x - y) ** 2).sum() / (((x**2).sum() + (y**2).sum()) / 2))
            if 0 < distance <= 0.05:
                twins.add(a)
    found = near_twins(lambda rows: inputs[rows], np.arange(20), np.arange(20, 40), block=block)
    assert (found.rows, found.looked, found.among) == (len(twins), 20, 20)
    single = inputs.astype(np.float32)
    assert abs(near_twins(lambda rows: single[rows], np.arange(20), np.arange(20, 40)).rows - len(twins)) <= 1


def test_of_too_many_close_pairs_the_nearest_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = RANDOM.normal(size=(60, 4))
    inputs[20:60] = inputs[np.arange(40) % 20] + RANDOM.normal(scale=np.repeat([1e-3, 1e-2], 20)[:, None], size=(40, 4))
    assert near_twins(lambda rows: inputs[rows], np.arange(20), np.arange(20, 60), block=7).rows == 20
    monkeypatch.setattr("unlearning.data.duplicates._MOST_PAIRS", 5)
    assert near_twins(lambda rows: inputs[rows], np.arange(20), np.arange(20, 60), block=7).rows == 5


def test_fingerprints_that_are_known_are_not_made_again() -> None:
    inputs = RANDOM.normal(size=(30, 4))
    inputs[25] = inputs[24]
    inputs[20] = inputs[3] + 1e-3
    rows_a, rows_b = np.arange(10), np.arange(10, 30)
    every = fingerprints(lambda rows: inputs[rows], np.arange(30))
    alone, given = (
        near_twins(lambda rows: inputs[rows], rows_a, rows_b, prints=prints)
        for prints in (None, (every[rows_a], every[rows_b]))
    )
    assert alone == given
    assert (given.rows, given.looked, given.among) == (1, 10, 19)


@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize(("size", "kind"), [(1, np.uint8), (5, np.uint8), (3, np.int64), (6, np.float32)])
def test_rows_of_any_size_and_kind_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, size: int, kind: type, alike: bool
) -> None:
    if alike:  # also where the quick sum tells nothing
        monkeypatch.setattr("unlearning.data.duplicates._sums", lambda values: np.zeros(len(values), dtype=np.uint64))
    inputs = RANDOM.integers(0, 3, size=(120, size)).astype(kind)
    prints = fingerprints(lambda rows: inputs[rows], np.arange(120), block=50)
    np.testing.assert_array_equal(prints[:, None] == prints[None], (inputs[:, None] == inputs[None]).all(axis=2))
    assert len(fingerprints(lambda rows: inputs[rows], np.arange(0))) == 0


def test_rows_that_differ_in_a_sign_or_a_last_digit_are_told_apart() -> None:
    row = RANDOM.normal(size=64).astype(np.float32)
    inputs = np.repeat(row[None], 130, axis=0)
    inputs[np.arange(64), np.arange(64)] *= -1
    inputs[np.arange(64, 128), np.arange(64)] = np.nextafter(row, np.float32(np.inf))
    inputs[128, :2] *= -1
    assert len(np.unique(fingerprints(lambda rows: inputs[rows], np.arange(130)))) == 130


def test_equal_inputs_and_only_they_have_equal_fingerprints() -> None:
    inputs = RANDOM.integers(0, 2, size=(200, 6)).astype(np.float32)
    prints = fingerprints(lambda rows: inputs[rows], np.arange(200), block=7)
    same = (inputs[:, None] == inputs[None]).all(axis=2)
    np.testing.assert_array_equal(prints[:, None] == prints[None], same)
