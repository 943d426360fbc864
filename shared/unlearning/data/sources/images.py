"""Images: the digits of scikit-learn, what torchvision keeps, folders of classes, and faces with ages."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from unlearning.config import nearest
from unlearning.data.manifest import SPLITS
from unlearning.data.sources import objects
from unlearning.data.sources.contents import (
    Address,
    Contents,
    numbered,
    numbers_of,
    read_file,
    row_loader,
    sha256_of,
    shown,
)
from unlearning.data.sources.pictures import SUFFIXES, classed, pictures
from unlearning.data.sources.tables import read_columns, words_of
from unlearning.errors import DataError, UsageError


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
    """Images in a folder for each class, perhaps below train and test; on disk, or as objects in a store."""
    if "://" in address.place:
        return objects.images(address)
    root = Path(address.place)
    tops = [entry.name for entry in _entries(root, root, folders=True)]
    divided = {"train", "test"} <= set(tops)
    if not set(tops).isdisjoint(SPLITS) and not (divided and set(tops) <= set(SPLITS)):
        raise DataError(f"{shown(str(root))} needs train and test folders and no other, or class folders only")
    files: list[tuple[str, str, str]] = []  # relative path, class, split
    for top in [top for top in SPLITS if top in tops] if divided else [""]:
        for folder in _entries(root / top, root, folders=True):
            before = len(files)
            for file in _entries(folder, root, folders=False):
                path = file.relative_to(root).as_posix()
                files.append((path, folder.name, top))
            if len(files) == before:
                raise DataError(f"the class folder {shown(folder.name)} holds no images: fill it or remove it")
    sizes = {path: str((root / path).stat().st_size) for path, _, _ in files}
    return classed(files, sizes, pictures(root.joinpath, [path for path, _, _ in sorted(files)], address.image_size))


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
        if not (inside and place.suffix.lower() in SUFFIXES and (root / place).is_file()):
            raise DataError(f"row {paths.index(path)} of {shown(str(listing))} names no image in its folder: mend it")
    splits = words_of(table[names["split"]], names["split"]) if names["split"] in table else None
    stored = pictures(root.joinpath, paths, address.image_size)
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
            if not folders and not (stat.S_ISREG(mode) and entry.suffix.lower() in SUFFIXES):
                valid = ", ".join(sorted(SUFFIXES))
                raise DataError(f"the class folder {shown(str(folder))} must hold images only ({valid})")
            yield entry
    except (OSError, RuntimeError) as error:  # RuntimeError: a link to itself
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise DataError(f"the folder {shown(str(folder))} cannot be read ({reason})") from error
