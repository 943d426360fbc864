"""Which rows to forget, which to keep, which to measure with; row numbers only, never an id."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from unlearning.data.arrays import read_array
from unlearning.data.manifest import MOST_ROWS, Manifest
from unlearning.errors import DataError, UsageError

RowNumbers: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
Kind = Literal["class", "subject", "sample", "target", "period"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SPOKEN: tuple[Kind, ...] = ("class", "target", "period")
"""Kinds whose ids name nobody, so that a pipeline's parameters may hold them."""

_SCHEMA = "unlearning-rows/1"
_META = "rows.json"
_MOST_META_BYTES = 1 << 20
_NAME = re.compile(r"[a-z][a-z_]{0,39}")
_TIME = re.compile(r"\d{4}(-\d\d(-\d\d(T\d\d(:\d\d)?)?)?)?")


@dataclass(frozen=True)
class ForgetRequest:
    """What is to be forgotten.

    Attributes:
        kind: "class", "subject" or "sample"; "target" for numbers to predict; "period" for windows of time.
        ids: Class names (or their indices as text), subject ids, or sample ids; repeats count once. Of targets, ranges
            "0:2" (from 0 up to, but not, 2; either end may be left out). Of periods, months, days or hours ("2017-03",
            "2017-03-01T05"), or ranges of them ("2017-03-01/2017-03-08", the last one left out); every window that
            reads or predicts any step of a period is meant.
    """

    kind: Kind
    ids: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"a request forgets a {', '.join(KINDS)}, got {str(self.kind)[:40]!r}")
        if isinstance(self.ids, str) or not self.ids or not all(isinstance(id_, str) for id_ in self.ids):
            raise UsageError(f"a request to forget a {self.kind} needs a list of one or more ids as text")
        if any(id_ != id_.encode(errors="ignore").decode() for id_ in self.ids):
            raise UsageError(f"the {self.kind} ids must be valid Unicode text, one is not")
        object.__setattr__(self, "ids", tuple(dict.fromkeys(self.ids)))


@dataclass(frozen=True, eq=False)
class Selection:
    """A request resolved against a manifest: row numbers of the manifest, ascending.

    Attributes:
        forget: Train rows to forget.
        retain: All other train rows.
        available: The part of `retain` that a method may use.
        holdout_forget: Test rows that the same rule picks; empty for samples.
        holdout_retain: All other test rows that a verdict may use.
        calibration: Rows never trained on, for methods that watch themselves: the validation split; without one, and
            when rows rather than classes are forgotten, a quarter of the other test rows, which no verdict then uses.
        forget_classes: Class indices when whole classes are forgotten, else empty.
        manifest_digest: Of the manifest whose rows these are.
    """

    forget: RowNumbers
    retain: RowNumbers
    available: RowNumbers
    holdout_forget: RowNumbers
    holdout_retain: RowNumbers
    calibration: RowNumbers
    forget_classes: tuple[int, ...]
    manifest_digest: str


