import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from unlearning.data.splits import drawn_splits

people = st.lists(st.tuples(st.sampled_from([None, "ann", "bob", "eve", "joe"]), st.integers(0, 2)), min_size=1)


@given(people, st.integers(0, 5))
def test_nobody_is_on_both_sides_and_every_row_is_on_one(rows: list[tuple[str | None, int]], seed: int) -> None:
    subjects, targets = [subject for subject, _ in rows], np.array([target for _, target in rows])
    splits = drawn_splits(targets, 0.3, seed, subjects=subjects)
    assert len(splits) == len(rows)
    sides = {(subject, split) for subject, split in zip(subjects, splits, strict=True) if subject is not None}
    assert len(sides) == len({subject for subject, _ in sides})


def test_without_subjects_each_class_gives_its_share() -> None:
    targets = np.repeat([0, 1, 2], [10, 20, 1])
    splits = np.array(drawn_splits(targets, 0.2, 0, subjects=[None] * 31))
    assert [int((splits[targets == index] == "test").sum()) for index in range(3)] == [2, 4, 0]
    assert splits.tolist() == drawn_splits(targets, 0.2, 0)


def test_a_subject_counts_to_the_class_of_most_of_its_rows() -> None:
    subjects = [name for name in "abcdefgh" for _ in range(3)]
    targets = np.array([[0, 0, 1]] * 4 + [[1, 1, 0]] * 4).reshape(-1)
    for seed in range(10):
        tested = {
            s
            for s, split in zip(subjects, drawn_splits(targets, 0.25, seed, subjects=subjects), strict=True)
            if split == "test"
        }
        assert len(tested & set("abcd")) == len(tested & set("efgh")) == 1
