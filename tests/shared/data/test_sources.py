import gzip
import io
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from unlearning.data.manifest import Manifest, read_manifest, write_manifest
from unlearning.data.sources import make_manifest, open_samples, verify_source
from unlearning.errors import DataError, UnlearningError, UsageError

RANDOM = np.random.default_rng(0)


def sizes(manifest: Manifest) -> dict[str, int]:
    return {split: sum(counts.values()) for split, counts in manifest.counts().items()}


# Digits


def test_the_digits_have_scaled_pixels_and_a_stratified_test_split() -> None:
    from sklearn.datasets import load_digits

    made = make_manifest("digits")
    assert sizes(made) == {"train": 1438, "test": 359}
    for name, tested in made.counts()["test"].items():
        assert tested == round(0.2 * (tested + made.counts()["train"][name]))
    assert made.table["sample_id"][7].as_py() == "digits-0007"
    assert made.card.input_shape == (1, 8, 8)
    samples = open_samples(made)
    raw = load_digits().images
    assert samples.inputs.dtype == torch.uint8
    pixels = samples.inputs.numpy()[:, 0]
    assert [set(pixels[raw == value].tolist()) for value in (0, 1, 8, 16)] == [{0}, {16}, {128}, {255}]  # 127.5 goes up
    assert samples.targets.tolist() == load_digits().target.tolist()
    train = raw[made.rows("train")] / 16
    assert made.card.mean[0] == pytest.approx(train.mean(), abs=2e-3)
    assert made.card.std[0] == pytest.approx(train.std(), abs=2e-3)


def test_the_same_seed_draws_the_same_split_and_another_seed_another() -> None:
    assert make_manifest("digits").digest == make_manifest("digits").digest
    assert make_manifest("digits", seed=1).rows("test").tolist() != make_manifest("digits").rows("test").tolist()


def test_samples_come_in_the_order_of_the_rows_and_normalised_train_pixels_have_mean_zero(tmp_path: Path) -> None:
    write_manifest(make_manifest("digits"), tmp_path / "m")
    made = read_manifest(tmp_path / "m")
    every, some = open_samples(made), open_samples(made, [5, 3, 5])
    assert torch.equal(some.inputs, every.inputs[[5, 3, 5]])
    assert some.targets.tolist() == [5, 3, 5]
    inputs, _ = every.batch(torch.from_numpy(made.rows("train")))
    assert float(inputs.mean()) == pytest.approx(0, abs=1e-4)
    assert float(inputs.std()) == pytest.approx(1, abs=1e-3)
    assert len(open_samples(made, [])) == 0


@pytest.mark.parametrize("rows", [[1797], [-1], [[0]]])
def test_rows_outside_the_manifest_are_refused(rows: list[int]) -> None:
    with pytest.raises(DataError, match="from 0 to 1796"):
        open_samples(make_manifest("digits"), rows)


@pytest.mark.parametrize("location", ["1797", "-1", "../../x", "1e3", "²"])
def test_a_location_that_is_no_row_of_the_source_is_refused(location: str) -> None:
    made = make_manifest("digits")
    forged = made.table.set_column(4, "location", pa.array([location] * len(made)))
    with pytest.raises(DataError, match="no row number below 1797"):
        open_samples(Manifest(made.card, forged))


