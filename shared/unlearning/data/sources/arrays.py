"""Arrays in a folder of npy files: inputs are mapped and not read, so that they may be larger than memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unlearning.data.arrays import read_array
from unlearning.data.scaling import fitted
from unlearning.data.sources.contents import (
    MOST_FILE_BYTES,
    TASKS,
    Address,
    Array,
    Contents,
    Stored,
    classes_of,
    numbered,
    numbers_of,
    row_numbers,
    sha256_of_file,
    shown,
)
from unlearning.errors import DataError

_TEXTS = ("sample_id", "subject_id", "split")
_STEP = 1 << 22


def arrays(address: Address) -> Contents:
    """Arrays `inputs` and `targets`, perhaps `sample_id`, `subject_id`, `split`, `classes`, a file `NAME.npy` each."""
    folder = Path(address.place)
    inputs = _mapped(folder / "inputs.npy")
    targets = _read(folder / "targets.npy")
    task, layout = address.choice("task", TASKS), address.choice("layout", ("image", "sequence"))
    if inputs.ndim not in (2, 3, 4) or (layout == "sequence") != (inputs.ndim == 3):
        raise DataError(
            f"the inputs of {shown(str(folder))} must have the shape (N, D) or (N, C, H, W), or with layout=sequence "
            f"(N, steps, values), got {list(inputs.shape)}"
        )
    texts = {name: _words(folder / f"{name}.npy", len(inputs)) for name in _TEXTS if (folder / f"{name}.npy").exists()}
    if targets.shape != (len(inputs),):
        raise DataError(
            f"targets must be a list with one value for each of the {len(inputs)} inputs, got {targets.shape}"
        )
    if inputs.dtype != np.uint8:
        _finite(inputs)
    classes: list[str] = []
    values: Sequence[int] | Sequence[float]
    if task == "regression":
        values = numbers_of(targets, "the target")
    else:
        names = _words(folder / "classes.npy", None) if (folder / "classes.npy").exists() else None
        classes, values = classes_of(targets, names)

    def stored(wanted: Sequence[str], shape: tuple[int, ...] | None) -> Stored:
        rows = row_numbers(wanted, len(inputs))
        return Stored(lambda some: np.array(inputs[rows[some]]), len(rows), inputs.shape[1:], inputs.dtype)

    total = hashlib.sha256()
    for path in sorted(folder.glob("*.npy")):
        total.update(f"{path.name}:{sha256_of_file(path)};".encode())
    return Contents(
        sha256=total.hexdigest(),
        classes=classes,
        targets=values,
        ids=texts.get("sample_id") or [f"row-{row:07d}" for row in range(len(inputs))],
        locations=numbered(len(inputs)),
        load=lambda wanted, shape: np.array(inputs[row_numbers(wanted, len(inputs))]),
        subjects=texts.get("subject_id"),
        splits=texts.get("split"),
        card={"target_name": address.options.get("target_name", ""), "target_unit": address.options.get("unit", "")},
        shape=inputs.shape[1:],
        fit=lambda wanted: fitted(stored(wanted, None), np.arange(len(wanted))),
        stored=stored,
    )


def _mapped(path: Path) -> Array:
    """An array of numbers, of which nothing is read yet."""
    try:
        found: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, TypeError) as error:
        raise DataError(f"{shown(str(path))} is no array that can be mapped ({type(error).__name__})") from error
    if found.dtype not in (np.uint8, np.float32) or not found.size:
        raise DataError(f"{shown(str(path))} must hold uint8 or float32 values, got {found.dtype}: convert it")
    return found


def _finite(inputs: Array) -> None:
    step = max(1, _STEP // max(1, inputs[0].size))
    for start in range(0, len(inputs), step):
        fine = np.isfinite(inputs[start : start + step]).reshape(min(step, len(inputs) - start), -1).all(axis=1)
        if not fine.all():
            row = start + int(np.argmin(fine))
            raise DataError(f"the inputs of row {row} are not finite float32 numbers: mend the row")


def _read(path: Path) -> Array:
    try:
        size = path.stat().st_size
        if size > MOST_FILE_BYTES:
            raise DataError(f"{shown(str(path))} is larger than {MOST_FILE_BYTES} bytes")
        with path.open("rb") as file:
            return read_array(file, size, what=shown(path.name))
    except OSError as error:
        raise DataError(
            f"{shown(str(path))} cannot be read ({error.strerror}): give the folder of the files"
        ) from error


def _words(path: Path, count: int | None) -> list[Any]:
    """Of a list of words or numbers."""
    found = _read(path)
    if found.ndim != 1 or (count is not None and len(found) != count):
        raise DataError(f"{shown(path.name)} must be a list with one value for each of the {count} inputs")
    return [str(value) for value in found.tolist()]
