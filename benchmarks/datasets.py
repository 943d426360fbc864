"""The real data sets of the benchmarks, from the folder that UNLEARN_DATA names, as npz files the tool can read."""

from __future__ import annotations

import gzip
import os
import pickletools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


def data_folder() -> Path:
    """Where the data sets are.

    Raises:
        SystemExit: When UNLEARN_DATA is not set; nothing is downloaded.
    """
    folder = os.environ.get("UNLEARN_DATA", "")
    if not folder or not Path(folder).is_dir():
        raise SystemExit("error: set UNLEARN_DATA to the folder of the real data sets; nothing is downloaded")
    return Path(folder)


def npz_of(name: str, into: Path) -> Path:
    """The data set as `inputs` (N, C, H, W) uint8, `targets`, `split`, `classes` in one npz file.

    Args:
        name: "mnist", "fashion" or "cifar10".
        into: Folder of the file; it is made once.
    """
    path = into / f"{name}.npz"
    if not path.exists():
        into.mkdir(parents=True, exist_ok=True)
        inputs, targets, train, classes = _cifar10() if name == "cifar10" else _idx(name)
        split = np.where(np.arange(len(targets)) < train, "train", "test")
        np.savez(path, inputs=inputs, targets=np.array(classes)[targets], split=split, classes=np.array(classes))
    return path


def _idx(name: str) -> tuple[Pixels, NDArray[np.int64], int, list[str]]:
    folder = data_folder() / {"mnist": "MNIST", "fashion": "FashionMNIST"}[name] / "raw"
    parts = []
    for part in ("train", "t10k"):
        images = np.frombuffer(gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes()), np.uint8)
        labels = np.frombuffer(gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes()), np.uint8)
        parts.append((images[16:].reshape(-1, 1, 28, 28), labels[8:].astype(np.int64)))
    names = [str(digit) for digit in range(10)]
    if name == "fashion":
        names = ["top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"]
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts]), len(parts[0][1]), names


def _cifar10() -> tuple[Pixels, NDArray[np.int64], int, list[str]]:
    folder = data_folder() / "cifar10"
    sheets, labels = [], []
    parts = np.load(folder / "pickle_parts.npz")
    for name in [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]:
        sheet = np.asarray(Image.open(folder / f"{name}.webp").convert("RGB"))
        sheets.append(sheet.reshape(100, 32, 100, 32, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, 32, 32))
        labels.append(_labels(parts[f"{name}_head"].tobytes()))
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    return np.concatenate(sheets), np.concatenate(labels), 50_000, names


def _labels(head: bytes) -> NDArray[np.int64]:
    """The first 10,000 small integers among the opcodes that precede a batch's pixels; nothing is unpickled."""
    found: list[int] = []
    for opcode, argument, _ in pickletools.genops(head):
        if opcode.name == "BININT1":
            found.append(int(argument or 0))
        if len(found) == 10_000:
            break
    return np.array(found, dtype=np.int64)