# The address


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("digit", 'did you mean "digits"'),
        ("digits:extra", "incomplete or has too much"),
        ("http://example.org/x", "no source 'http'"),
        ("npz:", "incomplete"),
        ("folder:", "incomplete"),
        ("npz:x?y=1", "npz has no option 'y'"),
        ("parquet:x?target=y", 'did you mean "target_column"'),
        ("torchvision:MNIST", "needs the folder"),
        ("torchvision:FashionMIST?root=x", 'did you mean "FashionMNIST"'),
        ("torchvision:VisionDataset?root=x", "no torchvision set"),
        ("torchvision:MNIST?download=True", "no option 'download'"),
    ],
)
def test_a_source_that_cannot_be_understood_is_refused_with_what_is_valid(source: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_manifest(source)


@pytest.mark.parametrize("wrong", [{"test_share": 0}, {"test_share": 1.0}, {"seed": -1}, {"image_size": 0}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="test_share in"):
        make_manifest("digits", **wrong)


def test_an_image_size_is_refused_where_the_size_is_given() -> None:
    with pytest.raises(UsageError, match="size of its own"):
        make_manifest("digits", image_size=8)


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "CIFAR10", "CIFAR100", "SVHN"])
def test_missing_torchvision_files_are_named_by_their_folder_and_not_downloaded(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        DataError, match=f"{name} is not, or not whole, in the folder .*{tmp_path.name}.*nothing is down"
    ):
        make_manifest(f"torchvision:{name}?root={tmp_path}")
    assert list(tmp_path.rglob("*.gz")) == []


def idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        struct.pack(">I", 0x800 + array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    )


def tiny_mnist(root: Path) -> tuple[np.ndarray, np.ndarray]:
    pixels = RANDOM.integers(0, 256, (14, 28, 28), dtype=np.uint8)
    labels = np.arange(14, dtype=np.uint8) % 10
    for name, part in (("train", slice(0, 10)), ("t10k", slice(10, 14))):
        idx(root / "MNIST" / "raw" / f"{name}-images-idx3-ubyte", pixels[part])
        idx(root / "MNIST" / "raw" / f"{name}-labels-idx1-ubyte", labels[part])
    return pixels, labels


def test_a_torchvision_folder_becomes_a_manifest_with_its_own_split(tmp_path: Path) -> None:
    pixels, labels = tiny_mnist(tmp_path)
    made = make_manifest(f"torchvision:MNIST?root={tmp_path}", name="tiny")
    assert made.table["sample_id"].to_pylist()[8:12] == ["train-00008", "train-00009", "test-00000", "test-00001"]
    assert made.rows("test").tolist() == [10, 11, 12, 13]
    assert (made.card.name, made.card.input_shape) == ("tiny", (1, 28, 28))
    assert made.card.mean[0] == pytest.approx(pixels[:10].mean() / 255, rel=1e-6)
    assert made.card.std[0] == pytest.approx(pixels[:10].std() / 255, rel=1e-6)
    test = open_samples(made, made.rows("test"))
    assert np.array_equal(test.inputs.numpy()[:, 0], pixels[10:])
    assert test.targets.tolist() == labels[10:].tolist()


def test_a_changed_source_is_noticed(tmp_path: Path) -> None:
    pixels, _ = tiny_mnist(tmp_path)
    made = make_manifest(f"torchvision:MNIST?root={tmp_path}")
    verify_source(made)
    pixels[3, 4, 5] ^= 1
    idx(tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte", pixels[:10])
    for use in (verify_source, open_samples):
        with pytest.raises(DataError, match="has changed since its manifest was made"):
            use(made)


def test_a_torchvision_file_cut_short_is_refused(tmp_path: Path) -> None:
    tiny_mnist(tmp_path)
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="MNIST is not, or not whole"):
        make_manifest(f"torchvision:MNIST?root={tmp_path}")


# Folders of images


