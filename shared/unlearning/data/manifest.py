"""The list of every sample of a data set: who it is about, what it is, where it lies. One Parquet file, one digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from unlearning.config import build, nearest
from unlearning.data.card import MOST_CARD_BYTES, SCHEMA, UNSAFE, DataCard, Scaling
from unlearning.errors import DataError, UsageError

__all__ = [
    "LONGEST",
    "MOST_ROWS",
    "SCHEMA",
    "SPLITS",
    "DataCard",
    "Manifest",
    "Scaling",
    "decoded",
    "number_texts",
    "read_manifest",
    "read_parquet",
    "write_manifest",
]
SPLITS = ("train", "test", "validation")
LONGEST = {"sample_id": 256, "subject_id": 256, "target": 256, "split": 16, "location": 4096}
"""The columns in their order, with the most characters that a value may have."""

MOST_ROWS = 50_000_000
_MOST_FILE_BYTES = 2 << 30
_MOST_UNPACKED_BYTES = 8 << 30
_MOST_COLUMN_BYTES = (1 << 31) - 1


class Manifest:
    """A checked data card and table; what a pipeline hands from stage to stage instead of the data.

    Args:
        card: What holds for all samples.
        table: Text columns `sample_id` (unique), `subject_id` (may be null), `target` (a class name, or a
            number as `number_texts` writes it), `split` ("train", "test" or "validation") and `location` (row number or
            relative path in the source).

    Raises:
        DataError: For other columns or types, and for the first row that breaks a rule, by its number from 0.
    """

    def __init__(self, card: DataCard, table: pa.Table) -> None:
        self.card = card
        self.table = _checked(table, card)

    def __len__(self) -> int:
        """The number of samples, all splits together."""
        return int(self.table.num_rows)

    @cached_property
    def digest(self) -> str:
        """Sha256 (hexadecimal) of the card and of every value in order; how the file was encoded plays no part."""
        total = hashlib.sha256()
        for part in (self.card.as_json(), *map(_column_digest, self.table.columns)):
            total.update(len(part).to_bytes(8, "little") + part)
        return total.hexdigest()

    def targets(self) -> np.ndarray[Any, Any]:
        """Class indices (int64), or for regression the numbers (float32), shape (N,).

        Where a sample has several numbers to predict, a forecast, this is their mean; `open_samples` gives them all.
        """
        if self.card.task == "regression":
            return np.asarray(self.table["target"].cast(pa.float64())).astype(np.float32)
        return np.array(_class_indices(self.table["target"], self.card), dtype=np.int64)

    def rows(self, split: str) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Row numbers of "train", "test" or "validation", ascending.

        Raises:
            UsageError: For any other word.
        """
        if split not in SPLITS:
            raise UsageError(f'no split "{split[:40]}"{nearest(split, SPLITS)} (valid: {", ".join(SPLITS)})')
        column: Any = self.table["split"]
        return np.flatnonzero(pc.equal(column, pa.scalar(split))).astype(np.int64)

    def counts(self) -> dict[str, dict[str, int]]:
        """Split to class name to number of rows; splits without rows are left out, classes are not.

        For regression, each split has one entry, under the target's name or "target".
        """
        found = {split: self.rows(split) for split in SPLITS}
        if self.card.task == "regression":
            return {split: {self.card.target_name or "target": len(rows)} for split, rows in found.items() if len(rows)}
        targets, classes = self.targets(), self.card.classes
        return {
            split: dict(zip(classes, np.bincount(targets[rows], minlength=len(classes)).tolist(), strict=True))
            for split, rows in found.items()
            if len(rows)
        }

    def class_index(self, name_or_index: str | int | float) -> int:
        """The index of a class.

        Args:
            name_or_index: The exact name, or else the index as `3`, `3.0` or "3". Names win: where classes are called
                "1" to "6", all of `1`, `1.0` and "1" mean the class of that name.

        Raises:
            UsageError: When there is no such class; names the valid ones.
        """
        if self.card.task == "regression":
            raise UsageError("the data set has numbers to predict, not classes: forget a range of targets instead")
        word = str(name_or_index)
        if isinstance(name_or_index, float) and name_or_index.is_integer():
            word = str(int(name_or_index))
        if not isinstance(name_or_index, bool):
            if word in self.card.classes:
                return self.card.classes.index(word)
            if word.isascii() and word.isdigit() and len(word) < 10:
                index = int(word)
                if str(index) == word and index < len(self.card.classes):
                    return index
        shown = ", ".join(self.card.classes[:20]) + (", ..." if len(self.card.classes) > 20 else "")
        hint = nearest(word[:256], self.card.classes)
        raise UsageError(f"no class {word[:80]!r}{hint} (valid: {shown}, or an index below {len(self.card.classes)})")


