"""Tables: Parquet files of numbers, csv files with words and gaps, and the diabetes set of scikit-learn.

`table:FILE` reads csv (by any other name too) or `.parquet`. Its options:

- `target`: the column to predict. Needed.
- `task`: regression, or classification.
- `subject`: the column that says whom a row is about; it is no feature.
- `drop`: columns to leave out, with commas: a second target above all.
- `sep`: comma, semicolon, tab or space.
- `names`: the columns' names, with commas, where the file has no header; or `header=no`: they are called f0, f1, ...
- `divide`: the target is divided by it: 100000 to predict prices in units of 100,000.
- `unit`: of the target, for people.

A column of words becomes one column of 0 and 1 for each word, "column=word". A column of numbers with gaps (empty, NA,
NaN, ?) keeps NaN, which the card's `fill` replaces by the median of the train split, and has a column "column missing"
of 0 and 1 beside it.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from unlearning.config import nearest
from unlearning.data.manifest import decoded, read_parquet
from unlearning.data.sources.contents import (
    MOST_BYTES,
    Address,
    Array,
    Contents,
    numbers_of,
    read_file,
    sha256_of,
    sha256_of_file,
    shown,
    tabular,
)
from unlearning.errors import DataError, UsageError


def parquet(address: Address) -> Contents:
    """Numeric columns and a target, perhaps `sample_id`, `subject_id`, `split`."""
    target = address.options.get("target_column", "target")
    extra: tuple[str, ...] = ("sample_id", "subject_id", "split")
    path = Path(address.place)

    def columns(schema: pa.Schema) -> list[str]:
        if len(set(schema.names)) != len(schema.names) or target not in schema.names:
            hint = nearest(target[:80], schema.names)
            raise DataError(f"the table needs different column names and a target column {shown(target)}{hint}")
        for name in schema.names:
            kind = schema.field(name).type
            number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
            if name not in (target, *extra) and not number:
                raise DataError(f"the feature {shown(name)} must be numeric, its type is {str(kind)[:40]}: convert it")
        if set(schema.names) <= {target, *extra}:
            raise DataError("the table has no feature columns: add numeric columns")
        return list(schema.names)

    table = read_parquet(path, what=f"the table {shown(str(path))}", columns=columns)
    features = [name for name in table.column_names if name not in (target, *extra)]
    if table.num_rows * len(features) * 4 > MOST_BYTES:
        raise DataError(f"the table has over {MOST_BYTES} bytes of features: split the data set")
    inputs = np.empty((table.num_rows, len(features)), dtype=np.float32)
    for number, name in enumerate(features):
        if table[name].null_count:
            raise DataError(f"the feature {shown(name)} has missing values: fill them in or leave the column out")
        with np.errstate(over="ignore"):
            inputs[:, number] = np.asarray(table[name].cast(pa.float64(), safe=False))
    texts = {name: _column_texts(table[name], name) for name in extra if name in table.column_names}
    column = table[target]
    if column.null_count:
        raise DataError("the target column has missing values: leave those rows out")
    targets = np.asarray(column) if not _wordy(column.type) else np.array(_column_texts(column, target), dtype=object)
    return tabular(sha256_of_file(path), inputs, targets, texts, None)


OPTIONS = ("target", "task", "subject", "drop", "sep", "names", "header", "divide", "unit")
_SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "space": " "}
_MOST_WORDS = 200
_GAPS = ["", "NA", "N/A", "NaN", "nan", "null", "?"]


def table(address: Address) -> Contents:
    """Rows of a csv or Parquet file, one number or class of each to predict."""
    path, target = Path(address.place), address.options.get("target", "")
    subject, task = address.options.get("subject", ""), address.choice("task", ("regression", "classification"))
    separator = _SEPARATORS[address.choice("sep", tuple(_SEPARATORS))]
    headless = address.choice("header", ("yes", "no")) == "no"
    columns = read_columns(path, separator=separator, names=address.listed("names"), headless=headless)
    for role, name in (("target", target), *(("subject", subject),) * bool(subject)):
        if name not in columns:
            hint = nearest(name[:80], columns) or f" (columns: {', '.join(list(columns)[:20])})"
            raise DataError(f'the table needs its {role} column: write "{role}=NAME", {shown(name)} is none{hint}')
    dropped = address.listed("drop")
    if strangers := [name for name in dropped if name not in columns or name in (target, subject)]:
        raise UsageError(f"drop names {shown(strangers[0])}, which is no feature column of the table")
    features: dict[str, Array] = {}
    for name, column in columns.items():
        if name not in (target, subject, *dropped):
            features |= _features(name, column)
    if not features:
        raise DataError("the table has no feature columns: drop fewer")
    values = np.asarray(columns[target])
    if task == "regression":
        values = np.array(numbers_of(values, f"the column {shown(target)}", _divisor(address)))
    elif values.dtype.kind == "O":
        values = np.array(words_of(columns[target], target), dtype=object)
    texts: dict[str, list[Any]] = {"subject_id": words_of(columns[subject], subject)} if subject else {}
    facts: dict[str, Any] = {"features": tuple(features)}
    if task == "regression":
        facts |= {"target_name": target, "target_unit": address.options.get("unit", "")}
    inputs = np.stack(list(features.values()), axis=1)
    return tabular(sha256_of_file(path), inputs, values, texts, None, task=task, card=facts, missing=True)


def diabetes(address: Address) -> Contents:
    """Ten measures of 442 people and a score of how far their illness went within a year, 25 to 346."""
    from sklearn.datasets import load_diabetes

    data = load_diabetes(scaled=False)
    inputs, targets = data.data.astype(np.float32), data.target.astype(np.float32)
    texts: dict[str, list[Any]] = {"sample_id": [f"diabetes-{row:03d}" for row in range(len(inputs))]}
    facts = {"features": tuple(data.feature_names), "target_name": "progression", "target_unit": "points"}
    return tabular(sha256_of(inputs, targets), inputs, targets, texts, None, task="regression", card=facts)


def read_columns(
    path: Path, *, separator: str = ",", names: list[str] | None = None, headless: bool = False
) -> dict[str, Any]:
    """Column name to its values as numpy has them: numbers (NaN for a gap in them), or objects that are text.

    Args:
        path: `.parquet`, or csv under any other name.
        separator: Of the fields of a csv file.
        names: Of the columns of a csv file that has no header.
        headless: Whether a csv file without `names` has no header either.

    Raises:
        DataError: When it is missing, damaged, too large, or repeats a column name.
    """
    if path.suffix.lower() == ".parquet":
        read = read_parquet(path, what=f"the table {shown(str(path))}", columns=lambda schema: list(schema.names))
    else:
        read = _read_csv(path, separator, names or [], headless)
    if len(set(read.column_names)) != len(read.column_names) or not all(read.column_names):
        raise DataError(f"the columns of {shown(str(path))} need different names: give them by names=, or a header")
    return {name: _plain(read[name], name) for name in read.column_names}


def words_of(column: Any, what: str) -> list[str]:
    """Values of a column of words or whole numbers as text.

    Raises:
        DataError: For a gap, or for numbers that are not whole.
    """
    values = np.asarray(column)
    if values.dtype.kind == "f" and np.isfinite(values).all() and bool((values == np.floor(values)).all()):
        values = values.astype(np.int64)
    words = values.tolist()
    if values.dtype.kind not in "iuO" or None in words:
        raise DataError(f"the column {shown(what)} must hold words or whole numbers in every row: mend it")
    return [str(word) for word in words]


def _read_csv(path: Path, separator: str, names: list[str], headless: bool) -> pa.Table:
    from pyarrow import csv

    try:
        return csv.read_csv(
            io.BytesIO(read_file(path)),
            read_options=csv.ReadOptions(
                use_threads=False, column_names=names or None, autogenerate_column_names=headless and not names
            ),
            parse_options=csv.ParseOptions(delimiter=separator),
            convert_options=csv.ConvertOptions(null_values=_GAPS, strings_can_be_null=True),
        )
    except pa.ArrowException as error:
        reason = " ".join(str(error).split())[:160]
        raise DataError(
            f"{shown(str(path))} is no table with these options ({reason}): see sep, names, header"
        ) from error


def _plain(column: Any, name: str) -> Array:
    kind = column.type
    if pa.types.is_null(kind):
        return np.full(len(column), np.nan)
    if pa.types.is_integer(kind) and not column.null_count:
        return np.asarray(column.cast(pa.int64()))
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        kind = pa.int8() if pa.types.is_boolean(kind) else kind
        numbers = column.cast(kind).cast(pa.float64(), safe=False)
        return np.asarray(numbers.fill_null(float("nan")))
    if pa.types.is_temporal(kind):
        column = column.cast(pa.string())
    return np.array(_column_texts(column, name), dtype=object)


def _features(name: str, column: Array) -> dict[str, Array]:
    """One column of numbers, perhaps with a flag for its gaps, or one of 0 and 1 for each word."""
    if column.dtype.kind != "O":
        values = column.astype(np.float64)
        gaps = np.isnan(values)
        return {name: values, **({f"{name} missing": gaps.astype(np.float64)} if gaps.any() else {})}
    words = ["missing" if word is None else word for word in column.tolist()]
    distinct = sorted(set(words))
    if len(distinct) > _MOST_WORDS:
        raise DataError(
            f"the column {shown(name)} has {len(distinct)} different words, the most is {_MOST_WORDS}: drop it"
        )
    array = np.array(words, dtype=object)
    return {f"{name}={word}": (array == word).astype(np.float64) for word in distinct}


def _divisor(address: Address) -> float:
    text = address.options.get("divide", "1")
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1e-9 <= value <= 1e12:
        raise UsageError(f"divide must be a number from 1e-9 to 1e12, got {shown(text)}")
    return value


def _wordy(kind: pa.DataType) -> bool:
    return not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _column_texts(column: Any, what: str) -> list[Any]:
    if pa.types.is_integer(column.type):
        column = column.cast(pa.string())
    texts: list[Any] = decoded(column, what=f"the column {shown(what)}").to_pylist()
    return texts