def paint(path: Path, colour: object, mode: str = "RGB", size: tuple[int, int] = (6, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


def test_class_folders_with_a_split_become_colour_images(tmp_path: Path) -> None:
    paint(tmp_path / "train" / "red" / "1.png", (255, 0, 0))
    paint(tmp_path / "train" / "green" / "1.png", (0, 255, 0))
    paint(tmp_path / "test" / "red" / "a b.png", (255, 0, 51))
    paint(tmp_path / "test" / "green" / "grey.png", 7, mode="L")
    (tmp_path / ".DS_Store").write_text("passed over")
    made = make_manifest(f"folder:{tmp_path}")
    paths = ["test/green/grey.png", "test/red/a b.png", "train/green/1.png", "train/red/1.png"]
    assert made.table["location"].to_pylist() == made.table["sample_id"].to_pylist() == paths
    assert made.card.classes == ("green", "red")
    assert made.card.input_shape == (3, 4, 6)
    assert made.card.mean == (0.5, 0.5, 0.0)
    assert made.card.std == (0.5, 0.5, 1.0)
    assert made.rows("train").tolist() == [2, 3]
    samples = open_samples(made, [1, 0])
    assert samples.inputs[:, :, 3, 5].tolist() == [[255, 0, 51], [7, 7, 7]]
    assert samples.targets.tolist() == [1, 0]


def test_grey_images_keep_one_channel_and_are_split_by_class(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for number in range(10):
            paint(tmp_path / name / f"{number}.png", number, mode="L")
    made = make_manifest(f"folder:{tmp_path}", test_share=0.3)
    assert made.card.input_shape == (1, 4, 6)
    assert made.counts()["test"] == {"a": 3, "b": 3}
    assert open_samples(made).inputs[:, 0, 0, 0].tolist() == [*range(10), *range(10)]


def test_images_of_different_sizes_need_an_image_size(tmp_path: Path) -> None:
    paint(tmp_path / "a" / "1.png", 9, mode="L")
    paint(tmp_path / "a" / "2.png", 9, mode="L")
    paint(tmp_path / "b" / "1.png", 200, mode="L", size=(50, 50))
    with pytest.raises(DataError, match="2 different sizes: give image_size"):
        make_manifest(f"folder:{tmp_path}")
    made = make_manifest(f"folder:{tmp_path}", image_size=5)
    assert open_samples(made).inputs.shape == (3, 1, 5, 5)
    assert open_samples(made, [2]).inputs.unique().tolist() == [200]


def test_an_image_added_after_the_manifest_is_noticed(tmp_path: Path) -> None:
    for name in ("a/1", "a/2", "b/1"):
        paint(tmp_path / f"{name}.png", 9, mode="L")
    made = make_manifest(f"folder:{tmp_path}")
    verify_source(made)
    paint(tmp_path / "b" / "2.png", 9, mode="L")
    with pytest.raises(DataError, match="has changed"):
        verify_source(made)


def header_only(path: Path, width: int, height: int) -> None:
    paint(path, 0, mode="L")
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", width, height)
    import zlib

    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda folder: header_only(folder / "a" / "2.png", 8001, 8000),
            "image 1 of the sorted list has over 64000000",
        ),
        (lambda folder: header_only(folder / "a" / "2.png", 60000, 60000), "image 1 of the sorted list is damaged"),
        (lambda folder: (folder / "a" / "2.png").write_bytes(b"no image"), "image 1 of the sorted list is damaged"),
        (lambda folder: (folder / "a" / "2.png").write_bytes((folder / "a" / "1.png").read_bytes()[:45]), "image 1"),
        (lambda folder: (folder / "a" / "2.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n"), "image 1"),
        (lambda folder: paint(folder / "a" / "2.png", 999, mode="I;16"), "image 1 of the sorted list is no 8-bit"),
        (lambda folder: (folder / "a" / "labels.csv").write_text("x"), "must hold images only"),
        (lambda folder: (folder / "labels.csv").write_text("x"), "must hold folders only"),
        (lambda folder: (folder / "c").mkdir(), "holds no images"),
        (lambda folder: (folder / "train").mkdir(), "needs train and test folders"),
        (lambda folder: (folder / "a" / "2.png").symlink_to("/etc/hostname"), "leaves the data set's folder"),
        (lambda folder: (folder / "c").symlink_to(folder.parent), "leaves the data set's folder"),
        (lambda folder: (folder / "a" / "2.png").symlink_to("2.png"), "cannot be read"),
        (lambda folder: paint(folder / "a" / "2\n.png", 9, mode="L"), "row 1: sample_id has a control character"),
        (lambda folder: shutil.rmtree(folder), "cannot be read"),
    ],
)
def test_a_hostile_folder_is_refused_in_one_line(tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    folder = tmp_path / "images"
    paint(folder / "a" / "1.png", 9, mode="L")
    paint(folder / "b" / "1.png", 9, mode="L")
    spoil(folder)
    with pytest.raises(DataError, match=message) as caught:
        make_manifest(f"folder:{folder}")
    assert "\n" not in str(caught.value)


def test_a_link_that_stays_inside_the_folder_is_followed(tmp_path: Path) -> None:
    paint(tmp_path / "a" / "1.png", 9, mode="L")
    paint(tmp_path / "b" / "1.png", 9, mode="L")
    (tmp_path / "a" / "2.png").symlink_to(tmp_path / "b" / "1.png")
    assert len(make_manifest(f"folder:{tmp_path}")) == 3


def test_a_location_outside_the_folder_is_refused(tmp_path: Path) -> None:
    paint(tmp_path / "secret.png", 9, mode="L")
    for name in ("a/1", "a/2", "b/1"):
        paint(tmp_path / "set" / f"{name}.png", 9, mode="L")
    made = make_manifest(f"folder:{tmp_path / 'set'}")
    forged = made.table.set_column(4, "location", pa.array(["../secret.png", "a/2.png", "b/1.png"]))
    with pytest.raises(DataError, match="no image of its folder"):
        open_samples(Manifest(made.card, forged))


# npz


def test_float_features_of_an_npz_are_normalised_by_its_train_rows(tmp_path: Path) -> None:
    inputs = np.array([[0, 5], [2, 5], [4, 5], [100, 5]], dtype=np.float64)
    subjects, split = np.array([3, 3, 4, 5]), np.array(["train", "train", "train", "test"])
    np.savez(tmp_path / "d.npz", X=inputs, y=np.array([2, 10, 2, 10]), subject_id=subjects, split=split)
    made = make_manifest(f"npz:{tmp_path / 'd.npz'}")
    assert made.card.classes == ("2", "10")
    assert made.card.mean == (2.0, 5.0)
    assert made.card.std == (pytest.approx((8 / 3) ** 0.5, rel=1e-6), 1.0)
    assert made.table["subject_id"].to_pylist() == ["3", "3", "4", "5"]
    assert (made.card.name, made.card.input_shape) == ("d", (2,))
    samples = open_samples(made, [3])
    assert samples.inputs.tolist() == [[100.0, 5.0]]
    assert samples.inputs.dtype == torch.float32
    assert samples.targets.tolist() == [1]


def test_pixels_of_an_npz_may_have_their_channels_last_and_classes_of_their_own(tmp_path: Path) -> None:
    pixels = RANDOM.integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)
    ids = np.array([f"picture {row}" for row in range(6)])
    np.savez_compressed(
        tmp_path / "d.npz",
        images=pixels,
        labels=np.array([1, 1, 1, 2, 2, 2]),
        classes=np.array(["x", "y", "z"]),
        sample_id=ids,
    )
    made = make_manifest(f"npz:{tmp_path / 'd.npz'}", test_share=0.34)
    assert made.card.classes == ("x", "y", "z")
    assert made.card.input_shape == (3, 4, 5)
    assert made.table["target"].to_pylist() == ["y", "y", "y", "z", "z", "z"]
    assert made.table["sample_id"].to_pylist() == ids.tolist()
    assert sizes(made) == {"train": 4, "test": 2}
    train = pixels[made.rows("train")] / 255
    assert made.card.mean == pytest.approx(train.mean(axis=(0, 1, 2)), rel=1e-6)
    assert made.card.std == pytest.approx(train.std(axis=(0, 1, 2)), rel=1e-6)
    assert np.array_equal(open_samples(made).inputs.numpy(), pixels.transpose(0, 3, 1, 2))


