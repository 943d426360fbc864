"""Data sets of every kind as a manifest, and the samples of a manifest in memory.

A source is written `scheme:place?option=value`; nothing in it is decoded or made absolute, and nothing is downloaded:

- `digits`: the 8 x 8 digits that scikit-learn brings along.
- `torchvision:NAME?root=FOLDER`: MNIST, FashionMNIST, CIFAR10, CIFAR100 or SVHN where torchvision keeps them. Its own
  loaders read the files; those of CIFAR are pickles, which torchvision opens only when their md5 sums are the official
  ones.
- `folder:FOLDER`: images in `FOLDER/CLASS/`, or in `FOLDER/train/CLASS/`, `FOLDER/test/CLASS/`.
- `npz:FILE`: arrays `inputs` and `targets`, perhaps `sample_id`, `subject_id`, `split`, `classes`.
- `parquet:FILE?target_column=NAME`: numeric columns and `target`, perhaps `sample_id`, `subject_id`, `split`.
"""

from __future__ import annotations

import hashlib
import stat
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa

from unlearning.config import nearest
from unlearning.data.arrays import read_array
from unlearning.data.manifest import MOST_ROWS, SPLITS, DataCard, Manifest, decoded, read_parquet
from unlearning.errors import DataError, UsageError

if TYPE_CHECKING:
    from PIL import Image

    from unlearning.data.samples import TensorSamples

Array: TypeAlias = np.ndarray[Any, Any]

_MOST_BYTES = 8 << 30
_MOST_FILE_BYTES = 2 << 30
_MOST_ENTRIES = 64
_MOST_PIXELS = 64_000_000
_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
_IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
_ONE_CHANNEL, _COLOURED = ("1", "L", "LA"), ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_INPUTS, _TARGETS = ("inputs", "X", "x", "images"), ("targets", "y", "labels", "target")


@dataclass(frozen=True)
class _Address:
    """A source taken apart: what follows the scheme, the options after "?", and the wanted image size."""

    place: str
    options: Mapping[str, str]
    image_size: int | None = None


@dataclass(frozen=True)
class _Contents:
    """What a source holds, one entry per sample in its own order; `load` gives the inputs of some locations."""

    sha256: str
    classes: Sequence[str]
    targets: Sequence[int]
    ids: Sequence[str]
    locations: Sequence[str]
    load: Callable[[Sequence[str], tuple[int, ...] | None], Array]
    subjects: Sequence[str | None] | None = None
    splits: Sequence[str] | None = None


def make_manifest(
    source: str, *, name: str = "", test_share: float = 0.2, seed: int = 0, image_size: int | None = None
) -> Manifest:
    """The manifest of everything in a source.

    Args:
        source: As in this module's docstring: "digits", "npz:/data/set.npz".
        name: For people; taken from the source when empty.
        test_share: Share of each class that becomes the test split where the source has no split; in (0, 1).
        seed: Of that draw; >= 0.
        image_size: Height and width that the images of a folder get; needed when they differ.

    Raises:
        UsageError: For an unknown source or option.
        DataError: For files that are missing, damaged, too large, or do not fit together.
    """
    if not 0 < test_share < 1 or seed < 0 or (image_size is not None and not 1 <= image_size <= 4096):
        wanted = "test_share in (0, 1), seed 0 or more and image_size in 1..4096"
        raise UsageError(f"a manifest needs {wanted}, got {test_share}, {seed} and {image_size}")
    contents = _read(source, image_size)
    splits = contents.splits
    if splits is None:
        splits = _drawn_splits(np.asarray(contents.targets), test_share, seed)
    inputs = contents.load(contents.locations, None)
    mean, std = _mean_and_std(inputs, np.flatnonzero(np.asarray(splits) == "train"))
    card = DataCard(
        source=source,
        task="classification",
        classes=tuple(contents.classes),
        input_shape=inputs.shape[1:],
        mean=mean,
        std=std,
        source_sha256=contents.sha256,
        name=name or Path(source.partition(":")[2].partition("?")[0]).stem or source,
    )
    columns = {
        "sample_id": contents.ids,
        "subject_id": contents.subjects if contents.subjects is not None else [None] * len(contents.ids),
        "target": [card.classes[index] for index in contents.targets],
        "split": splits,
        "location": contents.locations,
    }
    try:
        table = pa.table({column: pa.array(values, type=pa.string()) for column, values in columns.items()})
    except UnicodeEncodeError as error:
        raise DataError("a name or id in the source is not valid Unicode: rename it") from error
    return Manifest(card, table)


