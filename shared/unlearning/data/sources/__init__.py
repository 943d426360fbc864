"""Data sets of every kind as a manifest, and the samples of a manifest in memory.

A source is written `scheme:place?option=value`; nothing in it is decoded or made absolute, and nothing is downloaded.

Classes:

- `digits`: the 8 x 8 digits that scikit-learn brings along.
- `torchvision:NAME?root=FOLDER`: MNIST, FashionMNIST, CIFAR10, CIFAR100 or SVHN where torchvision keeps them. Its own
  loaders read the files; those of CIFAR are pickles, which torchvision opens only when their md5 sums are the official
  ones.
- `folder:FOLDER`: images in `FOLDER/CLASS/`, or in `FOLDER/train/CLASS/`, `FOLDER/test/CLASS/`. A folder may also be
  an address in an object store: `folder:s3://bucket/prefix`.
- `har:FOLDER`: 265 features of smartphone movements, six activities, 30 people (`uci_har_265.npz`).
- `eeg:FOLDER`: one second of brain waves (178 steps), five classes, 500 recordings (`bonn_eeg_178.npz`).

Classes or numbers:

- `npz:FILE`: arrays `inputs` and `targets`, perhaps `sample_id`, `subject_id`, `split`, `classes`. `layout=sequence`
  takes inputs (N, steps, values) as they are; `task=regression` predicts the targets as numbers.
- `arrays:FOLDER`: the same as files `inputs.npy`, `targets.npy` and so on: inputs may be larger than memory, which maps
  them; uint8 or float32.
- `parquet:FILE?target_column=NAME`: numeric columns and `target`, perhaps `sample_id`, `subject_id`, `split`.
- `table:FILE?target=COLUMN`: csv or Parquet; words become one column for each word, gaps are filled. See
  `unlearning.data.sources.tables`. `task=classification` for classes.

Numbers:

- `diabetes`: 442 people that scikit-learn brings along; how far their illness went within a year.
- `pairs:FOLDER`: pairs of sentences and a score; see `unlearning.data.sources.text`.
- `windows:FILE?target=COLUMN`: windows of time series; see `unlearning.data.sources.windows`.
- `faces:FILE?images=FOLDER`: a csv of path, age and split beside a folder of images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from unlearning.config import nearest
from unlearning.data.manifest import MOST_ROWS, DataCard, Manifest, Scaling, number_texts
from unlearning.data.scaling import fitted
from unlearning.data.sources import archives, arrays, images, tables, text, windows
from unlearning.data.sources.contents import IN_MEMORY, Address, Array, Contents, OpenObjects, Stored, shown
from unlearning.data.splits import drawn_splits
from unlearning.errors import DataError, UsageError

if TYPE_CHECKING:
    from unlearning.data.samples import Samples

SOURCES: dict[str, tuple[Callable[[Address], Contents], tuple[str, ...]]] = {
    "digits": (images.digits, ()),
    "torchvision": (images.torchvision, ("root",)),
    "folder": (images.folder, ()),
    "npz": (archives.npz, ("task", "layout", "target_name", "unit")),
    "arrays": (arrays.arrays, ("task", "layout", "target_name", "unit")),
    "parquet": (tables.parquet, ("target_column",)),
    "har": (archives.har, ()),
    "eeg": (archives.eeg, ()),
    "diabetes": (tables.diabetes, ()),
    "table": (tables.table, tables.OPTIONS),
    "pairs": (text.pairs, text.OPTIONS),
    "windows": (windows.windows, windows.OPTIONS),
    "faces": (images.faces, images.FACE_OPTIONS),
}
"""Scheme to its reader and the options that it knows."""

_PLACELESS = ("digits", "diabetes")
_SIZED = ("folder", "faces")


def make_manifest(
    source: str,
    *,
    name: str = "",
    test_share: float = 0.2,
    seed: int = 0,
    image_size: int | None = None,
    objects: OpenObjects | None = None,
) -> Manifest:
    """The manifest of everything in a source.

    The card's scaling is fitted on the train split. Where a source has no split of its own, whole subjects are drawn.

    Args:
        source: As in this module's docstring: "digits", "npz:/data/set.npz".
        name: For people; taken from the source when empty.
        test_share: Share of each class (or of the subjects) that becomes the test split where the source has no split;
            in (0, 1). Windows take the last part of the time.
        seed: Of that draw; >= 0.
        image_size: Height and width that the images of a folder get; needed when they differ.
        objects: Opens a folder that is an address in an object store.

    Raises:
        UsageError: For an unknown source or option.
        DataError: For files that are missing, damaged, too large, or do not fit together.
    """
    if not 0 < test_share < 1 or seed < 0 or (image_size is not None and not 1 <= image_size <= 4096):
        wanted = "test_share in (0, 1), seed 0 or more and image_size in 1..4096"
        raise UsageError(f"a manifest needs {wanted}, got {test_share}, {seed} and {image_size}")
    contents = _read(source, image_size, objects)
    classes, splits = tuple(contents.classes), contents.splits
    if splits is None:
        strata = np.asarray(contents.targets) if classes else np.zeros(len(contents.ids), dtype=np.int64)
        splits = drawn_splits(strata, test_share, seed, subjects=contents.subjects)
    train = np.flatnonzero(np.asarray(splits) == "train")
    shape, scaling = _shape_and_scaling(contents, train)
    card = DataCard(
        source=source,
        task="classification" if classes else "regression",
        classes=classes,
        input_shape=shape,
        mean=scaling.mean,
        std=scaling.std,
        fill=scaling.fill,
        source_sha256=contents.sha256,
        name=name or Path(source.partition(":")[2].partition("?")[0]).stem or source,
        **(contents.card or {}),
    )
    columns = {
        "sample_id": contents.ids,
        "subject_id": contents.subjects if contents.subjects is not None else [None] * len(contents.ids),
        "target": [classes[int(index)] for index in contents.targets] if classes else number_texts(contents.targets),
        "split": splits,
        "location": contents.locations,
    }
    try:
        table = pa.table({column: pa.array(values, type=pa.string()) for column, values in columns.items()})
    except UnicodeEncodeError as error:
        raise DataError("a name or id in the source is not valid Unicode: rename it") from error
    return Manifest(card, table)


def open_samples(
    manifest: Manifest,
    rows: Array | Sequence[int] | None = None,
    *,
    scaling: Scaling | None = None,
    objects: OpenObjects | None = None,
) -> Samples:
    """The samples of a manifest in the order of `rows`, in memory; more than 1 GiB of images or arrays stay outside.

    Args:
        manifest: As `make_manifest` gave it.
        rows: Row numbers of the manifest, shape (M,); all when None.
        scaling: How inputs are scaled: a model's own, where it differs; the card's when None.
        objects: As of `make_manifest`.

    Raises:
        DataError: When the source is not what the manifest was made from, or a row is out of range.
    """
    contents = _unchanged(manifest, objects)
    wanted = _wanted(manifest, rows)
    card, chosen = manifest.card, manifest.card.scaling if scaling is None else scaling
    locations = _locations(manifest, wanted)
    if contents.open is not None:
        return contents.open(locations, chosen)
    stored = None if contents.stored is None else contents.stored(locations, card.input_shape)
    streamed = stored is not None and stored.nbytes > IN_MEMORY
    inputs = stored if stored is not None and streamed else contents.load(locations, card.input_shape)
    if inputs.shape[1:] != card.input_shape:
        raise DataError(f"the samples have shape {inputs.shape[1:]}, the card says {card.input_shape}")

    import torch

    from unlearning.data.samples import StoredSamples, TensorSamples

    targets = torch.from_numpy(manifest.targets()[wanted])
    mean, std = chosen.mean or (0.0,), chosen.std or (1.0,)
    if isinstance(inputs, Stored):
        return StoredSamples(inputs.read, targets, mean=mean, std=std, fill=chosen.fill)
    return TensorSamples(torch.from_numpy(inputs), targets, mean=mean, std=std, fill=chosen.fill)


def fit_scaling(manifest: Manifest, rows: Array | Sequence[int], *, objects: OpenObjects | None = None) -> Scaling:
    """The scaling fitted anew on some rows alone, as a network retrained on them could have it.

    The card's own scaling comes from all train rows, those that are forgotten later among them. A retrained reference
    that shall not even know their means takes `fit_scaling(manifest, selection.retain)` in its model card; methods keep
    the original's.

    Args:
        manifest: As `make_manifest` gave it.
        rows: Row numbers of the manifest, shape (M,); at least one.
        objects: As of `make_manifest`.

    Raises:
        DataError: When the source is not what the manifest was made from, or a row is out of range.
    """
    contents = _unchanged(manifest, objects)
    locations = _locations(manifest, _wanted(manifest, rows))
    if contents.fit is not None:
        return contents.fit(locations)
    every = np.arange(len(locations))
    if contents.stored is not None:
        return fitted(contents.stored(locations, manifest.card.input_shape), every)
    return fitted(contents.load(locations, manifest.card.input_shape), every)


def verify_source(manifest: Manifest, *, objects: OpenObjects | None = None) -> None:
    """Nothing, when the source still is what the manifest was made from.

    Args:
        manifest: With a `source_sha256`; without one there is nothing to compare.
        objects: As of `make_manifest`.

    Raises:
        DataError: When the source is gone or has changed.
    """
    _unchanged(manifest, objects)


def read_contents(manifest: Manifest, *, objects: OpenObjects | None = None) -> Contents:
    """What the manifest's source holds, checked to be the same as when the manifest was made.

    Raises:
        DataError: When the source is gone or has changed.
    """
    return _unchanged(manifest, objects)


def _shape_and_scaling(contents: Contents, train: Array) -> tuple[tuple[int, ...], Scaling]:
    if contents.fit is not None and contents.shape is not None:
        if not len(train):
            raise DataError("the source has no train rows: it needs some to train on")
        return contents.shape, contents.fit([contents.locations[row] for row in train])
    if contents.stored is not None:
        stored = contents.stored(contents.locations, None)
        return stored.shape[1:], fitted(stored, train)
    inputs = contents.load(contents.locations, None)
    return inputs.shape[1:], fitted(inputs, train)


def _wanted(manifest: Manifest, rows: Array | Sequence[int] | None) -> Array:
    wanted = np.arange(len(manifest)) if rows is None else np.asarray(rows, dtype=np.int64)
    if wanted.ndim != 1 or (len(wanted) and not 0 <= wanted.min() <= wanted.max() < len(manifest)):
        raise DataError(f"row numbers must be a list of numbers from 0 to {len(manifest) - 1}, one is not")
    return wanted


def _locations(manifest: Manifest, rows: Array) -> list[str]:
    column: Any = manifest.table["location"]
    locations: list[str] = column.take(pa.array(rows)).to_pylist()
    return locations


def _unchanged(manifest: Manifest, objects: OpenObjects | None) -> Contents:
    contents = _read(manifest.card.source, None, objects)
    if manifest.card.source_sha256 not in ("", contents.sha256):
        raise DataError(f"{shown(manifest.card.source)} has changed since its manifest was made: make a new manifest")
    return contents


def _read(source: str, image_size: int | None, objects: OpenObjects | None) -> Contents:
    scheme, _, rest = source.partition(":")
    if scheme not in SOURCES:
        raise UsageError(f"no source {shown(scheme)}{nearest(scheme[:80], SOURCES)} (valid: {', '.join(SOURCES)})")
    reader, known = SOURCES[scheme]
    place, _, query = rest.partition("?")
    options = dict(part.partition("=")[::2] for part in query.split("&")) if query else {}
    for option in options:
        if option not in known:
            hint = nearest(option[:80], known) or f" (valid: {', '.join(known) or 'none'})"
            raise UsageError(f"{scheme} has no option {shown(option)}{hint}")
    if bool(place) != (scheme not in _PLACELESS):
        example = scheme if scheme in _PLACELESS else f"{scheme}:PLACE"
        raise UsageError(f'the source {shown(source)} is incomplete or has too much: write "{example}"')
    if image_size is not None and scheme not in _SIZED:
        raise UsageError(f"image_size is for folders of images, {scheme} has a size of its own: leave it out")
    contents = reader(Address(place, options, image_size, objects))
    if not 0 < len(contents.ids) <= MOST_ROWS:
        raise DataError(f"{shown(source)} holds {len(contents.ids)} samples, a data set has 1 to {MOST_ROWS}")
    return contents
