"""Images: the digits of scikit-learn, what torchvision keeps, folders of classes, and faces with ages."""

from __future__ import annotations

import hashlib
import stat
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unlearning.config import nearest
from unlearning.data.manifest import SPLITS
from unlearning.data.sources.contents import (
    MOST_BYTES,
    Address,
    Array,
    Contents,
    Stored,
    numbered,
    numbers_of,
    read_file,
    row_loader,
    sha256_of,
    shown,
)
from unlearning.data.sources.tables import read_columns, words_of
from unlearning.errors import DataError, UsageError

if TYPE_CHECKING:
    from PIL import Image

_MOST_PIXELS = 64_000_000
_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
_IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
_ONE_CHANNEL, _COLOURED = ("1", "L", "LA"), ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")


def digits(address: Address) -> Contents:
    """The 8 x 8 digits of scikit-learn, scaled to 0..255."""
    from sklearn.datasets import load_digits

    data = load_digits()
    inputs = ((data.images.astype(np.int64) * 255 + 8) // 16).astype(np.uint8)[:, None]  # 0..16 to 0..255, half goes up
    targets = data.target.astype(np.int64)
    return Contents(
        sha256=sha256_of(inputs, targets),
        classes=[str(digit) for digit in range(10)],
        targets=targets.tolist(),
        ids=[f"digits-{row:04d}" for row in range(len(inputs))],
        locations=numbered(len(inputs)),
        load=row_loader(inputs),
    )


def torchvision(address: Address) -> Contents:
    """MNIST, FashionMNIST, CIFAR10, CIFAR100 or SVHN where torchvision keeps them."""
    name, root = address.place, address.options.get("root", "")
    valid = ("MNIST", "FashionMNIST", "CIFAR10", "CIFAR100", "SVHN")
    if name not in valid:
        raise UsageError(f"no torchvision set {shown(name)}{nearest(name[:80], valid)} (valid: {', '.join(valid)})")
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
            raise DataError(f"{name} is not, or not whole, in the folder {shown(root)} {reason}") from error
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
            raise DataError(f"the images and labels of {name} in {shown(root)} do not fit together: fetch them again")
    inputs, targets = (np.concatenate(both) for both in zip(*parts.values(), strict=True))
    sizes = {split: len(part_targets) for split, (_, part_targets) in parts.items()}
    return Contents(
        sha256=sha256_of(inputs, targets),
        classes=classes,
        targets=targets.tolist(),
        ids=[f"{split}-{row:05d}" for split, size in sizes.items() for row in range(size)],
        locations=numbered(len(inputs)),
        load=row_loader(inputs),
        splits=[split for split, size in sizes.items() for _ in range(size)],
    )


def folder(address: Address) -> Contents:
    """Images in a folder for each class, perhaps below train and test."""
    root = Path(address.place)
    tops = [entry.name for entry in _entries(root, root, folders=True)]
    divided = {"train", "test"} <= set(tops)
    if not set(tops).isdisjoint(SPLITS) and not (divided and set(tops) <= set(SPLITS)):
        raise DataError(f"{shown(str(root))} needs train and test folders and no other, or class folders only")
    files: list[tuple[str, str, str]] = []  # relative path, class, split
    listing = hashlib.sha256()
    for top in [top for top in SPLITS if top in tops] if divided else [""]:
        for folder in _entries(root / top, root, folders=True):
            before = len(files)
            for file in _entries(folder, root, folders=False):
                path = file.relative_to(root).as_posix()
                files.append((path, folder.name, top))
            if len(files) == before:
                raise DataError(f"the class folder {shown(folder.name)} holds no images: fill it or remove it")
    files.sort()
    for path, _, _ in files:
        text = path.encode(errors="surrogatepass")
        listing.update(f"{len(text)}:".encode() + text + f":{(root / path).stat().st_size};".encode())
    classes = sorted({name for _, name, _ in files})
    index = {name: number for number, name in enumerate(classes)}
    paths = [path for path, _, _ in files]
    stored = pictures(root, paths, address.image_size)
    return Contents(
        sha256=listing.hexdigest(),
        classes=classes,
        targets=[index[name] for _, name, _ in files],
        ids=paths,
        locations=paths,
        load=lambda wanted, shape: stored(wanted, shape)[np.arange(len(wanted))],
        splits=[split for _, _, split in files] if divided else None,
        stored=stored,
    )


FACE_OPTIONS = ("images", "path", "target", "split", "subject", "unit")


def faces(address: Address) -> Contents:
    """Images with a number each, listed in a csv file: its columns `path`, `age`, `split` and perhaps a subject.

    Options: `images`, the folder that paths start from (the csv's own when not given); `path`, `target`, `split` and
    `subject`, names of the columns; `unit` of the target, years when not given. The split "val" counts as validation.
    """
    listing = Path(address.place)
    root = Path(address.options.get("images", str(listing.parent)))
    table = read_columns(listing)
    names = {role: address.options.get(role, role) for role in ("path", "split", "subject")}
    names["target"] = address.options.get("target", "age")
    for role, name in names.items():
        if name not in table and (role in ("path", "target") or role in address.options):
            raise DataError(f"{shown(str(listing))} has no column {shown(name)}{nearest(name[:80], table)}")
    paths = words_of(table[names["path"]], names["path"])
    for path in paths:
        place = Path(path)
        inside = not place.is_absolute() and ".." not in place.parts
        if not (inside and place.suffix.lower() in _IMAGE_SUFFIXES and (root / place).is_file()):
            raise DataError(f"row {paths.index(path)} of {shown(str(listing))} names no image in its folder: mend it")
    splits = words_of(table[names["split"]], names["split"]) if names["split"] in table else None
    stored = pictures(root, paths, address.image_size)
    return Contents(
        sha256=sha256_of(np.frombuffer(read_file(listing), dtype=np.uint8), np.array([_size(root, p) for p in paths])),
        classes=[],
        targets=numbers_of(np.asarray(table[names["target"]]), f"the column {shown(names['target'])}"),
        ids=paths,
        locations=paths,
        load=lambda wanted, shape: stored(wanted, shape)[np.arange(len(wanted))],
        stored=stored,
        subjects=words_of(table[names["subject"]], names["subject"]) if names["subject"] in table else None,
        splits=["validation" if split == "val" else split for split in splits] if splits else None,
        card={"target_name": names["target"], "target_unit": address.options.get("unit", "years")},
    )


def _size(root: Path, path: str) -> int:
    return (root / path).stat().st_size


def _entries(folder: Path, root: Path, *, folders: bool) -> Iterator[Path]:
    """The sub-folders, or the images, of a folder in order; hidden ones are passed over, others are refused."""
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
        for entry in entries:
            if entry.is_symlink() and not entry.resolve(strict=True).is_relative_to(root.resolve()):
                raise DataError(f"a link in {shown(str(folder))} leaves the data set's folder: copy what it points at")
            mode = entry.stat().st_mode
            if folders and not stat.S_ISDIR(mode):
                raise DataError(f"{shown(str(folder))} must hold folders only, there is a file: move it away")
            if not folders and not (stat.S_ISREG(mode) and entry.suffix.lower() in _IMAGE_SUFFIXES):
                valid = ", ".join(sorted(_IMAGE_SUFFIXES))
                raise DataError(f"the class folder {shown(str(folder))} must hold images only ({valid})")
            yield entry
    except (OSError, RuntimeError) as error:  # RuntimeError: a link to itself
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise DataError(f"the folder {shown(str(folder))} cannot be read ({reason})") from error


def pictures(
    root: Path, paths: Sequence[str], image_size: int | None
) -> Callable[[Sequence[str], tuple[int, ...] | None], Stored]:
    """What gives the pixels of some images, each decoded when it is asked for: shape (N, C, H, W), uint8.

    Without a shape, C, H and W are found out from the headers of all that are wanted.

    Args:
        root: Where the paths start.
        paths: Of all images, in their order, which is how messages number them.
        image_size: H and W that they get, whatever they have; None: they must agree.
    """
    number = {path: row for row, path in enumerate(paths)}

    def stored(wanted: Sequence[str], shape: tuple[int, ...] | None) -> Stored:
        if not all(path in number for path in wanted):
            raise DataError("a location in the manifest is no image of its folder: make a new manifest")
        if shape is None:
            headers = {_opened(root / path, number[path], lambda image: (image.mode, image.size)) for path in wanted}
            channels = 1 if all(mode in _ONE_CHANNEL for mode, _ in headers) else 3
            sizes = {size for _, size in headers}
            if image_size is None and len(sizes) > 1:
                raise DataError(f"the images have {len(sizes)} different sizes: give image_size")
            width, height = next(iter(sizes)) if image_size is None else (image_size, image_size)
            shape = channels, height, width
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise DataError(f"{len(wanted)} images of shape {shape} are no images")
        fixed = shape

        def read(rows: Array) -> Array:
            return _decoded(root, [wanted[row] for row in rows.tolist()], number, fixed)

        return Stored(read, len(wanted), shape, np.uint8)

    return stored


def _decoded(root: Path, wanted: Sequence[str], number: Mapping[str, int], shape: tuple[int, ...]) -> Array:
    """Pixels of the wanted images, shape (N, C, H, W), uint8."""
    channels, height, width = shape
    if len(wanted) * int(np.prod(shape)) > MOST_BYTES:
        raise DataError(f"{len(wanted)} images of shape {shape} are over {MOST_BYTES} bytes")
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