def select(manifest: Manifest, request: ForgetRequest, *, retain_per_class: int = 1000, seed: int) -> Selection:
    """The rows that a request means; every train row lands in exactly one of forget and retain.

    Args:
        manifest: The data set.
        request: What to forget.
        retain_per_class: Most rows of each class in `available`, drawn at random; 0 takes all. Where there are numbers
            to predict, ten ranges of them with equally many train rows count as classes.
        seed: >= 0. A class with the same retained rows gives the same draw, whatever else is forgotten.

    Raises:
        UsageError: For unknown classes or ids (counted, never shown), for a request that leaves nothing to retain,
            and for numbers out of range.
        DataError: When no test rows are there to measure with.
    """
    if retain_per_class < 0 or seed < 0:
        raise UsageError(f"retain_per_class and seed must be 0 or more, got {retain_per_class} and {seed}")
    train, test, targets = manifest.rows("train"), manifest.rows("test"), manifest.targets()
    classes: tuple[int, ...] = ()
    if request.kind == "class":
        classes = tuple(sorted({manifest.class_index(id_) for id_ in request.ids}))
        if len(classes) == len(manifest.card.classes):
            raise UsageError(f"all {len(classes)} classes are to be forgotten: leave one to retain")
        picked = np.isin(targets, classes)
    else:
        picked = _PICKED.get(request.kind, _rows_of)(manifest, request, train)
    forget, retain = train[picked[train]], train[~picked[train]]
    if not len(forget):
        raise UsageError(f"the {request.kind} to forget has no train rows: nothing to forget")
    if not len(retain):
        raise UsageError(f"all {len(forget)} train rows are to be forgotten: leave some to retain")
    if request.kind == "sample":
        picked = np.zeros(len(manifest), dtype=bool)
    holdout_forget, holdout_retain = test[picked[test]], test[~picked[test]]
    if not len(holdout_retain) or (classes and not len(holdout_forget)):
        what = "the classes to forget" if len(holdout_retain) else "what is retained"
        raise DataError(f"the manifest has no test rows of {what}: add some, the result could not be measured")
    validation = manifest.rows("validation")
    calibration = validation[~picked[validation]]
    if not len(calibration) and request.kind != "class":
        order = np.random.default_rng([seed, _CALIBRATION]).permutation(len(holdout_retain))
        calibration = np.sort(holdout_retain[order[: len(holdout_retain) // 4]])
        holdout_retain = np.setdiff1d(holdout_retain, calibration, assume_unique=True)
    return Selection(
        forget=forget,
        retain=retain,
        available=_draw(retain, _strata(manifest, targets, train)[retain], retain_per_class, seed),
        calibration=calibration,
        holdout_forget=holdout_forget,
        holdout_retain=holdout_retain,
        forget_classes=classes,
        manifest_digest=manifest.digest,
    )


def rows_meant(manifest: Manifest, request: ForgetRequest) -> RowNumbers:
    """All rows in ranges of the target or in periods, of whatever split; none where the data set has no such thing.

    Raises:
        UsageError: For a text that is no range or period, or a period that the data set does not reach.
    """
    has = {"target": manifest.card.task == "regression", "period": manifest.card.source.startswith("windows:")}
    if not has[request.kind]:
        return np.empty(0, np.int64)
    return np.flatnonzero(_PICKED[request.kind](manifest, request, manifest.rows("train")))


def write_selection(selection: Selection, folder: str | Path) -> None:
    """The selection as a folder of row numbers; the same selection gives the same bytes.

    Args:
        selection: What to write.
        folder: Made when missing.
    """
    rows = {name: getattr(selection, name) for name in _PARTS}
    meta = {"manifest": selection.manifest_digest, "forget_classes": list(selection.forget_classes)}
    write_rows(folder, meta=meta, **rows)


def read_selection(folder: str | Path, manifest: Manifest) -> Selection:
    """The selection of a folder, checked against its manifest.

    Args:
        folder: As `write_selection` left it.
        manifest: The manifest that it was made from.

    Raises:
        DataError: When the folder is damaged, or belongs to another manifest.
    """
    rows, meta = read_rows(folder)
    if meta.get("manifest") != manifest.digest:
        raise DataError("the selection was made from another manifest: select again from this one")
    classes: Any = meta.get("forget_classes")
    sound = isinstance(classes, list) and set(rows) == set(_PARTS)
    if sound:
        train, test = (_joined(rows, *pair) for pair in (("forget", "retain"), ("holdout_forget", "holdout_retain")))
        sound = np.array_equal(train, manifest.rows("train")) and np.array_equal(test, manifest.rows("test"))
        sound = sound and bool(np.isin(rows["available"], rows["retain"]).all())
        sound = sound and all(type(index) is int and 0 <= index < len(manifest.card.classes) for index in classes)
    if not sound:
        raise DataError("the selection's rows do not fit its manifest: select again")
    return Selection(**rows, forget_classes=tuple(classes), manifest_digest=manifest.digest)


def write_rows(folder: str | Path, *, meta: Mapping[str, Any], **rows: RowNumbers) -> None:
    """Named lists of row numbers as `.npy` files, and `rows.json` (written last) with their digests.

    Args:
        folder: Made when missing.
        meta: Kept as it is; JSON types only.
        **rows: Lower-case name to row numbers, each shape (N,), int64, >= 0.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    digests = {}
    for name, values in rows.items():
        np.save(folder / f"{name}.npy", np.ascontiguousarray(values, dtype="<i8"), allow_pickle=False)
        digests[name] = hashlib.sha256((folder / f"{name}.npy").read_bytes()).hexdigest()
    record = {"schema": _SCHEMA, "meta": dict(meta), "sha256": digests}
    (folder / _META).write_text(json.dumps(record, sort_keys=True, indent=1) + "\n", encoding="utf-8")


def read_rows(folder: str | Path) -> tuple[dict[str, RowNumbers], dict[str, Any]]:
    """The named row numbers of a folder and its meta, as `write_rows` took them.

    Raises:
        DataError: When a file is missing, too large or not as it was written.
    """
    folder = Path(folder)
    try:
        record = json.loads(_read(folder / _META, _MOST_META_BYTES))
        if record["schema"] != _SCHEMA:
            raise ValueError("it has another schema")
        meta, digests = dict(record["meta"]), dict(record["sha256"])
        if not all(_NAME.fullmatch(name) for name in digests):
            raise ValueError("a name is not a plain word")
        rows = {name: _read_row_numbers(folder / f"{name}.npy", digest) for name, digest in digests.items()}
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else type(error).__name__
        raise DataError(f"the row numbers in {folder} cannot be read ({reason}): select again") from error
    return rows, meta


def exact_duplicates(inputs: np.ndarray[Any, Any], rows_a: RowNumbers, rows_b: RowNumbers) -> int:
    """How many rows of `rows_b` have inputs that, byte for byte, also occur in `rows_a`.

    Args:
        inputs: Shape (N, ...), pixels or features.
        rows_a: Row numbers below N: the forget set.
        rows_b: Likewise: the retain set, or a test set.
    """
    seen = {_fingerprint(inputs[row]) for row in rows_a}
    return sum(_fingerprint(inputs[row]) in seen for row in rows_b)


def as_ranges(rows: RowNumbers) -> str:
    """Row numbers as text: distinct, ascending, neighbours joined.

    Example:
        >>> as_ranges(np.array([9, 3, 7, 8]))
        '3,7-9'
    """
    rows = np.unique(rows)
    if not len(rows):
        return ""
    ends = np.flatnonzero(np.diff(rows) > 1)
    firsts, lasts = rows[np.append(0, ends + 1)], rows[np.append(ends, len(rows) - 1)]
    return ",".join(f"{a}-{b}" if b > a else f"{a}" for a, b in zip(firsts, lasts, strict=True))


def from_ranges(text: str, *, most: int) -> RowNumbers:
    """The row numbers that `as_ranges` wrote.

    Args:
        text: "3,7-9", or empty.
        most: Rows below this number exist.

    Raises:
        DataError: When it is no such text, or names rows that do not exist.
    """
    try:
        pairs = [part.partition("-") for part in text.split(",") if part]
        ends = [(int(first), int(last or first)) for first, _, last in pairs]
        if any(not 0 <= first <= last < most for first, last in ends):
            raise ValueError("it names rows that do not exist")
    except ValueError as error:
        raise DataError(f"row numbers as text cannot be read ({error}): wanted 3,7-9 below {most}") from error
    return np.concatenate([np.arange(a, b + 1) for a, b in ends]) if ends else np.empty(0, np.int64)


_PARTS = ("forget", "retain", "available", "holdout_forget", "holdout_retain", "calibration")
_CALIBRATION = 1 << 32  # no class index: its draw is its own


def _rows_of(manifest: Manifest, request: ForgetRequest, train: RowNumbers) -> np.ndarray[Any, np.dtype[np.bool_]]:
    column: Any = manifest.table["subject_id" if request.kind == "subject" else "sample_id"]
    ids: Any = pa.array(request.ids, type=pa.string())
    found = pc.sum(pc.is_in(ids, value_set=column.take(pa.array(train)).drop_null())).as_py() or 0
    if found < len(ids):
        counted = f"{len(ids) - found} of the {len(ids)} {request.kind} ids match no train row"
        raise UsageError(f"{counted}: give ids exactly as the manifest has them (nothing was selected)")
    return np.array(pc.is_in(column, value_set=ids), dtype=bool)


def _in_ranges(manifest: Manifest, request: ForgetRequest, train: RowNumbers) -> np.ndarray[Any, np.dtype[np.bool_]]:
    if manifest.card.task != "regression":
        raise UsageError("a range of targets needs numbers to predict, this data set has classes: name them instead")
    targets, picked = manifest.targets().astype(np.float64), np.zeros(len(manifest), dtype=bool)
    for text in request.ids:
        low, colon, high = text.partition(":")
        try:
            ends = float(low) if low else -np.inf, float(high) if high else np.inf
        except ValueError:
            ends = np.nan, np.nan
        if not colon or not ends[0] < ends[1]:
            raise UsageError(f'a range of targets is written "0:2" (from 0 up to, but not, 2), got {text[:40]!r}')
        picked |= (targets >= np.float32(ends[0])) & (targets < np.float32(ends[1]))
    return picked


def _in_periods(manifest: Manifest, request: ForgetRequest, train: RowNumbers) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Rows of the windows with any step in a period; times compare as the text that they are."""
    card = manifest.card
    if not card.source.startswith("windows:"):
        raise UsageError("a period needs windows of time: forget subjects, samples or a range of targets instead")
    times = np.array([id_.rpartition("@")[2] for id_ in _texts(manifest, "sample_id")])
    firsts = np.array([int(text.rpartition(":")[2]) for text in _texts(manifest, "location")])
    picked = np.zeros(len(manifest), dtype=bool)
    for text in request.ids:
        low, slash, high = text.replace(" ", "T").partition("/")
        if not _TIME.fullmatch(low) or (slash and not (_TIME.fullmatch(high) and low < high)):
            raise UsageError(f'a period is written "2017-03" or "2017-03-01/2017-03-08", got {text[:40]!r}')
        inside = (times >= low) & (times < high) if slash else np.char.startswith(times, low)
        if not inside[train].any():
            raise UsageError("a period holds no step that a train window predicts first: give times of the manifest")
        begin, end = firsts[inside].min(), firsts[inside].max()
        begin = firsts[firsts < begin].max(initial=begin - 1) + 1  # steps that no window predicts first belong to it
        end = firsts[firsts > end].min(initial=end + card.horizon) - 1
        picked |= (firsts > begin - card.horizon) & (firsts <= end + card.input_shape[0] - card.horizon)
    return picked


def _texts(manifest: Manifest, name: str) -> list[str]:
    column: Any = manifest.table[name]
    texts: list[str] = column.to_pylist()
    return texts


def _strata(manifest: Manifest, targets: np.ndarray[Any, Any], train: RowNumbers) -> RowNumbers:
    """The class of each row, or for numbers to predict which tenth of the train rows it would be among."""
    if manifest.card.task == "classification":
        return targets
    tenths = np.quantile(targets[train].astype(np.float64), np.arange(1, 10) / 10)
    return np.searchsorted(tenths, targets.astype(np.float64), side="right").astype(np.int64)


def _draw(rows: RowNumbers, targets: RowNumbers, most: int, seed: int) -> RowNumbers:
    if not most:
        return rows
    parts = []
    for index in np.unique(targets):
        of_class = rows[targets == index]
        if len(of_class) > most:
            of_class = np.random.default_rng([seed, int(index)]).choice(of_class, most, replace=False, shuffle=False)
        parts.append(of_class)
    return np.sort(np.concatenate(parts))


_PICKED = {"target": _in_ranges, "period": _in_periods}


def _joined(rows: Mapping[str, RowNumbers], *names: str) -> RowNumbers:
    return np.sort(np.concatenate([rows[name] for name in names]))


def _read(path: Path, most: int) -> bytes:
    if path.stat().st_size > most:
        raise ValueError("it is too large")
    return path.read_bytes()


def _read_row_numbers(path: Path, digest: str) -> RowNumbers:
    content = _read(path, MOST_ROWS * 8 + 4096)
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError("its content was changed")
    values = read_array(io.BytesIO(content), len(content), what=path.name)
    if values.dtype != np.int64 or values.ndim != 1 or (len(values) and values.min() < 0):
        raise ValueError("it holds no row numbers")
    return values


def _fingerprint(values: np.ndarray[Any, Any]) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(values).tobytes(), digest_size=16).digest()