def test_words_as_targets_take_the_order_of_the_classes_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", inputs=np.eye(3), targets=np.array(["b", "a", "b"]), classes=np.array(["b", "a"]))
    assert make_manifest(f"npz:{tmp_path / 'd.npz'}").targets().tolist() == [0, 1, 0]


def savez(**arrays: object) -> Callable[[Path], None]:
    return lambda path: np.savez(path, **{"inputs": np.eye(4), "targets": np.array([0, 1, 0, 1]), **arrays})


def zipped(name: str, content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, content)

    return write


def header(shape: str, descr: str = "'<f8'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def zip_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inputs.npy", b"\0" * 100)
    content = bytearray(path.read_bytes())
    place = content.index(b"PK\x01\x02")
    content[place + 24 : place + 28] = struct.pack("<I", 0xFFFFFFF0)  # the size it claims to unpack to
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.infolist()[0].file_size == 0xFFFFFFF0
    path.write_bytes(content)


def many_entries(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(65):
            archive.writestr(f"{number}.npy", b"")


class Trap:
    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, ("trap-was-sprung",))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (savez(targets=np.array([0, 1, None, Trap()])), "must hold numbers or text, its type is 'O'"),
        (savez(inputs=np.zeros(4, dtype=[("a", "f4")])), "its type is 'V'"),
        (savez(inputs=np.eye(4) * 1j), "its type is 'c'"),
        (savez(inputs=np.full((4, 2), np.nan)), "row 0 are not finite"),
        (savez(inputs=np.array([[1.0], [2.0], [1e300], [3.0]])), "row 2 are not finite"),
        (savez(inputs=np.zeros((4, 0))), "must be numbers of shape"),
        (savez(inputs=np.float64(3)), "single value"),
        (savez(inputs=np.zeros((4, 1, 1, 1, 1))), "must be numbers of shape"),
        (savez(targets=np.array([0, 1, 0])), "one value for each of the 4 inputs, got 3"),
        (savez(targets=np.array([[0], [1], [0], [1]])), "one value for each"),
        (savez(targets=np.array([0.5, 1, 0, 1])), "whole numbers or words"),
        (savez(targets=np.array([0, 0, 0, 0])), "two or more different class names"),
        (savez(y=np.array([0, 1, 0, 1])), "exactly one of the arrays targets, y, labels, target; it has targets and y"),
        (savez(classes=np.array(["only"])), "indices of the 1 classes"),
        (savez(targets=np.array([0, -1, 0, 1]), classes=np.array(["a", "b"])), "indices of the 2 classes"),
        (savez(sample_id=np.array(["a", "b", "b", "c"])), "row 2: its sample_id came before"),
        (savez(split=np.array(["train", "test", "train", "dev"])), "row 3: split must be one of"),
        (savez(split=np.array(["test"] * 4)), "no train rows"),
        (
            zipped("inputs.npy", b"\x93NUMPY\x02\x00" + struct.pack("<I", 1 << 30) + b" " * (1 << 21)),
            "not a numpy array",
        ),
        (zipped("inputs.npy", header("(1000000000000,)")), "promises 8000000000000 bytes and has 0"),
        (zipped("inputs.npy", header("(2, -3)") + b"\0" * 48), "promises"),
        (zipped("inputs.npy", header("(9" + "9" * 400 + ",)")), "promises"),
        (zipped("inputs.npy", header("(1000000000000,)", "'<U0'")), "must hold numbers or text"),
        (zipped("inputs.npy", header("(" * 5000)), "not a numpy array"),
        (zipped("inputs.npy", header("(1,)", "'<U1'") + b"\xff\xff\xff\x7f"), "damaged"),
        (zipped("inputs.npy", pickle.dumps(Trap())), "not a numpy array"),
        (zipped("inputs.npy", b""), "not a numpy array"),
        (zipped("other.npy", b""), "exactly one of the arrays inputs, X, x, images; it has none"),
        (zip_bomb, "promises|cannot be read|not a numpy array"),
        (many_entries, "65 arrays"),
        (lambda path: path.write_bytes(pickle.dumps(Trap())), "cannot be read"),
        (lambda path: None, "cannot be read"),
    ],
)
def test_a_hostile_npz_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "d.npz")
    with pytest.raises(DataError, match=message) as caught:
        make_manifest(f"npz:{tmp_path / 'd.npz'}")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "trap-was-sprung").exists()


