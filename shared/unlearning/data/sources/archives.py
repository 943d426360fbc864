"""Arrays in npz files: the general convention, and two data sets of sequences under their own names."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unlearning.data.arrays import read_array
from unlearning.data.sources.contents import (
    MOST_BYTES,
    MOST_FILE_BYTES,
    TASKS,
    Address,
    Array,
    Contents,
    sha256_of_file,
    shown,
    tabular,
)
from unlearning.errors import DataError

_MOST_ENTRIES = 64
_INPUTS, _TARGETS = ("inputs", "X", "x", "images"), ("targets", "y", "labels", "target")
_TEXTS = ("sample_id", "subject_id", "split")


def npz(address: Address) -> Contents:
    """Arrays `inputs` and `targets`, perhaps `sample_id`, `subject_id`, `split`, `classes`."""
    path = Path(address.place)
    arrays = _npz_arrays(path)
    inputs, targets = (_one_of(arrays, names, path) for names in (_INPUTS, _TARGETS))
    if inputs.dtype.kind not in "biuf" or inputs.ndim not in (2, 3, 4) or not inputs.size:
        raise DataError(f"the inputs of {shown(str(path))} must be numbers of shape (N, D), (N, H, W) or (N, C, H, W)")
    task, layout = address.choice("task", TASKS), address.choice("layout", ("image", "sequence"))
    if (layout == "sequence") != (layout == "sequence" and inputs.ndim == 3):
        raise DataError(f"the sequences of {shown(str(path))} must have the shape (N, steps, values)")
    if inputs.ndim == 3 and layout == "image":
        inputs = inputs[:, None]
    elif inputs.ndim == 4 and inputs.shape[1] not in (1, 3) and inputs.shape[3] in (1, 3):
        inputs = inputs.transpose(0, 3, 1, 2)  # channels came last
    texts: dict[str, list[Any]] = {name: _texts(arrays[name], name) for name in _TEXTS if name in arrays}
    names = _texts(arrays["classes"], "classes") if "classes" in arrays else None
    card = {"target_name": address.options.get("target_name", ""), "target_unit": address.options.get("unit", "")}
    return tabular(sha256_of_file(path), inputs, targets, texts, names, task=task, card=card)


def har(address: Address) -> Contents:
    """Human activities, of the arrays `X_`, `y_` and `subject_` of `train` and `test`; no person is in both parts.

    `y` counts from 1 and names its class through `activity_names`.
    """
    path = _inside(address.place, "uci_har_265.npz")
    parts = [f"{name}_{split}" for name in ("X", "y", "subject") for split in ("train", "test")]
    arrays = _exactly(path, (*parts, "activity_names", "feature_names"))
    inputs, targets, subjects = (
        np.concatenate([arrays[f"{name}_train"], arrays[f"{name}_test"]]) for name in ("X", "y", "subject")
    )
    sizes = {split: len(arrays[f"X_{split}"]) for split in ("train", "test")}
    texts: dict[str, list[Any]] = {
        "sample_id": [f"{split}-{row:04d}" for split, size in sizes.items() for row in range(size)],
        "subject_id": _texts(subjects, "subject"),
        "split": [split for split, size in sizes.items() for _ in range(size)],
    }
    names, features = (_texts(arrays[name], name) for name in ("activity_names", "feature_names"))
    repeats = len(set(features)) != len(features) or len(features) != inputs.shape[1]
    return tabular(
        sha256_of_file(path), inputs, targets - 1, texts, names, card={} if repeats else {"features": tuple(features)}
    )


def eeg(address: Address) -> Contents:
    """Brain waves, of the arrays `X` (N, 178), `y` from 1 to 5, `segment` (the recording) and `chunk` (its second).

    A recording counts as a subject: the split that is drawn keeps its seconds together. Who was recorded is not known.
    """
    path = _inside(address.place, "bonn_eeg_178.npz")
    arrays = _exactly(path, ("X", "y", "segment", "chunk"))
    recordings, seconds = _texts(arrays["segment"], "segment"), _texts(arrays["chunk"], "chunk")
    texts: dict[str, list[Any]] = {
        "sample_id": [f"{recording}-{int(second):02d}" for recording, second in zip(recordings, seconds, strict=True)],
        "subject_id": list(recordings),
    }
    classes = ["seizure", "tumour area", "healthy area", "eyes closed", "eyes open"]
    return tabular(sha256_of_file(path), arrays["X"][:, :, None], arrays["y"] - 1, texts, classes)


def _inside(place: str, name: str) -> Path:
    """The file itself, or the one of that name in the folder."""
    path = Path(place)
    return path / name if path.is_dir() else path


def _exactly(path: Path, names: Sequence[str]) -> dict[str, Array]:
    arrays = _npz_arrays(path, names)
    if missing := [name for name in names if name not in arrays]:
        raise DataError(
            f"{shown(str(path))} lacks the arrays {', '.join(missing)}: give the file that this reader is for"
        )
    return arrays


def _npz_arrays(path: Path, names: Sequence[str] = (*_INPUTS, *_TARGETS, *_TEXTS, "classes")) -> dict[str, Array]:
    """The arrays that a data set may have, out of a zip file whose promises were measured first."""
    what = shown(str(path))
    arrays: dict[str, Array] = {}
    try:
        if path.stat().st_size > MOST_FILE_BYTES:
            raise DataError(f"{what} is larger than {MOST_FILE_BYTES} bytes: split the data set")
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            unpacked = sum(entry.file_size for entry in entries)
            if len(entries) > _MOST_ENTRIES or unpacked > MOST_BYTES:
                most = f"{_MOST_ENTRIES} arrays and {MOST_BYTES} bytes"
                raise DataError(f"{what} unpacks to {len(entries)} arrays and {unpacked} bytes, the most is {most}")
            for entry in entries:
                name = entry.filename.removesuffix(".npy")
                if name in names:
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
        raise DataError(f"{shown(str(path))} needs exactly one of the arrays {', '.join(names)}; it has {came}")
    array = arrays[found[0]]
    if not array.ndim:
        raise DataError(f"the array {found[0]} of {shown(str(path))} is a single value: save one value per sample")
    return array


def _texts(array: Array, what: str) -> list[Any]:
    if array.ndim != 1 or array.dtype.kind not in "iuU":
        raise DataError(f"{what} must be a list of words or whole numbers: convert it before saving")
    return [str(value) for value in array.tolist()]
