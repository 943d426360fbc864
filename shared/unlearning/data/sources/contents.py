"""What the readers of all sources give, and the small parts that they share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from unlearning.config import nearest
from unlearning.data.card import Scaling
from unlearning.errors import DataError, UsageError

if TYPE_CHECKING:
    from unlearning.data.samples import Samples

Array: TypeAlias = np.ndarray[Any, Any]
Load: TypeAlias = Callable[[Sequence[str], "tuple[int, ...] | None"], Array]

MOST_BYTES = 8 << 30
MOST_FILE_BYTES = 2 << 30
IN_MEMORY = 1 << 30
"""Bytes of inputs up to which they are held in memory; more are read from the disk batch by batch."""
TASKS = ("classification", "regression")


class Listed(Protocol):
    """An object as a listing shows it."""

    @property
    def key(self) -> str:
        """Relative to its place."""

    @property
    def size(self) -> int:
        """In bytes."""

    @property
    def tag(self) -> str:
        """Another one whenever the content is another."""


class Objects(Protocol):
    """Where a source's files are objects."""

    def listed(self) -> Iterable[Listed]:
        """All of them, sorted by key."""

    def read(self, found: Any) -> bytes:
        """The content of one, as long as it still is what was listed; may be called by several threads."""


OpenObjects: TypeAlias = Callable[[str], Objects]
"""What opens the place of a source that is an address: "s3://bucket/prefix"."""


@dataclass(frozen=True)
class Address:
    """A source taken apart: what follows the scheme, the options after "?", and the wanted image size.

    Attributes:
        objects: Opens a place that is an address; None where such places cannot be read.
    """

    place: str
    options: Mapping[str, str]
    image_size: int | None = None
    objects: OpenObjects | None = None

    def count(self, option: str, default: int, *, least: int = 1, most: int = 100_000) -> int:
        """An option that is a whole number."""
        text = self.options.get(option, str(default))
        if not (text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most):
            raise UsageError(f"{option} must be a whole number from {least} to {most}, got {shown(text)}")
        return int(text)

    def choice(self, option: str, valid: Sequence[str]) -> str:
        """An option that is one of some words; the first when it is not given."""
        text = self.options.get(option, valid[0])
        if text not in valid:
            raise UsageError(f"no {option} {shown(text)}{nearest(text[:80], valid)} (valid: {', '.join(valid)})")
        return text

    def listed(self, option: str) -> list[str]:
        """An option that is a list with commas."""
        return [part for part in self.options.get(option, "").split(",") if part]


@dataclass(frozen=True)
class Contents:
    """What a source holds, one entry per sample in its own order.

    Attributes:
        sha256: Of all of it.
        classes: Names; empty for numbers to predict.
        targets: Class indices, or the numbers.
        ids: Sample ids.
        locations: What `load` takes.
        load: The inputs (M, ...) of some locations, in the given shape where sizes may be chosen.
        subjects: Whom each sample is about.
        splits: "train", "test" or "validation", where the source itself has them or time decides.
        card: More fields of the data card.
        shape: Of one sample, where `load` would be dear.
        fit: The scaling from the inputs at some locations; from what `load` gives when None.
        open: Samples of some locations under a scaling; `TensorSamples` of what `load` gives when None.
        stored: The inputs of some locations, in the given shape, where they need not be in memory all at once.
    """

    sha256: str
    classes: Sequence[str]
    targets: Sequence[int] | Sequence[float]
    ids: Sequence[str]
    locations: Sequence[str]
    load: Load
    subjects: Sequence[str | None] | None = None
    splits: Sequence[str] | None = None
    card: Mapping[str, Any] | None = None
    shape: tuple[int, ...] | None = None
    fit: Callable[[Sequence[str]], Scaling] | None = None
    open: Callable[[Sequence[str], Scaling], Samples] | None = None
    stored: Callable[[Sequence[str], tuple[int, ...] | None], Stored] | None = None