def test_a_zip_that_unpacks_to_more_than_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        for name in ("inputs", "targets", "split"):
            archive.writestr(f"{name}.npy", b"")
    content = (tmp_path / "d.npz").read_bytes()
    parts = content.split(b"PK\x01\x02")
    claimed = [part[:20] + struct.pack("<I", 0xFFFFFFF0) + part[24:] for part in parts[1:]]
    (tmp_path / "d.npz").write_bytes(b"PK\x01\x02".join([parts[0], *claimed]))
    with pytest.raises(DataError, match="unpacks to 3 arrays and 12884901840 bytes"):
        make_manifest(f"npz:{tmp_path / 'd.npz'}")


@pytest.fixture(scope="module")
def good_npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("npz") / "d.npz"
    savez(sample_id=np.array(["a", "b", "c", "d"]))(path)
    return path


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_an_npz_with_flipped_bytes_is_read_or_refused_but_never_crashes(good_npz: Path, data: st.DataObject) -> None:
    content = bytearray(good_npz.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=6)):
        content[place] = data.draw(st.integers(0, 255))
    changed = good_npz.with_name("changed.npz")
    changed.write_bytes(content)
    try:
        made = make_manifest(f"npz:{changed}")
    except UnlearningError:
        return
    assert len(made) >= 2