def open_samples(manifest: Manifest, rows: Array | Sequence[int] | None = None) -> TensorSamples:
    """The samples of a manifest, decoded and held in memory, in the order of `rows`.

    Args:
        manifest: As `make_manifest` gave it.
        rows: Row numbers of the manifest, shape (M,); all when None.

    Raises:
        DataError: When the source is not what the manifest was made from, or a row is out of range.
    """
    contents = _unchanged(manifest)
    wanted = np.arange(len(manifest)) if rows is None else np.asarray(rows, dtype=np.int64)
    if wanted.ndim != 1 or (len(wanted) and not 0 <= wanted.min() <= wanted.max() < len(manifest)):
        raise DataError(f"row numbers must be a list of numbers from 0 to {len(manifest) - 1}, one is not")
    column: Any = manifest.table["location"]
    inputs = contents.load(column.take(pa.array(wanted)).to_pylist(), manifest.card.input_shape)
    if inputs.shape[1:] != manifest.card.input_shape:
        raise DataError(f"the samples have shape {inputs.shape[1:]}, the card says {manifest.card.input_shape}")

    import torch

    from unlearning.data.samples import TensorSamples

    targets = torch.from_numpy(manifest.targets()[wanted])
    return TensorSamples(torch.from_numpy(inputs), targets, mean=manifest.card.mean, std=manifest.card.std)


def verify_source(manifest: Manifest) -> None:
    """Nothing, when the source still is what the manifest was made from.

    Args:
        manifest: With a `source_sha256`; without one there is nothing to compare.

    Raises:
        DataError: When the source is gone or has changed.
    """
    _unchanged(manifest)


def _unchanged(manifest: Manifest) -> _Contents:
    contents = _read(manifest.card.source, None)
    if manifest.card.source_sha256 not in ("", contents.sha256):
        raise DataError(f"{_shown(manifest.card.source)} has changed since its manifest was made: make a new manifest")
    return contents


def _read(source: str, image_size: int | None) -> _Contents:
    scheme, _, rest = source.partition(":")
    if scheme not in SOURCES:
        raise UsageError(f"no source {_shown(scheme)}{nearest(scheme[:80], SOURCES)} (valid: {', '.join(SOURCES)})")
    reader, known = SOURCES[scheme]
    place, _, query = rest.partition("?")
    options = dict(part.partition("=")[::2] for part in query.split("&")) if query else {}
    for option in options:
        if option not in known:
            hint = nearest(option[:80], known) or f" (valid: {', '.join(known) or 'none'})"
            raise UsageError(f"{scheme} has no option {_shown(option)}{hint}")
    if bool(place) != (scheme != "digits"):
        example = "digits" if scheme == "digits" else f"{scheme}:PLACE"
        raise UsageError(f'the source {_shown(source)} is incomplete or has too much: write "{example}"')
    if image_size is not None and scheme != "folder":
        raise UsageError(f"image_size is for folders of images, {scheme} has a size of its own: leave it out")
    contents = reader(_Address(place, options, image_size))
    if not 0 < len(contents.ids) <= MOST_ROWS:
        raise DataError(f"{_shown(source)} holds {len(contents.ids)} samples, a data set has 1 to {MOST_ROWS}")
    return contents