class Stored:
    """Inputs that are read when they are asked for: as an array, `inputs[rows]`, with as much of it in memory.

    Args:
        read: The inputs of some rows, shape (M, *shape).
        count: How many rows there are.
        shape: Of one.
        dtype: Of their values.
    """

    def __init__(
        self, read: Callable[[Array], Array], count: int, shape: tuple[int, ...], dtype: np.dtype[Any] | type
    ) -> None:
        self.read, self.shape, self.dtype = read, (count, *shape), np.dtype(dtype)
        self.ndim = len(self.shape)

    @property
    def nbytes(self) -> int:
        """Of all rows."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __len__(self) -> int:
        """How many rows there are."""
        return self.shape[0]

    def __getitem__(self, rows: int | Array) -> Array:
        """A row, or rows by their numbers."""
        if isinstance(rows, int):
            return np.asarray(self.read(np.array([rows]))[0])
        return self.read(rows)


def classes_of(targets: Array, names: list[str] | None) -> tuple[list[str], list[int]]:
    """Class names, sorted as numbers or as words, and the index of each target."""
    whole = targets.dtype.kind == "f" and bool(((targets == np.floor(targets)) & (np.abs(targets) < 2**53)).all())
    if whole or targets.dtype.kind == "b":
        targets = targets.astype(np.int64)
    if targets.dtype.kind not in "iuUO":
        raise DataError(
            'targets must be whole numbers or words: this task is classification (or add "task=regression")'
        )
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


def numbers_of(targets: Array, what: str, divide: float = 1.0) -> list[float]:
    """Targets of a regression, each a finite float32 number, divided by a constant."""
    if targets.dtype.kind not in "biuf":
        raise DataError(f"{what} must be a number to predict, it is text: name a numeric target")
    with np.errstate(over="ignore"):
        values = (targets.astype(np.float64) / divide).astype(np.float32)
    if not np.isfinite(values).all():
        row = int(np.argmin(np.isfinite(values)))
        raise DataError(f"{what} is missing or no finite number in row {row}: mend the row or leave it out")
    return [float(value) for value in values]


def tabular(
    sha256: str,
    inputs: Array,
    targets: Array,
    texts: Mapping[str, list[Any]],
    names: list[str] | None,
    *,
    task: str = "classification",
    card: Mapping[str, Any] | None = None,
    missing: bool = False,
) -> Contents:
    """Contents of inputs and targets that came as arrays; uint8 stays, every other number becomes float32.

    Args:
        sha256: Of the source.
        inputs: Shape (N, ...).
        targets: Shape (N,).
        texts: Perhaps `sample_id`, `subject_id` and `split`, N words each.
        names: Of the classes, in their order; found out when None.
        task: "classification" or "regression".
        card: More fields of the data card.
        missing: Whether NaN stands for a missing value.

    Raises:
        DataError: When they do not fit together.
    """
    for name, length in {"targets": len(targets), **{name: len(values) for name, values in texts.items()}}.items():
        if length != len(inputs) or targets.ndim != 1:
            raise DataError(f"{name} must be a list with one value for each of the {len(inputs)} inputs, got {length}")
    if not inputs.size:
        raise DataError("the source holds no samples: a data set has 1 or more")
    if inputs.dtype != np.uint8:
        with np.errstate(over="ignore"):
            inputs = inputs.astype(np.float32)
        sound = np.isfinite(inputs) | np.isnan(inputs) if missing else np.isfinite(inputs)
        finite = sound.reshape(len(inputs), -1).all(axis=1)
        if not finite.all():
            raise DataError(f"the inputs of row {int(np.argmin(finite))} are not finite float32 numbers: mend the row")
    classes: list[str] = []
    if task == "regression":
        values: Sequence[int] | Sequence[float] = numbers_of(targets, "the target")
    else:
        classes, values = classes_of(targets, names)
    if "sample_id" in texts and None in texts["sample_id"]:
        raise DataError(f"row {texts['sample_id'].index(None)} has no sample_id: give every row one or leave it out")
    return Contents(
        sha256=sha256,
        classes=classes,
        targets=values,
        ids=texts.get("sample_id") or [f"row-{row:07d}" for row in range(len(inputs))],
        locations=numbered(len(inputs)),
        load=row_loader(np.ascontiguousarray(inputs)),
        subjects=texts.get("subject_id"),
        splits=texts.get("split"),
        card=card,
    )


def row_loader(inputs: Array) -> Load:
    """The loader of a source that is one array: a location is a row number of it."""

    def load(wanted: Sequence[str], shape: tuple[int, ...] | None) -> Array:
        return inputs[row_numbers(wanted, len(inputs))]

    return load


def row_numbers(wanted: Sequence[str], count: int) -> Array:
    """Locations as row numbers.

    Raises:
        DataError: When one is none below `count`.
    """
    good = all(text.isascii() and text.isdigit() and len(text) < 10 for text in wanted)
    rows = np.array([int(text) for text in wanted] if good else [], dtype=np.int64)
    if not good or (len(rows) and rows.max() >= count):
        raise DataError(f"a location in the manifest is no row number below {count}: make a new manifest")
    return rows


def numbered(count: int) -> list[str]:
    """Row numbers as locations."""
    return [str(row) for row in range(count)]


def sha256_of(*arrays: Array) -> str:
    """Of the arrays' types, shapes and bytes."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype.str}{array.shape}".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def sha256_of_file(path: Path) -> str:
    """Of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_file(path: Path) -> bytes:
    """The bytes of a file of at most 2 GiB.

    Raises:
        DataError: When it is missing, too large, or no file.
    """
    try:
        if path.stat().st_size > MOST_FILE_BYTES:
            raise DataError(f"{shown(str(path))} is larger than {MOST_FILE_BYTES} bytes: split the data set")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{shown(str(path))} cannot be read ({error.strerror}): give the path of the file") from error


def shown(text: str) -> str:
    """A name for a message: on one line, in quotes, not too long."""
    return ascii(text if len(text) <= 160 else f"{text[:157]}...")