# Parquet


def test_the_columns_of_a_table_become_features_in_their_order(tmp_path: Path) -> None:
    table = pa.table(
        {
            "height": [1, 3, 5, 7],
            "ripe": [True, False, True, False],
            "kind": pa.array(["b", "a", "b", "a"]).dictionary_encode(),
            "weight": pa.array([0.5, 0.5, 0.5, 2.5], pa.float32()),
            "subject_id": [7, None, 8, 8],
            "split": ["train", "train", "test", "train"],
        }
    )
    pq.write_table(table, tmp_path / "fruit.parquet")
    made = make_manifest(f"parquet:{tmp_path / 'fruit.parquet'}?target_column=kind")
    assert made.card.classes == ("a", "b")
    assert made.card.input_shape == (3,)
    assert made.card.mean == pytest.approx((11 / 3, 1 / 3, 3.5 / 3), rel=1e-6)
    assert made.table["subject_id"].to_pylist() == ["7", None, "8", "8"]
    samples = open_samples(made)
    assert samples.inputs.tolist() == [[1, 1, 0.5], [3, 0, 0.5], [5, 1, 0.5], [7, 0, 2.5]]
    assert samples.targets.tolist() == [1, 0, 1, 0]
    pq.write_table(table.slice(0, 3), tmp_path / "fruit.parquet")
    with pytest.raises(DataError, match="has changed"):
        open_samples(made)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": [1.0, 2.0]}, "a target column 'target'"),
        ({"targets": [1, 2], "a": [1, 2]}, 'did you mean "targets"'),
        ({"target": [0, 1]}, "no feature columns"),
        ({"target": [0, 1], "a": ["x", "y"]}, "the feature 'a' must be numeric"),
        ({"target": [0, 1], "a\n": [[1], [2]]}, r"the feature 'a\\n' must be numeric"),
        ({"target": [0, 1], "a": [1.0, None]}, "missing values"),
        ({"target": [0, 1], "a": [1.0, float("inf")]}, "row 1 are not finite"),
        ({"target": [0, None], "a": [1, 2]}, "target column has missing"),
        ({"target": [b"x", b"y"], "a": [1, 2]}, "must hold text, its type is binary"),
        ({"target": [[0], [1]], "a": [1, 2]}, "must hold text, its type is list"),
        ({"target": [0, 1], "a": [1, 2], "sample_id": ["x", None]}, "row 1 has no sample_id"),
        ({"target": [0, 1], "a": [1, 2], "split": ["train", None]}, "split is missing"),
        ({"target": pa.array([], pa.int64()), "a": pa.array([], pa.int64())}, "holds no samples"),
    ],
)
def test_a_table_that_is_no_data_set_is_refused_in_one_line(
    tmp_path: Path, columns: dict[str, object], message: str
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "t")
    with pytest.raises(DataError, match=message) as caught:
        make_manifest(f"parquet:{tmp_path / 't'}")
    assert "\n" not in str(caught.value)


