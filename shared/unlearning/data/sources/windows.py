"""Windows of time series: a past to read, a horizon to predict, by index arithmetic over one array.

`windows:FILE?target=OT` reads a csv or Parquet file with a row for each step of time, all steps alike. Options:

- `time`: the column of the times; "date" when not given.
- `target`: the column to predict; the other columns are read with it. Or `target=*`: every column is a series of its
  own, read and predicted alone, whose number comes with the window.
- `encoder`, `horizon`: steps to read and to predict; 168 and 24 when not given.
- `stride`: a window begins every so many steps; 1 when not given.
- `validation`, `test`: shares of the time, in hundredths, at its end; 10 and 20 when not given.
- `period`: what a subject is: month, day or year of a window's first step to predict; with `target=*` it is the series.
- `unit`: of the target, for people.

Each series is scaled by its mean and deviation in the training time, and so are the targets: an error of 1 is one
deviation. The calendar comes with every step, read or to predict: hour of the day, day of the week, day of the month,
month, each from -0.5 to 0.5, and the steps since the training time began, per training time. Where nothing else is said
a window's values are therefore the file's columns, five of calendar.

The time is cut twice. A window belongs to the train, validation or test split when its whole horizon does; those across
a cut are left out, so no split's targets occur in another's. What a test window reads may reach back into training
time, as it would in use.

A window's id is the time of its first step to predict, "2017-03-01T05" ("SERIES@2017-03-01T05" with `target=*`). Its
target in the manifest is the mean over the horizon, in the file's unit. Other windows read what it predicts: to forget
a period with all traces, select by period, not by subject.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unlearning.config import nearest
from unlearning.data.card import Scaling
from unlearning.data.manifest import MOST_ROWS
from unlearning.data.scaling import fitted
from unlearning.data.sources.contents import (
    MOST_BYTES,
    Address,
    Array,
    Contents,
    row_numbers,
    sha256_of_file,
    shown,
)
from unlearning.data.sources.tables import read_columns
from unlearning.errors import DataError

if TYPE_CHECKING:
    from unlearning.data.samples import Samples

OPTIONS = ("time", "target", "encoder", "horizon", "stride", "validation", "test", "period", "unit")
CALENDAR = ("hour", "weekday", "day", "month", "elapsed")
_LENGTHS = {"month": 7, "day": 10, "year": 4}


def windows(address: Address) -> Contents:
    """Every window of the series in the file; no window is ever made before it is asked for."""
    path = Path(address.place)
    times, names, values = _series(path, address.options.get("time", "date"))
    target = address.options.get("target", "")
    alone = target == "*"
    if not alone and target not in names:
        hint = nearest(target[:80], names) or f" (columns: {', '.join(names[:20])}, or * for each)"
        raise DataError(f'windows need a column to predict: write "target=NAME", {shown(target)} is none{hint}')
    encoder, horizon = address.count("encoder", 168), address.count("horizon", 24, most=10_000)
    stride, length = address.count("stride", 1), _LENGTHS[address.choice("period", tuple(_LENGTHS))]
    cuts = _cuts(address, len(values))
    firsts, splits = _firsts(len(values), encoder, horizon, stride, cuts)
    columns = np.arange(len(names)) if alone else np.array([names.index(target)])
    if len(firsts) * len(columns) > MOST_ROWS:
        raise DataError(f"{len(firsts) * len(columns)} windows are over {MOST_ROWS}: give a larger stride")
    hours = [times[first].isoformat(timespec="hours" if _hourly(times) else "minutes") for first in firsts]
    summed = np.concatenate([np.zeros((1, len(names))), values.astype(np.float64).cumsum(axis=0)])
    means = (summed[firsts + horizon] - summed[firsts]) / horizon  # (windows of a series, series)
    known = _calendar(times, cuts[0])
    count = len(values)

    def of(locations: Sequence[str]) -> tuple[Array, Array]:
        """First step to predict, and column, of some windows."""
        places = [location.rpartition(":") for location in locations]
        steps = row_numbers([step for _, _, step in places], count - horizon + 1)
        if any(bool(colon) != alone for _, colon, _ in places) or (len(steps) and steps.min() < encoder):
            raise DataError("a location in the manifest is no window of its file: make a new manifest")
        if not alone:
            return steps, np.full(len(steps), columns[0])
        return steps, row_numbers([column for column, _, _ in places], len(names))

    def fit(locations: Sequence[str]) -> Scaling:
        """From every step that these windows read or predict, each once."""
        covered = np.zeros(count + 1, dtype=np.int64)
        first, _ = of(locations)
        np.add.at(covered, first - encoder, 1)
        np.add.at(covered, first + horizon, -1)
        return fitted(values, np.flatnonzero(covered.cumsum()[:count]))

    def opened(locations: Sequence[str], scaling: Scaling) -> Samples:
        import torch

        from unlearning.data.samples import WindowSamples

        mean = np.array(scaling.mean or (0.0,), dtype=np.float32)
        scaled = (values - mean) / np.array(scaling.std or (1.0,), dtype=np.float32)
        arrays = (torch.from_numpy(array) for array in (scaled, known, *of(locations)))
        return WindowSamples(*arrays, encoder=encoder, horizon=horizon, alone=alone)

    def load(locations: Sequence[str], shape: tuple[int, ...] | None) -> Array:
        """The windows' own values, the horizon with them, unscaled: for looks at a few."""
        first, column = of(locations)
        steps = first[:, None] + np.arange(-encoder, horizon)
        if len(locations) * values[0].size * (encoder + horizon) * 4 > MOST_BYTES:
            raise DataError(f"{len(locations)} windows at once are over {MOST_BYTES} bytes: take fewer")
        return values[steps, column[:, None]][:, :, None] if alone else values[steps]

    return Contents(
        sha256=sha256_of_file(path),
        classes=[],
        targets=means[:, columns].T.reshape(-1).tolist(),
        ids=[f"{names[column]}@{hour}" for column in columns for hour in hours] if alone else hours,
        locations=[f"{column}:{first}" if alone else f"{first}" for column in columns for first in firsts],
        load=load,
        subjects=[names[column] for column in columns for _ in hours] if alone else [hour[:length] for hour in hours],
        splits=splits * len(columns),
        card={
            "features": tuple(names),
            "target_name": "each series" if alone else target,
            "target_unit": address.options.get("unit", ""),
            "horizon": horizon,
        },
        shape=(encoder + horizon, (2 if alone else len(names)) + len(CALENDAR)),
        fit=fit,
        open=opened,
    )


