import os
from pathlib import Path

import numpy as np
import pytest
import torch

from unlearning.data.sources import fit_scaling, make_manifest, open_samples
from unlearning.data.sources.contents import Address
from unlearning.data.sources.text import pair_vocabulary, read_vectors, token_ids, tokens, vocabulary_of
from unlearning.errors import DataError, UnlearningError


def line(score: str, first: str, second: str) -> str:
    return f"genre\tfile\t2012\t1\t{score}\t{first}\t{second}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sts-train.csv").write_text(line("5.0", "A plane.", "The plane!") + line("2.5", "A dog", "a plane dog"))
    (tmp_path / "sts-dev.csv").write_text(line("1", "Only here, here", "here"))
    (tmp_path / "sts-test.csv").write_text(line("0", "A cat", "One dog two dog three dog"))
    (tmp_path / "LICENSE.txt").write_text("no data")
    return tmp_path


def test_texts_are_cut_into_lower_case_words_and_numbers() -> None:
    assert tokens("Don't panic: 42 of the_worst www.x.org — Zürich\u2019s") == [
        *("don't", "panic", "42", "of", "the", "worst"),
        "zürich's",
    ]
    assert tokens("...") == []


def test_the_vocabulary_has_frequent_words_first_and_equals_in_order() -> None:
    assert vocabulary_of([["b", "a", "c"], ["c", "d"], ["b", "a"]], 2) == {"a": 2, "b": 3, "c": 4}


def test_ids_are_padded_at_the_left_and_cut_at_the_right() -> None:
    ids = token_ids([["a", "x"], ["b", "a", "a", "b"], []], {"a": 2, "b": 3}, 3)
    assert ids.tolist() == [[0, 2, 1], [3, 2, 2], [0, 0, 0]]


def test_pairs_keep_their_files_splits_and_learn_words_from_training_only(folder: Path) -> None:
    made = make_manifest(f"pairs:{folder}?length=3")
    assert {split: len(made.rows(split)) for split in ("train", "validation", "test")} == {
        **{"train": 2, "validation": 1},
        "test": 1,
    }
    assert made.table["sample_id"].to_pylist() == ["train-00000", "train-00001", "validation-00000", "test-00000"]
    assert made.targets().tolist() == [5, 2.5, 1, 0]
    vocabulary = pair_vocabulary(Address(str(folder), {}))
    assert vocabulary == {"a": 2, "plane": 3, "dog": 4}  # 3, 3 and 2 times; "here" and "the" are too rare
    assert (made.card.vocabulary, made.card.input_shape, made.card.mean) == (5, (2, 3), ())
    inputs, targets = open_samples(made, [3, 0]).batch(torch.tensor([0, 1]))
    assert inputs.dtype == torch.int64
    assert inputs.tolist() == [[[0, 2, 1], [1, 4, 1]], [[0, 2, 3], [0, 1, 3]]]
    assert targets.tolist() == [0, 5]
    assert fit_scaling(made, [0]).mean == ()


def test_one_file_gets_a_drawn_split(folder: Path) -> None:
    made = make_manifest(f"pairs:{folder / 'sts-train.csv'}?min_count=1", test_share=0.5)
    assert [len(made.rows(split)) for split in ("train", "test")] == [1, 1]


def test_given_vectors_stand_in_their_words_rows(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_text("plane 1 2\nunseen 9 9\na 3 4\n")
    vectors = read_vectors(tmp_path / "v.txt", {"a": 2, "plane": 3, "dog": 4}, generator=np.random.default_rng(0))
    assert vectors.shape == (5, 2)
    assert vectors[[0, 2, 3]].tolist() == [[0, 0], [3, 4], [1, 2]]
    assert np.abs(vectors[[1, 4]]).min() > 0
    with pytest.raises(DataError, match="needs vectors"):
        read_vectors(tmp_path / "v.txt", {"zebra": 2}, generator=np.random.default_rng(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("?score=0", "no numbers"),
        ("?second=7", "has 7 fields, wanted 8"),
        ("?length=0", "length must be"),
        ("?min_count=x", "min_count must be"),
    ],
)
def test_pairs_that_cannot_be_read_are_refused_in_one_line(folder: Path, options: str, message: str) -> None:
    with pytest.raises(UnlearningError, match=message) as caught:
        make_manifest(f"pairs:{folder}{options}")
    assert "\n" not in str(caught.value)


def test_a_folder_without_train_or_with_two_is_refused(folder: Path) -> None:
    (folder / "train2.csv").write_text(line("1", "a", "b"))
    with pytest.raises(DataError, match="two files for the train"):
        make_manifest(f"pairs:{folder}")
    (folder / "train2.csv").unlink()
    (folder / "sts-train.csv").unlink()
    with pytest.raises(DataError, match="needs a file with train"):
        make_manifest(f"pairs:{folder}")


@pytest.mark.data
def test_the_sts_benchmark_has_its_official_counts() -> None:
    place = Path(os.environ.get("UNLEARN_DATA", "")) / "regression" / "stsb"
    if "UNLEARN_DATA" not in os.environ or not place.is_dir():
        pytest.skip("UNLEARN_DATA points at no folder with regression/stsb")
    made = make_manifest(f"pairs:{place}")
    assert [len(made.rows(split)) for split in ("train", "validation", "test")] == [5749, 1500, 1379]
    assert (made.targets().min(), made.targets().max()) == (0, 5)
    inputs, _ = open_samples(made).batch(torch.arange(len(made)))
    assert int(inputs.max()) == made.card.vocabulary - 1
    assert float((inputs[:5749] == 1).sum() / (inputs[:5749] > 0).sum()) < 0.06  # words known in training only once