def test_a_few_bytes_of_table_that_unpack_to_many_are_refused(tmp_path: Path) -> None:
    rows = 30_000
    wide = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, dtype=np.int32)), pa.array(["x" * 100_000]))
    pq.write_table(pa.table({"a": np.arange(rows), "target": wide}), tmp_path / "t")
    with pytest.raises(DataError, match="bytes of text"):
        make_manifest(f"parquet:{tmp_path / 't'}")


# Real data


def real(name: str) -> Path:
    folder = os.environ.get("UNLEARN_DATA", "")
    if not folder or not (Path(folder) / name).is_dir():
        pytest.skip(f"UNLEARN_DATA points at no folder with {name}")
    return Path(folder) / name


@pytest.mark.data
def test_fashion_mnist_has_its_published_mean_and_deviation(tmp_path: Path) -> None:
    for packed in (real("FashionMNIST") / "raw").glob("*.gz"):
        target = tmp_path / "FashionMNIST" / "raw" / packed.stem
        target.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(packed) as source, target.open("wb") as unpacked:
            shutil.copyfileobj(source, unpacked)
    made = make_manifest(f"torchvision:FashionMNIST?root={tmp_path}")
    assert sizes(made) == {"train": 60_000, "test": 10_000}
    assert set(made.counts()["train"].values()) == {6000}
    assert made.card.classes[made.targets()[0]] == "Ankle boot"
    assert made.card.mean == pytest.approx((0.2860,), abs=5e-5)
    assert made.card.std == pytest.approx((0.3530,), abs=5e-5)
    assert open_samples(made, made.rows("test")[:5]).inputs.shape == (5, 1, 28, 28)


@pytest.mark.data
@pytest.mark.slow
def test_cifar10_has_its_published_mean_and_deviation(tmp_path: Path) -> None:
    packed = real("cifar10")
    target = tmp_path / "cifar-10-batches-py"
    target.mkdir()
    parts = np.load(packed / "pickle_parts.npz")
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        sheet = np.asarray(Image.open(packed / f"{name}.webp").convert("RGB"))
        pixels = sheet.reshape(100, 32, 100, 32, 3).transpose(0, 2, 4, 1, 3)
        (target / name).write_bytes(
            parts[f"{name}_head"].tobytes() + pixels.tobytes() + parts[f"{name}_tail"].tobytes()
        )
    shutil.copyfile(packed / "batches.meta", target / "batches.meta")
    made = make_manifest(f"torchvision:CIFAR10?root={tmp_path}")
    assert sizes(made) == {"train": 50_000, "test": 10_000}
    assert made.card.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=5e-5)
    assert made.card.std == pytest.approx((0.2470, 0.2435, 0.2616), abs=5e-5)
    first = open_samples(made, [0])
    assert made.card.classes[int(first.targets[0])] == "frog"
    assert first.inputs.shape == (1, 3, 32, 32)


@pytest.mark.data
def test_the_activities_of_thirty_people_keep_their_subjects(tmp_path: Path) -> None:
    raw = np.load(real("har") / "uci_har_265.npz")
    split = np.repeat(["train", "test"], [len(raw["y_train"]), len(raw["y_test"])])
    arrays = {
        new: np.concatenate([raw[f"{old}_train"], raw[f"{old}_test"]])
        for new, old in (("inputs", "X"), ("targets", "y"), ("subject_id", "subject"))
    }
    np.savez(tmp_path / "har.npz", split=split, **arrays)
    made = make_manifest(f"npz:{tmp_path / 'har.npz'}")
    assert sizes(made) == {"train": 7352, "test": 2947}
    assert made.card.input_shape == (265,)
    assert len(set(made.table["subject_id"].to_pylist())) == 30
    inputs, _ = open_samples(made).batch(torch.from_numpy(made.rows("train")))
    assert float(inputs.mean(dim=0).abs().max()) < 1e-3