def _series(path: Path, time: str) -> tuple[list[datetime], list[str], Array]:
    """The times, the names of the series, and their values (T, V), float32, in order and without gaps."""
    table = read_columns(path)
    if time not in table:
        hint = nearest(time[:80], table)
        raise DataError(f'windows need a column of times: write "time=NAME", {shown(time)} is none{hint}')
    names = [name for name in table if name != time]
    wordy = [name for name in names if table[name].dtype.kind == "O"]
    if wordy or not names:
        raise DataError(f"every other column must hold numbers, {shown(wordy[0]) if wordy else 'none'} does not")
    try:
        times = [datetime.fromisoformat(str(text)).replace(tzinfo=None) for text in table[time].tolist()]
    except ValueError as error:
        raise DataError(f"the times in {shown(time)} must be like 2017-03-01 05:00:00: one is not") from error
    if len(times) < 3:
        raise DataError(f"{shown(str(path))} holds {len(times)} steps of time, windows need more")
    step = times[1] - times[0]
    for number in range(1, len(times)):
        if times[number] - times[number - 1] != step or step <= timedelta(0):
            raise DataError(f"row {number} of {shown(str(path))} does not follow by {step}: sort it, and fill its gaps")
    with np.errstate(over="ignore"):
        values = np.stack([table[name] for name in names], axis=1).astype(np.float32)
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        raise DataError(f"row {int(np.argmin(finite))} of {shown(str(path))} has a missing or infinite value: fill it")
    return times, names, values


def _cuts(address: Address, steps: int) -> tuple[int, int]:
    """Where the validation and the test time begin."""
    validation, test = address.count("validation", 10, least=0, most=90), address.count("test", 20, most=90)
    if validation + test > 95:
        raise DataError(f"validation and test take {validation + test} hundredths of the time: leave more to train on")
    return steps * (100 - validation - test) // 100, steps * (100 - test) // 100


def _firsts(
    steps: int, encoder: int, horizon: int, stride: int, cuts: tuple[int, int]
) -> tuple[np.ndarray[Any, np.dtype[np.int64]], list[str]]:
    """First step to predict of every window that lies in one split, and that split."""
    firsts = np.arange(encoder, steps - horizon + 1, stride, dtype=np.int64)
    ends = firsts + horizon
    train, test = ends <= cuts[0], firsts >= cuts[1]
    validation = (firsts >= cuts[0]) & (ends <= cuts[1])
    kept = train | validation | test
    if not train.any() or not test.any():
        wanted = f"{encoder} + {horizon} steps"
        raise DataError(f"{steps} steps of time leave no train or no test window of {wanted}: use shorter windows")
    splits: list[str] = np.select([train[kept], test[kept]], ["train", "test"], "validation").tolist()
    return firsts[kept], splits


def _hourly(times: Sequence[datetime]) -> bool:
    return (times[1] - times[0]) % timedelta(hours=1) == timedelta(0) and times[0].minute == 0


def _calendar(times: Sequence[datetime], train_steps: int) -> Array:
    """What is known of every step beforehand: shape (T, 5), float32."""
    parts = [(t.hour / 23, t.weekday() / 6, (t.day - 1) / 30, (t.month - 1) / 11) for t in times]
    elapsed = np.arange(len(times)) / train_steps
    return np.column_stack([np.array(parts) - 0.5, elapsed]).astype(np.float32)