# Sources


def _digits(address: _Address) -> _Contents:
    from sklearn.datasets import load_digits

    data = load_digits()
    inputs = ((data.images.astype(np.int64) * 255 + 8) // 16).astype(np.uint8)[:, None]  # 0..16 to 0..255, half goes up
    targets = data.target.astype(np.int64)
    return _Contents(
        sha256=_sha256(inputs, targets),
        classes=[str(digit) for digit in range(10)],
        targets=targets.tolist(),
        ids=[f"digits-{row:04d}" for row in range(len(inputs))],
        locations=_numbers(len(inputs)),
        load=_loader(inputs),
    )


def _torchvision(address: _Address) -> _Contents:
    name, root = address.place, address.options.get("root", "")
    valid = ("MNIST", "FashionMNIST", "CIFAR10", "CIFAR100", "SVHN")
    if name not in valid:
        raise UsageError(f"no torchvision set {_shown(name)}{nearest(name[:80], valid)} (valid: {', '.join(valid)})")
    if not root:
        raise UsageError(f'torchvision needs the folder of the files: write "torchvision:{name}?root=FOLDER"')

    from torchvision import datasets

    parts = {}
    for split in ("train", "test"):
        which = {"split": split} if name == "SVHN" else {"train": split == "train"}
        try:
            part = getattr(datasets, name)(root, download=False, **which)
        except (RuntimeError, ValueError, AssertionError, OSError, KeyError, TypeError, EOFError) as error:
            reason = f"({type(error).__name__}); nothing is downloaded: put torchvision's files there first"
            raise DataError(f"{name} is not, or not whole, in the folder {_shown(root)} {reason}") from error
        pixels = np.asarray(part.data)
        if pixels.ndim == 3:
            pixels = pixels[:, None]
        elif name != "SVHN":
            pixels = pixels.transpose(0, 3, 1, 2)
        targets = np.asarray(part.labels if name == "SVHN" else part.targets, dtype=np.int64)
        parts[split] = np.ascontiguousarray(pixels), targets
        classes = part.classes if name in ("FashionMNIST", "CIFAR10", "CIFAR100") else [str(n) for n in range(10)]
    for pixels, targets in parts.values():
        if len(pixels) != len(targets) or not len(targets) or not 0 <= targets.min() <= targets.max() < len(classes):
            raise DataError(f"the images and labels of {name} in {_shown(root)} do not fit together: fetch them again")
    inputs, targets = (np.concatenate(both) for both in zip(*parts.values(), strict=True))
    sizes = {split: len(part_targets) for split, (_, part_targets) in parts.items()}
    return _Contents(
        sha256=_sha256(inputs, targets),
        classes=classes,
        targets=targets.tolist(),
        ids=[f"{split}-{row:05d}" for split, size in sizes.items() for row in range(size)],
        locations=_numbers(len(inputs)),
        load=_loader(inputs),
        splits=[split for split, size in sizes.items() for _ in range(size)],
    )


def _folder(address: _Address) -> _Contents:
    root = Path(address.place)
    tops = [entry.name for entry in _entries(root, root, folders=True)]
    divided = {"train", "test"} <= set(tops)
    if not set(tops).isdisjoint(SPLITS) and not (divided and set(tops) <= set(SPLITS)):
        raise DataError(f"{_shown(str(root))} needs train and test folders and no other, or class folders only")
    files: list[tuple[str, str, str]] = []  # relative path, class, split
    listing = hashlib.sha256()
    for top in [top for top in SPLITS if top in tops] if divided else [""]:
        for folder in _entries(root / top, root, folders=True):
            before = len(files)
            for file in _entries(folder, root, folders=False):
                path = file.relative_to(root).as_posix()
                files.append((path, folder.name, top))
            if len(files) == before:
                raise DataError(f"the class folder {_shown(folder.name)} holds no images: fill it or remove it")
    files.sort()
    for path, _, _ in files:
        text = path.encode(errors="surrogatepass")
        listing.update(f"{len(text)}:".encode() + text + f":{(root / path).stat().st_size};".encode())
    classes = sorted({name for _, name, _ in files})
    index = {name: number for number, name in enumerate(classes)}
    paths = [path for path, _, _ in files]
    return _Contents(
        sha256=listing.hexdigest(),
        classes=classes,
        targets=[index[name] for _, name, _ in files],
        ids=paths,
        locations=paths,
        load=lambda wanted, shape: _images(root, paths, wanted, shape, address.image_size),
        splits=[split for _, _, split in files] if divided else None,
    )


def _npz(address: _Address) -> _Contents:
    path = Path(address.place)
    arrays = _npz_arrays(path)
    inputs, targets = (_one_of(arrays, names, path) for names in (_INPUTS, _TARGETS))
    if inputs.dtype.kind not in "biuf" or inputs.ndim not in (2, 3, 4) or not inputs.size:
        raise DataError(f"the inputs of {_shown(str(path))} must be numbers of shape (N, D), (N, H, W) or (N, C, H, W)")
    if inputs.ndim == 3:
        inputs = inputs[:, None]
    elif inputs.ndim == 4 and inputs.shape[1] not in (1, 3) and inputs.shape[3] in (1, 3):
        inputs = inputs.transpose(0, 3, 1, 2)  # channels came last
    texts: dict[str, list[Any]] = {
        name: _texts(arrays[name], name) for name in ("sample_id", "subject_id", "split") if name in arrays
    }
    names = _texts(arrays["classes"], "classes") if "classes" in arrays else None
    return _tabular(_sha256_of_file(path), inputs, targets, texts, names)


def _parquet(address: _Address) -> _Contents:
    target = address.options.get("target_column", "target")
    extra: tuple[str, ...] = ("sample_id", "subject_id", "split")
    path = Path(address.place)

    def columns(schema: pa.Schema) -> list[str]:
        if len(set(schema.names)) != len(schema.names) or target not in schema.names:
            hint = nearest(target[:80], schema.names)
            raise DataError(f"the table needs different column names and a target column {_shown(target)}{hint}")
        for name in schema.names:
            kind = schema.field(name).type
            number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
            if name not in (target, *extra) and not number:
                raise DataError(f"the feature {_shown(name)} must be numeric, its type is {str(kind)[:40]}: convert it")
        if set(schema.names) <= {target, *extra}:
            raise DataError("the table has no feature columns: add numeric columns")
        return list(schema.names)

    table = read_parquet(path, what=f"the table {_shown(str(path))}", columns=columns)
    features = [name for name in table.column_names if name not in (target, *extra)]
    if table.num_rows * len(features) * 4 > _MOST_BYTES:
        raise DataError(f"the table has over {_MOST_BYTES} bytes of features: split the data set")
    inputs = np.empty((table.num_rows, len(features)), dtype=np.float32)
    for number, name in enumerate(features):
        if table[name].null_count:
            raise DataError(f"the feature {_shown(name)} has missing values: fill them in or leave the column out")
        with np.errstate(over="ignore"):
            inputs[:, number] = np.asarray(table[name].cast(pa.float64(), safe=False))
    texts = {name: _column_texts(table[name], name) for name in extra if name in table.column_names}
    column = table[target]
    if column.null_count:
        raise DataError("the target column has missing values: leave those rows out")
    targets = np.asarray(column) if not _wordy(column.type) else np.array(_column_texts(column, target), dtype=object)
    return _tabular(_sha256_of_file(path), inputs, targets, texts, None)


SOURCES: dict[str, tuple[Callable[[_Address], _Contents], tuple[str, ...]]] = {
    "digits": (_digits, ()),
    "torchvision": (_torchvision, ("root",)),
    "folder": (_folder, ()),
    "npz": (_npz, ()),
    "parquet": (_parquet, ("target_column",)),
}
"""Scheme to its reader and the options that it knows."""


# Parts of them


def _tabular(
    sha256: str, inputs: Array, targets: Array, texts: Mapping[str, list[Any]], names: list[str] | None
) -> _Contents:
    """Contents of inputs and targets that came as arrays; uint8 stays, every other number becomes float32."""
    for name, length in {"targets": len(targets), **{name: len(values) for name, values in texts.items()}}.items():
        if length != len(inputs) or targets.ndim != 1:
            raise DataError(f"{name} must be a list with one value for each of the {len(inputs)} inputs, got {length}")
    if not inputs.size:
        raise DataError("the source holds no samples: a data set has 1 or more")
    if inputs.dtype != np.uint8:
        with np.errstate(over="ignore"):
            inputs = inputs.astype(np.float32)
        finite = np.isfinite(inputs).reshape(len(inputs), -1).all(axis=1)
        if not finite.all():
            raise DataError(f"the inputs of row {int(np.argmin(finite))} are not finite float32 numbers: mend the row")
    classes, indices = _classes(targets, names)
    if "sample_id" in texts and None in texts["sample_id"]:
        raise DataError(f"row {texts['sample_id'].index(None)} has no sample_id: give every row one or leave it out")
    return _Contents(
        sha256=sha256,
        classes=classes,
        targets=indices,
        ids=texts.get("sample_id") or [f"row-{row:07d}" for row in range(len(inputs))],
        locations=_numbers(len(inputs)),
        load=_loader(np.ascontiguousarray(inputs)),
        subjects=texts.get("subject_id"),
        splits=texts.get("split"),
    )


def _classes(targets: Array, names: list[str] | None) -> tuple[list[str], list[int]]:
    """Class names, sorted as numbers or as words, and the index of each target."""
    whole = targets.dtype.kind == "f" and bool(((targets == np.floor(targets)) & (np.abs(targets) < 2**53)).all())
    if whole or targets.dtype.kind == "b":
        targets = targets.astype(np.int64)
    if targets.dtype.kind not in "iuUO":
        raise DataError("targets must be whole numbers or words: this task is classification")
    if names is not None and targets.dtype.kind in "iu":
        if not len(targets) or not 0 <= targets.min() <= targets.max() < len(names):
            raise DataError(f"targets must be indices of the {len(names)} classes, counted from 0: one is not")
        return names, [int(index) for index in targets]
    values, indices = np.unique(targets, return_inverse=True)
    found = [str(value) for value in values.tolist()]
    if names is None:
        return found, indices.tolist()
    if not set(found) <= set(names):
        raise DataError(f"targets must be among the {len(names)} classes: one is not")
    place = [names.index(name) for name in found]
    return names, [place[index] for index in indices]


def _npz_arrays(path: Path) -> dict[str, Array]:
    """The arrays that a data set may have, out of a zip file whose promises were measured first."""
    what = _shown(str(path))
    arrays: dict[str, Array] = {}
    try:
        if path.stat().st_size > _MOST_FILE_BYTES:
            raise DataError(f"{what} is larger than {_MOST_FILE_BYTES} bytes: split the data set")
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            unpacked = sum(entry.file_size for entry in entries)
            if len(entries) > _MOST_ENTRIES or unpacked > _MOST_BYTES:
                most = f"{_MOST_ENTRIES} arrays and {_MOST_BYTES} bytes"
                raise DataError(f"{what} unpacks to {len(entries)} arrays and {unpacked} bytes, the most is {most}")
            for entry in entries:
                name = entry.filename.removesuffix(".npy")
                if name in (*_INPUTS, *_TARGETS, "sample_id", "subject_id", "split", "classes"):
                    if name in arrays:
                        raise DataError(f"{what} has the array {name} twice: save it again")
                    with archive.open(entry) as stream:
                        arrays[name] = read_array(stream, entry.file_size, what=f"the array {name} of {what}")
    except (OSError, ValueError, zipfile.BadZipFile, RuntimeError, EOFError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        raise DataError(f"{what} cannot be read ({reason}): save it again with numpy.savez") from error
    return arrays


def _one_of(arrays: Mapping[str, Array], names: Sequence[str], path: Path) -> Array:
    found = [name for name in names if name in arrays]
    if len(found) != 1:
        came = " and ".join(found) or "none"
        raise DataError(f"{_shown(str(path))} needs exactly one of the arrays {', '.join(names)}; it has {came}")
    array = arrays[found[0]]
    if not array.ndim:
        raise DataError(f"the array {found[0]} of {_shown(str(path))} is a single value: save one value per sample")
    return array


def _texts(array: Array, what: str) -> list[Any]:
    if array.ndim != 1 or array.dtype.kind not in "iuU":
        raise DataError(f"{what} must be a list of words or whole numbers: convert it before saving")
    return [str(value) for value in array.tolist()]


def _wordy(kind: pa.DataType) -> bool:
    return not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _column_texts(column: Any, what: str) -> list[Any]:
    if pa.types.is_integer(column.type):
        column = column.cast(pa.string())
    texts: list[Any] = decoded(column, what=f"the column {_shown(what)}").to_pylist()
    return texts


def _entries(folder: Path, root: Path, *, folders: bool) -> Iterator[Path]:
    """The sub-folders, or the images, of a folder in order; hidden ones are passed over, others are refused."""
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
        for entry in entries:
            if entry.is_symlink() and not entry.resolve(strict=True).is_relative_to(root.resolve()):
                raise DataError(f"a link in {_shown(str(folder))} leaves the data set's folder: copy what it points at")
            mode = entry.stat().st_mode
            if folders and not stat.S_ISDIR(mode):
                raise DataError(f"{_shown(str(folder))} must hold folders only, there is a file: move it away")
            if not folders and not (stat.S_ISREG(mode) and entry.suffix.lower() in _IMAGE_SUFFIXES):
                valid = ", ".join(sorted(_IMAGE_SUFFIXES))
                raise DataError(f"the class folder {_shown(str(folder))} must hold images only ({valid})")
            yield entry
    except (OSError, RuntimeError) as error:  # RuntimeError: a link to itself
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise DataError(f"the folder {_shown(str(folder))} cannot be read ({reason})") from error


def _images(
    root: Path, paths: Sequence[str], wanted: Sequence[str], shape: tuple[int, ...] | None, image_size: int | None
) -> Array:
    """Pixels of the wanted images, shape (N, C, H, W), uint8; `shape` None finds C, H and W out from all of them."""
    number = {path: row for row, path in enumerate(paths)}
    if not all(path in number for path in wanted):
        raise DataError("a location in the manifest is no image of its folder: make a new manifest")
    if shape is None:
        headers = [_opened(root / path, number[path], lambda image: (image.mode, image.size)) for path in wanted]
        channels = 1 if all(mode in _ONE_CHANNEL for mode, _ in headers) else 3
        sizes = {size for _, size in headers}
        if image_size is None and len(sizes) > 1:
            raise DataError(f"the images have {len(sizes)} different sizes: give image_size")
        width, height = next(iter(sizes)) if image_size is None else (image_size, image_size)
        shape = channels, height, width
    if len(shape) != 3 or shape[0] not in (1, 3) or len(wanted) * int(np.prod(shape)) > _MOST_BYTES:
        raise DataError(f"{len(wanted)} images of shape {shape} are no images, or over {_MOST_BYTES} bytes")
    channels, height, width = shape
    pixels = np.empty((len(wanted), height, width, channels), dtype=np.uint8)

    def decode(image: Image.Image) -> Array:
        image = image.convert("L" if channels == 1 else "RGB")
        if image.size != (width, height):
            image = image.resize((width, height))
        return np.asarray(image).reshape(height, width, channels)

    for row, path in enumerate(wanted):
        pixels[row] = _opened(root / path, number[path], decode)
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


def _opened(path: Path, number: int, use: Callable[[Image.Image], Any]) -> Any:
    """What `use` makes of an image whose header was found harmless; the image's number stands for its name."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=_IMAGE_FORMATS) as image:
                if image.width * image.height > _MOST_PIXELS:
                    raise DataError(f"image {number} of the sorted list has over {_MOST_PIXELS} pixels: shrink it")
                if image.mode not in _ONE_CHANNEL + _COLOURED:
                    raise DataError(f"image {number} of the sorted list is no 8-bit image: convert it")
                return use(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = f"({type(error).__name__}): replace it"
        raise DataError(f"image {number} of the sorted list is damaged, too large or no image {reason}") from error


def _drawn_splits(targets: Array, test_share: float, seed: int) -> list[str]:
    """Of each class of two or more, the share (at least one, never all) goes to the test split."""
    splits = np.full(len(targets), "train", dtype="U5")
    for index in np.unique(targets):
        rows = np.flatnonzero(targets == index)
        if len(rows) > 1:
            size = min(max(round(test_share * len(rows)), 1), len(rows) - 1)
            splits[np.random.default_rng([seed, int(index)]).permutation(rows)[:size]] = "test"
    result: list[str] = splits.tolist()
    return result


def _mean_and_std(inputs: Array, rows: Array) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per channel or feature over the given rows, to seven digits; a deviation of 0 counts as 1.

    Pixels are summed as integers, so every machine finds the same numbers.
    """
    if not len(rows):
        raise DataError("the source has no train rows: it needs some to train on")
    axes = (0, *range(2, inputs.ndim))
    scale, kind = (255.0, np.int64) if inputs.dtype == np.uint8 else (1.0, np.float64)
    step = max(1, (1 << 22) // max(1, inputs[0].size))
    chunks = [rows[start : start + step] for start in range(0, len(rows), step)]
    count = len(rows) * int(np.prod(inputs.shape[2:]))
    shift = 0 if kind is np.int64 else sum(inputs[part].sum(axis=axes, dtype=kind) for part in chunks) / count
    shift = np.reshape(shift, (1, -1) + (1,) * (inputs.ndim - 2)).astype(kind)
    total = np.zeros(inputs.shape[1], dtype=kind)
    squares = np.zeros(inputs.shape[1], dtype=kind)
    for part in chunks:
        values = inputs[part].astype(kind) - shift
        total += values.sum(axis=axes)
        squares += (values * values).sum(axis=axes)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0)) / scale
    mean = (mean + shift.reshape(-1)) / scale
    return tuple(float(f"{value:.7g}") for value in mean), tuple(float(f"{value:.7g}") or 1.0 for value in std)


def _loader(inputs: Array) -> Callable[[Sequence[str], tuple[int, ...] | None], Array]:
    """The loader of a source that is one array: a location is a row number of it."""

    def load(wanted: Sequence[str], shape: tuple[int, ...] | None) -> Array:
        good = all(text.isascii() and text.isdigit() and len(text) < 10 for text in wanted)
        rows = np.array([int(text) for text in wanted] if good else [], dtype=np.int64)
        if not good or (len(rows) and rows.max() >= len(inputs)):
            raise DataError(f"a location in the manifest is no row number below {len(inputs)}: make a new manifest")
        return inputs[rows]

    return load


def _numbers(count: int) -> list[str]:
    return [str(row) for row in range(count)]


def _sha256(*arrays: Array) -> str:
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype.str}{array.shape}".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def _sha256_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _shown(text: str) -> str:
    """A name for a message: on one line, in quotes, not too long."""
    return ascii(text if len(text) <= 160 else f"{text[:157]}...")
