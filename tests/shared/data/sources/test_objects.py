"""Images that are objects in a bucket: the same data set as in a folder, read batch by batch."""

import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unlearning.data import sources
from unlearning.data.samples import StoredSamples, TensorSamples
from unlearning.data.sources import make_manifest, open_samples, verify_source
from unlearning.errors import DataError, StorageError, UsageError
from unlearning.storage import open_store

SIDE = 64


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """Twenty-four images of two classes, in train and test."""
    draws = np.random.default_rng(0)
    for row in range(24):
        path = tmp_path / "set" / ("train" if row < 16 else "test") / f"class{row % 2}" / f"{row:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draws.integers(256, size=(SIDE, SIDE, 3), dtype=np.uint8)).save(path)
    return tmp_path / "set"


@pytest.fixture
def remote(local: Path, s3: str) -> str:
    """The same in a bucket."""
    place = f"s3://{s3}/pictures"
    fill(local, place)
    return place


def fill(folder: Path, place: str) -> None:
    store = open_store(place)
    for path in folder.rglob("*.*"):
        store.upload(path.relative_to(folder).as_posix(), path)


def test_a_bucket_is_the_data_set_that_the_folder_is(local: Path, remote: str) -> None:
    ours, theirs = make_manifest(f"folder:{local}"), make_manifest(f"folder:{remote}", objects=open_store)
    assert theirs.card.source == f"folder:{remote}"
    assert theirs.table.equals(ours.table)
    assert (theirs.card.classes, theirs.card.input_shape) == (ours.card.classes, ours.card.input_shape)
    assert (theirs.card.mean, theirs.card.std) == (ours.card.mean, ours.card.std)
    here, there = open_samples(ours), open_samples(theirs, objects=open_store)
    assert isinstance(there, TensorSamples)
    assert all(map(torch.equal, here.batch(torch.arange(24)), there.batch(torch.arange(24))))


def test_an_epoch_over_a_bucket_holds_a_batch_and_no_more(
    local: Path, remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "IN_MEMORY", 1000)
    made = make_manifest(f"folder:{remote}", objects=open_store)
    wanted = open_samples(make_manifest(f"folder:{local}"))
    samples = open_samples(made, objects=open_store)
    assert isinstance(samples, StoredSamples)
    samples.batch(torch.arange(2))  # the client is made at the first read
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for rows in torch.randperm(24).split(4):
        assert all(map(torch.equal, samples.batch(rows), wanted.batch(rows)))
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 24 * SIDE * SIDE * 3 / 2


def test_an_object_that_was_written_anew_is_never_taken_for_the_old_one(
    local: Path, remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "IN_MEMORY", 1000)
    made = make_manifest(f"folder:{remote}", objects=open_store)
    samples = open_samples(made, objects=open_store)
    open_store(remote).put("train/class0/000.png", (local / "train" / "class0" / "002.png").read_bytes())
    row = made.table["sample_id"].to_pylist().index("train/class0/000.png")
    with pytest.raises(StorageError, match="was changed since it was listed"):
        samples.batch(torch.tensor([row]))
    with pytest.raises(DataError, match="has changed since its manifest was made"):
        verify_source(made, objects=open_store)


def test_a_bucket_of_another_form_is_refused_in_one_line(local: Path, remote: str) -> None:
    store, source = open_store(remote), f"folder:{remote}"
    store.put(".hidden/thing", b"x")
    make_manifest(source, objects=open_store)  # hidden ones are passed over, as in a folder
    store.put("train/class0/deeper/1.png", b"x")
    with pytest.raises(DataError, match=r"^object 16 of the sorted list .* is no train/CLASS/NAME with one of .*$"):
        make_manifest(source, objects=open_store)
    store.delete("train/class0/deeper")
    store.put("train/class0/words.txt", b"x")
    with pytest.raises(DataError, match=r"is no train/CLASS/NAME"):
        make_manifest(source, objects=open_store)
    store.delete("train/class0/words.txt")
    store.put("other/class0/1.png", b"x")
    with pytest.raises(DataError, match="needs images below train and test and nothing else"):
        make_manifest(source, objects=open_store)
    with pytest.raises(DataError, match="needs images below"):
        make_manifest(f"folder:{remote}/nothing", objects=open_store)
    with pytest.raises(UsageError, match="lies in an object store"):
        make_manifest(source)


def test_a_damaged_image_is_named_by_its_number(local: Path, s3: str) -> None:
    shutil.rmtree(local / "test")
    (local / "train").rename(local.parent / "classes")
    (local.parent / "classes" / "class1" / "001.png").write_bytes(b"no picture")
    place = f"s3://{s3}/classes"
    fill(local.parent / "classes", place)
    with pytest.raises(DataError, match=r"^image 8 of the sorted list is damaged, too large or no image"):
        make_manifest(f"folder:{place}", objects=open_store)