def number_texts(values: Sequence[float] | np.ndarray[Any, Any]) -> list[str]:
    """The one text of each number: the shortest that gives the same float32 again.

    Example:
        >>> number_texts(np.array([3, 0.1]))
        ['3.0', '0.1']
    """
    texts: list[str] = (np.asarray(values, dtype=np.float32) + np.float32(0)).astype("U32").tolist()  # -0 becomes 0
    return texts


def write_manifest(manifest: Manifest, path: str | Path) -> None:
    """The manifest as one Parquet file; the same manifest gives the same bytes.

    Args:
        manifest: What to write; its card goes into the file's metadata.
        path: The file; its folder is made.

    Raises:
        OSError: When the disk refuses.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.writing")
    with pq.ParquetWriter(beside, manifest.table.schema, compression="zstd", store_schema=False) as file:
        file.write_table(manifest.table, row_group_size=1 << 20)
        file.add_key_value_metadata({"unlearning": manifest.card.as_json().decode()})
    beside.replace(path)


def read_manifest(source: str | Path | bytes) -> Manifest:
    """The manifest of a Parquet file, checked throughout.

    Args:
        source: The file's path, or its content.

    Raises:
        DataError: When it is missing, too large, damaged, or not a manifest.
    """
    table = read_parquet(source, what="the manifest", columns=_manifest_columns)
    metadata = table.schema.metadata or {}
    if b"unlearning" not in metadata:
        raise DataError('the manifest has no data card (metadata key "unlearning"): make it with make_manifest')
    return Manifest(_read_card(metadata[b"unlearning"]), table)


def read_parquet(source: str | Path | bytes, *, what: str, columns: Callable[[pa.Schema], list[str]]) -> pa.Table:
    """A whole Parquet table within limits; text comes dictionary-encoded, so that repeats cost nothing.

    Args:
        source: The file's path, or its content.
        what: What the file is, for the message.
        columns: Function of the file's Arrow schema that gives the names to read, or raises `DataError`.

    Raises:
        DataError: For a missing or damaged file, more than 2 GiB, 50 million rows, or 8 GiB unpacked.
    """
    limits: dict[str, Any] = {"thrift_string_size_limit": 64 << 20, "thrift_container_size_limit": 10_000_000}
    try:
        size = len(source) if isinstance(source, bytes) else Path(source).stat().st_size
        if size > _MOST_FILE_BYTES:
            raise DataError(f"{what} has {size} bytes, the most is {_MOST_FILE_BYTES}: split the data set")
        where = pa.BufferReader(source) if isinstance(source, bytes) else str(source)
        with pq.ParquetFile(where, **limits) as file:
            schema, metadata = file.schema_arrow, file.metadata
            names = columns(schema)
            groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
            unpacked = sum(group.total_byte_size for group in groups)
            rows = max(metadata.num_rows, sum(group.num_rows for group in groups))
        if rows > MOST_ROWS or unpacked > _MOST_UNPACKED_BYTES or min(unpacked, rows) < 0:
            most = f"{MOST_ROWS} rows and {_MOST_UNPACKED_BYTES} bytes"
            raise DataError(f"{what} unpacks to {rows} rows and {unpacked} bytes, the most is {most}")
        text = [name for name in names if _is_text(schema.field(name).type)]
        where = pa.BufferReader(source) if isinstance(source, bytes) else str(source)
        with pq.ParquetFile(where, read_dictionary=text, **limits) as file:
            table = file.read(columns=names)
        if table.num_rows != metadata.num_rows:
            raise DataError(f"{what} promises {metadata.num_rows} rows and has {table.num_rows}: the file is damaged")
        return table.replace_schema_metadata(metadata.metadata)
    except (pa.ArrowException, OSError, ValueError, KeyError, OverflowError) as error:
        raise DataError(f"{what} cannot be read ({_one_line(error)}): give a whole Parquet file") from error


def decoded(column: Any, *, what: str) -> Any:
    """A text column as plain strings in one piece, measured before it is unpacked.

    Args:
        column: An Arrow column of strings in any encoding, or all null.
        what: The column's name, for the message.

    Raises:
        DataError: For other types, broken UTF-8 and more than 2 GiB of text.
    """
    if not (_is_text(column.type) or pa.types.is_null(column.type)):
        raise DataError(f"{what} must hold text, its type is {str(column.type)[:80]}: convert it to strings")
    try:
        column.validate(full=True)
        if sum(map(_text_bytes, column.chunks)) > _MOST_COLUMN_BYTES:
            raise DataError(f"{what} holds more than {_MOST_COLUMN_BYTES} bytes of text: use shorter values")
        return pa.chunked_array([column.cast(pa.string()).combine_chunks()], type=pa.string())
    except pa.ArrowException as error:
        raise DataError(f"{what} cannot be read ({_one_line(error)}): write it again as UTF-8 text") from error


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _text_bytes(chunk: Any) -> int:
    if pa.types.is_null(chunk.type):
        return 0
    if pa.types.is_dictionary(chunk.type):
        lengths = pc.binary_length(chunk.dictionary.cast(pa.large_string()))
        return int(pc.sum(pc.cast(lengths.take(chunk.indices), pa.int64())).as_py() or 0)
    return int(pc.sum(pc.cast(pc.binary_length(chunk.cast(pa.large_string())), pa.int64())).as_py() or 0)


def _manifest_columns(schema: pa.Schema) -> list[str]:
    if sorted(schema.names) != sorted(LONGEST):
        found = ", ".join(ascii(name)[1:41] for name in schema.names[:10]) or "none"
        raise DataError(f"a manifest has the columns {', '.join(LONGEST)}; this has {found}")
    for name in LONGEST:
        kind = schema.field(name).type
        if not (_is_text(kind) or (name == "subject_id" and pa.types.is_null(kind))):
            raise DataError(f"the manifest's {name} must hold text, its type is {str(kind)[:80]}: convert it")
    return list(LONGEST)


def _checked(table: Any, card: DataCard) -> pa.Table:
    names = _manifest_columns(table.schema)
    if not 0 < table.num_rows <= MOST_ROWS:
        raise DataError(f"a manifest has 1 to {MOST_ROWS} rows, this has {table.num_rows}")
    columns: dict[str, Any] = {name: decoded(table[name], what=f"the manifest's {name}") for name in names}
    for name, column in columns.items():
        if name != "subject_id" and column.null_count:
            _refuse(pc.is_null(column), f"{name} is missing")
        distinct = column if name in ("sample_id", "location") else column.unique()  # few values: look at each once
        lengths, unsafe = pc.utf8_length(distinct), pc.match_substring_regex(distinct, UNSAFE)
        empty, longest = pa.scalar(""), pa.scalar(LONGEST[name])
        if pc.min(lengths).as_py() == 0:
            _refuse(pc.equal(column, empty), f"{name} is empty (a row about nobody has a null subject_id)")
        if (pc.max(lengths).as_py() or 0) > LONGEST[name]:
            _refuse(pc.greater(pc.utf8_length(column), longest), f"{name} has over {LONGEST[name]} characters")
        if pc.any(unsafe).as_py():
            _refuse(pc.match_substring_regex(column, UNSAFE), f"{name} has a control character")
    known = pc.is_in(columns["split"], value_set=pa.array(SPLITS))
    if not pc.all(known).as_py():
        _refuse(pc.invert(known), f"split must be one of {', '.join(SPLITS)}")
    if card.task == "regression":
        _check_numbers(columns["target"])
    else:
        indices = _class_indices(columns["target"], card)
        if indices.null_count:
            _refuse(pc.is_null(indices), f"target is none of the card's {len(card.classes)} classes")
    if pc.count_distinct(columns["sample_id"]).as_py() != table.num_rows:
        codes = np.array(columns["sample_id"].dictionary_encode().combine_chunks().indices)
        repeated = np.setdiff1d(np.arange(table.num_rows), np.unique(codes, return_index=True)[1])
        raise DataError(f"manifest row {repeated[0]}: its sample_id came before; {len(repeated)} rows repeat one")
    schema = pa.schema([pa.field(name, pa.string(), nullable=name == "subject_id") for name in names])
    return pa.Table.from_arrays(list(columns.values()), schema=schema)


def _refuse(wrong: Any, why: str) -> NoReturn:
    raise DataError(f"manifest row {pc.index(wrong, True).as_py()}: {why}")


def _check_numbers(column: Any) -> None:
    """Nothing, when every text is the one that `number_texts` gives a finite number."""
    texts = column.unique()
    plain = pc.match_substring_regex(texts, r"^-?[0-9]+(\.[0-9]+)?(e[+-][0-9]+)?$")
    if not pc.all(plain).as_py():
        _refuse(pc.is_in(column, value_set=texts.filter(pc.invert(plain))), "target is no number")
    with np.errstate(over="ignore"):
        numbers = np.asarray(texts.cast(pa.float64())).astype(np.float32)
    again = pa.array(number_texts(numbers), type=pa.string())
    wrong = pc.or_(pc.not_equal(again, texts), pa.array(~np.isfinite(numbers)))
    if pc.any(wrong).as_py():
        why = "target is no finite float32 number in its shortest spelling: write it as number_texts does"
        _refuse(pc.is_in(column, value_set=texts.filter(wrong)), why)


def _class_indices(target: Any, card: DataCard) -> Any:
    return pc.index_in(target, value_set=pa.array(card.classes, type=pa.string()))


def _column_digest(column: Any) -> bytes:
    """Of all lengths (-1 for null), then all bytes: no two columns give the same text."""
    filled = column.fill_null("")
    lengths = np.array(pc.binary_length(filled), dtype="<i8")
    lengths[np.array(column.is_null())] = -1
    total = hashlib.sha256(lengths.tobytes())
    for chunk in filled.chunks:
        _, offsets, data = chunk.buffers()
        if data is not None:
            ends = np.frombuffer(offsets, dtype=np.int32, count=chunk.offset + len(chunk) + 1)
            total.update(memoryview(data)[int(ends[chunk.offset]) : int(ends[-1])])
    return total.digest()


def _read_card(content: bytes) -> DataCard:
    if len(content) > MOST_CARD_BYTES:
        raise DataError(f"the manifest's data card has {len(content)} bytes, the most is {MOST_CARD_BYTES}")
    try:
        values = json.loads(content, object_pairs_hook=_without_repeats, parse_constant=_no_number)
        if not isinstance(values, dict):
            raise ValueError("it is not a mapping")
    except (ValueError, RecursionError) as error:
        raise DataError(f"the manifest's data card is not valid JSON ({_one_line(error)})") from error
    schema = values.pop("schema", None)
    if schema != SCHEMA:
        raise DataError(f"the manifest's schema is {str(schema)[:80]!r}, this version reads {SCHEMA!r}")
    try:
        return build(DataCard, values, what="the manifest's data card")
    except UsageError as error:
        raise DataError(_one_line(error)) from error


def _without_repeats(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    pairs = list(pairs)
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key is there twice")
    return dict(pairs)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
