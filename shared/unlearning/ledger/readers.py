"""Rows of a file of requests, one by one, in bounded memory: JSON Lines, CSV or Parquet.

A row that cannot be read comes out with the reason and never stops the others. Reasons never repeat what the row held.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from unlearning.config import nearest
from unlearning.errors import DataError
from unlearning.ledger.requests import LONGEST_ID, MOST_IDS, SCHEMA

COLUMNS = (
    "controller",
    "key",
    "kind",
    "ids",
    "model",
    "dataset",
    "regulation",
    "submitted_at",
    "priority",
)
MOST_BYTES = 4 << 30
MOST_ROWS = 5_000_000
MOST_LINE = 4 << 20
_LONGEST_TEXT = MOST_IDS * (LONGEST_ID + 1)
_MOST_GROUP = 512 << 20
_BATCH = 2048
_BOM = b"\xef\xbb\xbf"
_PACKED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True)
class Row:
    """One row of a file.

    Attributes:
        line: Its line in the file from 1, or its row from 1 in Parquet.
        values: Its fields, or None when it cannot be read.
        reason: Why it cannot; else "".
    """

    line: int
    values: Mapping[str, Any] | None
    reason: str = ""


def rows(path: Path) -> Iterator[Row]:
    """The rows of a file, in order.

    In CSV, ids are separated by ";". A JSON row may also have `schema_version`, and `ext`, which is not kept.

    Args:
        path: Ends in .jsonl, .ndjson, .csv or .parquet.

    Raises:
        DataError: When the file as a whole cannot be read: another kind, too large, packed, a wrong header.
    """
    kind = path.suffix.lower()
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise DataError(f"{path.name} has {size} bytes, at most {MOST_BYTES} are read: split it")
        if kind == ".parquet":
            yield from _parquet(path)
            return
        with path.open("rb") as file:
            start = file.read(6)
            for mark, name in _PACKED.items():
                if start.startswith(mark):
                    raise DataError(f"{path.name} is packed ({name}): unpack it first, packed files are not read")
            file.seek(len(_BOM) if start.startswith(_BOM) else 0)
            if kind in (".jsonl", ".ndjson"):
                yield from _json_lines(file)
            elif kind == ".csv":
                yield from _csv(file, path.name)
            else:
                raise DataError(f'a file of requests ends in .jsonl, .csv or .parquet, got "{kind[:20]}"')
    except OSError as error:
        raise DataError(f"cannot read {path.name}: {error.strerror or type(error).__name__}: check the path") from error


def _lines(file: BinaryIO) -> Iterator[tuple[int, str | None, str]]:
    """Line number, text and what is wrong; lines that are too long are passed over piece by piece."""
    number = 0
    while raw := file.readline(MOST_LINE + 1):
        number += 1
        if number > MOST_ROWS:
            raise DataError(f"the file has more than {MOST_ROWS} lines: split it")
        if len(raw) > MOST_LINE:
            while not raw.endswith(b"\n") and (raw := file.readline(MOST_LINE)):
                pass
            yield number, None, f"the line has more than {MOST_LINE} bytes"
            continue
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            yield number, None, "the line is not valid UTF-8"
            continue
        text = text.removesuffix("\n").removesuffix("\r")
        if "\x00" in text or "\r" in text:
            yield number, None, "the line holds a NUL or a stray carriage return"
        elif text.strip():
            yield number, text, ""


def _json_lines(file: BinaryIO) -> Iterator[Row]:
    for number, text, reason in _lines(file):
        if text is None:
            yield Row(number, None, reason)
            continue
        try:
            found = json.loads(text, object_pairs_hook=_no_repeats, parse_constant=_no_constant)
            if not isinstance(found, dict):
                raise ValueError("wanted an object with the fields of a request")
            version = found.pop("schema_version", SCHEMA)
            if version != SCHEMA:
                raise ValueError(f'schema_version is not "{SCHEMA}", the one that this program reads')
            found.pop("ext", None)
            if strangers := set(found) - set(COLUMNS):
                raise ValueError(f"{len(strangers)} fields are unknown: put nothing but ids in a request")
        except RecursionError:
            yield Row(number, None, "the JSON is nested too deeply")
        except json.JSONDecodeError as error:
            yield Row(number, None, f"the line is no JSON (character {error.pos + 1})")
        except ValueError as error:
            yield Row(number, None, str(error) if str(error).isascii() and len(str(error)) < 120 else "a bad number")
        else:
            yield Row(number, found)


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a field comes twice in one object")
    return found


def _no_constant(_: str) -> NoReturn:
    raise ValueError("NaN and infinities are no JSON")


def _csv(file: BinaryIO, name: str) -> Iterator[Row]:
    header: list[str] = []
    for number, text, reason in _lines(file):
        if text is None:
            if not header:
                raise DataError(f"{name} has no header: {reason}")
            yield Row(number, None, reason)
            continue
        try:
            # One line at a time: no field may hold a line break, so a quote left open spoils its own row alone.
            (fields,) = csv.reader([text], strict=True)
        except (csv.Error, ValueError):
            if not header:
                raise DataError(f"{name} has no header that can be read: name the columns in its first line") from None
            yield Row(number, None, "the line is no CSV: a quote is left open or a field is too long")
            continue
        if not header:
            header = [field.strip() for field in fields]
            _check_columns(header, name)
        elif len(fields) != len(header):
            yield Row(number, None, f"the line has {len(fields)} fields, the header {len(header)}")
        else:
            values: dict[str, Any] = {key: field for key, field in zip(header, fields, strict=True) if field}
            if "ids" in values:
                values["ids"] = values["ids"].split(";")
            yield Row(number, values)


def _check_columns(names: list[str], what: str) -> None:
    if len(set(names)) != len(names):
        raise DataError(f"{what} names a column twice: name each once")
    for name in names:
        if name not in COLUMNS:
            shown = f'"{name}"' if name.isascii() and name.isidentifier() and len(name) < 40 else "one"
            raise DataError(
                f"{what} has a column that no request has, {shown}{nearest(name[:40], COLUMNS)} "
                f"(valid: {', '.join(COLUMNS)})"
            )
    if "ids" not in names:
        raise DataError(f'{what} has no column "ids": add it')


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    limits: dict[str, Any] = {"thrift_string_size_limit": 16 << 20, "thrift_container_size_limit": 1_000_000}
    try:
        with pq.ParquetFile(path, **limits) as file:
            paths = [file.schema.column(place).path for place in range(len(file.schema))]
            columns = [name for name in paths if name.split(".")[0] in COLUMNS]
        # Texts stay in their dictionaries: a long one that repeats a million times takes its length once.
        file = pq.ParquetFile(path, read_dictionary=columns, **limits)
        with file:
            schema, meta = file.schema_arrow, file.metadata
            _check_columns(list(schema.names), path.name)
            for field in schema:
                kind = field.type.value_type if pa.types.is_list(field.type) and field.name == "ids" else field.type
                kind = kind.value_type if pa.types.is_dictionary(kind) else kind
                if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
                    raise DataError(f'column "{field.name}" of {path.name} holds {kind}, wanted text: write it as text')
            if meta.num_rows > MOST_ROWS:
                raise DataError(f"{path.name} has {meta.num_rows} rows, at most {MOST_ROWS} are read: split it")
            sizes = [meta.row_group(group).total_byte_size for group in range(meta.num_row_groups)]
            if any(not 0 <= size <= _MOST_GROUP for size in sizes):
                raise DataError(
                    f"{path.name} unpacks to more than {_MOST_GROUP} bytes in one row group: use smaller ones"
                )
            number = 0
            for batch in file.iter_batches(batch_size=_BATCH):
                for row in _batch_rows(batch):
                    number += 1
                    if number > MOST_ROWS:
                        raise DataError(f"{path.name} has more rows than it says: make it again")
                    values, reason = row
                    yield Row(number, values, reason)
    except (pa.ArrowException, ValueError, NotImplementedError) as error:
        raise DataError(
            f"{path.name} is no Parquet file that can be read ({type(error).__name__}): make it again"
        ) from error


def _batch_rows(batch: Any) -> Iterator[tuple[dict[str, Any] | None, str]]:
    columns = {name: _column(batch.column(place)) for place, name in enumerate(batch.schema.names)}
    for place in range(batch.num_rows):
        values: dict[str, Any] = {}
        reason = ""
        for name, column in columns.items():
            value, wrong = column(place)
            reason = reason or wrong
            if value is not None:
                values[name] = value.split(";") if name == "ids" and isinstance(value, str) else value
        yield (None, reason) if reason else (values, "")


def _column(array: Any) -> Any:
    """What gives one place of a column, and what is wrong with it."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_list(array.type):
        texts, offsets, whole = _column(array.values), array.offsets, array

        def of_list(place: int) -> tuple[Any, str]:
            if not whole[place].is_valid:
                return None, ""
            first, last = offsets[place].as_py(), offsets[place + 1].as_py()
            if last - first > MOST_IDS:
                return None, f"ids: {last - first} ids: at most {MOST_IDS} in one request, split it"
            pairs = [texts(inner) for inner in range(first, last)]
            return [value for value, _ in pairs], next((wrong for _, wrong in pairs if wrong), "")

        return of_list
    if pa.types.is_dictionary(array.type):
        longest = pc.max(pc.binary_length(array.dictionary)).as_py() or 0
        if longest > _LONGEST_TEXT:
            raise DataError(f"the file holds a text of {longest} bytes, at most {_LONGEST_TEXT} are read: take it out")
        texts, indices = _column(array.dictionary), array.indices

        def of_dictionary(place: int) -> tuple[Any, str]:
            index = indices[place].as_py()
            return (None, "") if index is None else texts(index)

        return of_dictionary

    def of_text(place: int) -> tuple[Any, str]:
        try:
            return array[place].as_py(), ""
        except UnicodeDecodeError:
            return None, "a text is not valid UTF-8"

    return of_text
