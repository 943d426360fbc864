"""Data sets that stay on disk: the same batches, with no more in memory than a batch or a block."""

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unlearning.data import sources
from unlearning.data.samples import Rows, Samples, StoredSamples, TensorSamples
from unlearning.data.sources import fit_scaling, make_manifest, open_samples
from unlearning.errors import DataError

SIDE = 48


def pictures(folder: Path, count: int) -> Path:
    """So many images of two classes, in folders of classes."""
    draws = np.random.default_rng(0)
    for row in range(count):
        path = folder / f"class{row % 2}" / f"{row:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draws.integers(256, size=(SIDE, SIDE, 3), dtype=np.uint8)).save(path)
    return folder


def arrays(folder: Path, inputs: np.ndarray, **others: np.ndarray) -> str:
    """A folder of arrays as a source."""
    folder.mkdir()
    for name, values in {"inputs": inputs, "targets": np.arange(len(inputs)) % 3, **others}.items():
        np.save(folder / f"{name}.npy", values)
    return f"arrays:{folder}"


def same(one: Samples, other: Samples) -> bool:
    rows = torch.randperm(len(one), generator=torch.Generator().manual_seed(0))[:17]
    pairs = zip(one.batch(rows), other.batch(rows), strict=True)
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in pairs)


def test_images_read_batch_by_batch_are_those_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_manifest(f"folder:{pictures(tmp_path / 'set', 40)}")
    at_once = open_samples(made)
    some = open_samples(made, [3, 1, 30])
    monkeypatch.setattr(sources, "IN_MEMORY", 1000)
    stored = open_samples(made)
    assert isinstance(at_once, TensorSamples)
    assert isinstance(stored, StoredSamples)
    assert same(at_once, stored)
    assert same(some, Rows(stored, torch.tensor([3, 1, 30])))
    assert torch.equal(at_once.targets, stored.targets)


def test_an_epoch_over_images_on_disk_holds_a_batch_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = SIDE * SIDE * 3
    monkeypatch.setattr(sources, "IN_MEMORY", 1000)
    made = make_manifest(f"folder:{pictures(tmp_path / 'set', 600)}")
    assert 600 * pixels > 4_000_000
    tracemalloc.start()
    samples = open_samples(made)
    seen = 0
    for rows in torch.randperm(600).split(32):
        seen += len(samples.batch(rows)[0])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seen == 600
    assert peak < 1_500_000  # a batch of 32 is 221,184 bytes, twice while its channels are moved; the rest is names


def test_making_a_manifest_of_many_images_decodes_them_in_blocks(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "set", 2)
    one = folder / "class0" / "000000.png"
    for row in range(3000):  # names of one file: the bytes of 3,000 images would be 20 MB
        os.link(one, folder / "class0" / f"again{row:05d}.png")
    tracemalloc.start()
    made = make_manifest(f"folder:{folder}")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(made) == 3002
    # A block of 2**22 values: as pixels, moved, and as 64-bit integers with their squares.
    assert peak < 110_000_000
    with Image.open(one) as image:
        mean = np.asarray(image).reshape(-1, 3).mean(0) / 255
    assert made.card.mean == pytest.approx(mean, abs=2e-3)


@pytest.mark.slow
def test_a_hundred_thousand_images_are_trained_on_without_being_read_into_memory(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        Image.fromarray(np.full((64, 64, 3), 200 if name == "a" else 20, dtype=np.uint8)).save(folder / name / "0.png")
        for row in range(1, 50_000):  # names of one file
            os.link(folder / name / "0.png", folder / name / f"{row}.png")
    made = make_manifest(f"folder:{folder}")
    assert len(made) == 100_000
    tracemalloc.start()
    samples = open_samples(made)  # 1.2 GB of pixels
    assert isinstance(samples, StoredSamples)
    for rows in torch.randperm(100_000)[:2560].split(256):
        assert samples.batch(rows)[0].shape == (256, 3, 64, 64)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 120_000_000  # mostly the names and rows of 100,000 files


def test_mapped_arrays_are_those_of_an_npz_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = np.random.default_rng(0).integers(256, size=(60, 3, 5, 4), dtype=np.uint8)
    ids = np.array([f"id-{row}" for row in range(60)])
    source = arrays(tmp_path / "set", inputs, sample_id=ids)
    np.savez(tmp_path / "set.npz", inputs=inputs, targets=np.arange(60) % 3, sample_id=ids)
    mapped, packed = make_manifest(source), make_manifest(f"npz:{tmp_path / 'set.npz'}")
    assert mapped.card.mean == packed.card.mean
    assert mapped.card.std == packed.card.std
    assert mapped.table.drop(["location"]).equals(packed.table.drop(["location"]))
    assert same(open_samples(mapped), open_samples(packed))
    monkeypatch.setattr(sources, "IN_MEMORY", 1000)
    stored = open_samples(mapped)
    assert isinstance(stored, StoredSamples)
    assert same(stored, open_samples(packed))
    assert fit_scaling(mapped, [1, 5, 9]) == fit_scaling(packed, [1, 5, 9])


def test_a_file_larger_than_the_bound_is_mapped_and_never_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = arrays(tmp_path / "set", np.zeros((2000, 64, 64), dtype=np.float32)[:, None])  # 32 MB
    monkeypatch.setattr(sources, "IN_MEMORY", 1 << 20)
    tracemalloc.start()
    made = make_manifest(source)
    fitting = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    samples = open_samples(made)
    for rows in torch.randperm(2000).split(50):
        samples.batch(rows)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6_000_000  # a batch is 819,200 bytes; a check for finite values has a byte for each of 2**22
    assert fitting < 140_000_000  # a block of 2**22 values as float64, with its squares


def test_values_that_are_no_numbers_are_named_by_their_row(tmp_path: Path) -> None:
    inputs = np.zeros((50, 4), dtype=np.float32)
    inputs[37, 2] = np.nan
    with pytest.raises(DataError, match="row 37 are not finite"):
        make_manifest(arrays(tmp_path / "set", inputs))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": np.zeros((6, 4))}, "uint8 or float32"),
        ({"inputs": np.zeros(6, dtype=np.uint8)}, "must have the shape"),
        ({"inputs": np.array([None] * 6)}, "no array that can be mapped"),
        ({"targets": np.zeros(5, dtype=np.int64)}, "one value for each of the 6 inputs"),
        ({"sample_id": np.array(["a"])}, "one value for each of the 6 inputs"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_in_one_line(
    tmp_path: Path, change: dict[str, np.ndarray], message: str
) -> None:
    source = arrays(tmp_path / "set", np.zeros((6, 4), dtype=np.float32))
    for name, values in change.items():
        np.save(tmp_path / "set" / f"{name}.npy", values, allow_pickle=True)
    with pytest.raises(DataError, match=message) as raised:
        make_manifest(source)
    assert "\n" not in str(raised.value)


def test_a_mapped_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    source = arrays(tmp_path / "set", np.zeros((100, 40), dtype=np.float32))
    path = tmp_path / "set" / "inputs.npy"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="no array that can be mapped"):
        make_manifest(source)
    path.unlink()
    with pytest.raises(DataError, match="no array that can be mapped"):
        make_manifest(source)


def test_another_content_of_the_same_folder_is_noticed(tmp_path: Path) -> None:
    made = make_manifest(arrays(tmp_path / "set", np.zeros((10, 4), dtype=np.float32)))
    np.save(tmp_path / "set" / "inputs.npy", np.ones((10, 4), dtype=np.float32))
    with pytest.raises(DataError, match="has changed since"):
        open_samples(made)
