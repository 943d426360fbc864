import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unlearning.data.manifest import DataCard, Manifest, number_texts, read_manifest, write_manifest
from unlearning.errors import DataError, UnlearningError, UsageError

CARD = DataCard(
    source="digits",
    task="classification",
    classes=("cat", "dog", "7"),
    input_shape=(1, 8, 8),
    mean=(0.25,),
    std=(0.5,),
    source_sha256="0" * 64,
    name="pets",
)
COLUMNS = {
    "sample_id": ["a", "b", "c", "d", "é"],
    "subject_id": ["ann", None, "bob", "ann", None],
    "target": ["cat", "dog", "7", "dog", "cat"],
    "split": ["train", "train", "train", "test", "validation"],
    "location": ["0", "1", "2", "3", "4"],
}


def table(**changed: object) -> pa.Table:
    return pa.table({**COLUMNS, **changed})


def manifest(**changed: object) -> Manifest:
    return Manifest(CARD, table(**changed))


def swapped(column: str, row: int, value: str | None) -> dict[str, list[str | None]]:
    values: list[str | None] = list(COLUMNS[column])
    values[row] = value
    return {column: values}


def test_a_written_manifest_reads_back_with_its_digest(tmp_path: Path) -> None:
    made = manifest()
    write_manifest(made, tmp_path / "sub" / "m.parquet")
    for source in (tmp_path / "sub" / "m.parquet", (tmp_path / "sub" / "m.parquet").read_bytes()):
        back = read_manifest(source)
        assert back.card == CARD
        assert back.table.to_pydict() == COLUMNS
        assert back.digest == made.digest
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["m.parquet"]


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    write_manifest(manifest(), tmp_path / "one.parquet")
    write_manifest(read_manifest(tmp_path / "one.parquet"), tmp_path / "two.parquet")
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()


@pytest.mark.parametrize("compression", ["none", "gzip", "snappy"])
@pytest.mark.parametrize("dictionary", [True, False])
def test_the_digest_does_not_depend_on_how_the_file_was_encoded(
    tmp_path: Path, compression: str, dictionary: bool
) -> None:
    other = table().select(sorted(COLUMNS)).replace_schema_metadata({b"unlearning": CARD.as_json(), b"by": b"another"})
    pq.write_table(other, tmp_path / "m", compression=compression, use_dictionary=dictionary, row_group_size=2)
    assert read_manifest(tmp_path / "m").digest == manifest().digest


def test_the_digest_does_not_depend_on_chunks_dictionaries_offsets_or_wide_strings() -> None:
    wide = pa.schema([(name, pa.large_string()) for name in COLUMNS])
    coded = pa.schema([(name, pa.dictionary(pa.int32(), pa.string())) for name in COLUMNS])
    doubled = pa.concat_tables([table(), table()])
    variants = [
        table().cast(wide),
        table().cast(coded),
        pa.concat_tables([table().slice(0, 2), table().slice(2)]),
        doubled.combine_chunks().slice(5),
    ]
    assert {Manifest(CARD, variant).digest for variant in variants} == {manifest().digest}


def test_bytes_hidden_behind_a_null_do_not_reach_the_digest() -> None:
    hidden = pa.StringArray.from_buffers(
        5,
        pa.py_buffer(np.array([0, 3, 6, 9, 12, 12], dtype=np.int32).tobytes()),
        pa.py_buffer(b"annXXXbobann"),
        pa.py_buffer(bytes([0b01101])),
    )
    assert hidden.to_pylist() == COLUMNS["subject_id"]
    assert manifest(subject_id=hidden).digest == manifest().digest


def test_the_digest_is_the_one_computed_by_hand() -> None:
    from hashlib import sha256

    total = sha256()
    parts = [CARD.as_json()]
    for values in COLUMNS.values():
        lengths = b"".join(
            (-1 if value is None else len(value.encode())).to_bytes(8, "little", signed=True) for value in values
        )
        parts.append(sha256(lengths + "".join(value or "" for value in values).encode()).digest())
    for part in parts:
        total.update(len(part).to_bytes(8, "little") + part)
    assert manifest().digest == total.hexdigest()


@pytest.mark.parametrize(
    "changed",
    [
        swapped("sample_id", 0, "A"),
        swapped("subject_id", 1, "ann"),
        swapped("subject_id", 0, None),
        swapped("target", 0, "dog"),
        swapped("split", 4, "test"),
        swapped("location", 4, "5"),
        {"sample_id": ["ab", "c", "b", "d", "é"]},
        {name: values[::-1] for name, values in COLUMNS.items()},
    ],
)
def test_one_changed_cell_or_another_order_changes_the_digest(changed: dict[str, object]) -> None:
    assert manifest(**changed).digest != manifest().digest


def test_moving_a_border_between_two_cells_changes_the_digest() -> None:
    one, two = manifest(location=["12", "3", "4", "5", "6"]), manifest(location=["1", "23", "4", "5", "6"])
    assert one.digest != two.digest


def test_a_changed_card_changes_the_digest() -> None:
    assert Manifest(replace(CARD, mean=(0.26,)), table()).digest != manifest().digest


def test_a_card_of_lists_and_whole_numbers_equals_the_one_read_back() -> None:
    card = DataCard(
        source="digits", task="classification", classes=["a", "b"], input_shape=[2], mean=[0, 1], std=[1, 2]
    )
    assert card.mean == (0.0, 1.0)
    assert b'"mean":[0.0,1.0]' in card.as_json()


def test_targets_rows_and_counts_follow_the_table() -> None:
    made = manifest()
    assert len(made) == 5
    assert made.targets().tolist() == [0, 1, 2, 1, 0]
    assert made.targets().dtype == np.int64
    assert made.rows("train").tolist() == [0, 1, 2]
    assert made.rows("validation").tolist() == [4]
    assert made.counts() == {
        "train": {"cat": 1, "dog": 1, "7": 1},
        "test": {"cat": 0, "dog": 1, "7": 0},
        "validation": {"cat": 1, "dog": 0, "7": 0},
    }
    with pytest.raises(UsageError, match='did you mean "train"'):
        made.rows("trian")


@pytest.mark.parametrize(
    ("given_", "index"), [("cat", 0), ("dog", 1), ("7", 2), (7, 2), (7.0, 2), (0, 0), ("1", 1), (1.0, 1), ("2", 2)]
)
def test_a_class_is_found_by_name_and_then_by_index(given_: str | int | float, index: int) -> None:
    assert manifest().class_index(given_) == index


@pytest.mark.parametrize(
    "wrong", ["Cat", "3", 3, -1, 0.5, float("nan"), float("inf"), "01", " 1", "1.0", True, "", "²"]
)
def test_no_other_spelling_of_a_class_is_taken(wrong: str | int | float) -> None:
    with pytest.raises(UsageError, match=r"valid: cat, dog, 7, or an index below 3"):
        manifest().class_index(wrong)


def test_a_misspelt_class_gets_the_nearest_name_and_at_most_twenty_valid_ones() -> None:
    classes = tuple(f"kind {number}" for number in range(30))
    many = Manifest(replace(CARD, classes=classes), table(target=["kind 1"] * 5))
    with pytest.raises(UsageError, match='did you mean "kind 1"') as caught:
        many.class_index("kynd 1")
    assert "kind 19, ..." in str(caught.value)
    assert "kind 20," not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (swapped("sample_id", 3, "b"), "row 3: its sample_id came before"),
        (swapped("sample_id", 2, "secret" * 50), "row 2: sample_id has over 256"),
        (swapped("sample_id", 2, "secret\n"), "row 2: sample_id has a control"),
        (swapped("sample_id", 2, "secret\x00"), "row 2: sample_id has a control"),
        (swapped("subject_id", 4, "secret\u202e"), "row 4: subject_id has a control"),
        (swapped("subject_id", 1, ""), "row 1: subject_id is empty"),
        (swapped("sample_id", 0, ""), "row 0: sample_id is empty"),
        (swapped("sample_id", 1, None), "row 1: sample_id is missing"),
        (swapped("split", 1, "secret"), "row 1: split must be one of"),
        (swapped("target", 4, "secret"), "row 4: target is none of"),
        (swapped("location", 4, "\x7fsecret"), "row 4: location has a control"),
        ({"sample_id": [1, 2, 3, 4, 5]}, "sample_id must hold text"),
        ({"extra": ["secret"] * 5}, "a manifest has the columns"),
        ({name: pa.array([], pa.string()) for name in COLUMNS}, "1 to 50000000 rows"),
    ],
)
def test_a_row_that_breaks_a_rule_is_named_by_its_number_and_never_by_its_id(
    changed: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        manifest(**changed)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changed",
    [
        {"task": "regression"},
        {"classes": ("one",)},
        {"classes": ("one", "one")},
        {"classes": ("one", "two\n")},
        {"classes": ("one", "\ud800")},
        {"classes": ("one", "")},
        {"input_shape": (8, 8)},
        {"input_shape": (0, 8, 8)},
        {"mean": (float("nan"),)},
        {"std": (0.0,)},
        {"std": (1.0, 1.0)},
        {"source_sha256": "F" * 64},
        {"source": ""},
        {"name": "n" * 257},
        {"classes": tuple(f"{number:0256d}" for number in range(20_000))},
    ],
)
def test_a_card_that_contradicts_itself_is_refused(changed: dict[str, object]) -> None:
    with pytest.raises(DataError):
        replace(CARD, **changed)


def with_card(content: bytes, path: Path) -> Path:
    pq.write_table(table().replace_schema_metadata({b"unlearning": content}), path)
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "not a mapping"),
        (b"\xff", "not valid JSON"),
        (b"[" * 200_000, "not valid JSON"),
        (b'{"schema": "unlearning-manifest/1", "schema": 1}', "a key is there twice"),
        (b'{"schema": "unlearning-manifest/2"}', "this version reads 'unlearning-manifest/1'"),
        (b'{"mean": [NaN]}', "NaN is not a number"),
        (CARD.as_json().replace(b'"name"', b'"nome"'), 'did you mean "name"'),
        (CARD.as_json().replace(b"[0.5]", b"[1e999]"), "finite"),
        (CARD.as_json().replace(b"[0.5]", b'["x"]'), "std"),
        (b" " * (5 << 20), "bytes, the most is"),
    ],
)
def test_a_malformed_card_in_a_file_is_refused_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_manifest(with_card(content, tmp_path / "m"))
    assert "\n" not in str(caught.value)


def test_a_file_without_a_card_or_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    pq.write_table(table(), tmp_path / "bare")
    with pytest.raises(DataError, match="no data card"):
        read_manifest(tmp_path / "bare")
    with pytest.raises(DataError, match="cannot be read"):
        read_manifest(b"PAR1 or not")
    with pytest.raises(DataError, match="cannot be read"):
        read_manifest(tmp_path / "missing")


def test_broken_utf8_is_refused(tmp_path: Path) -> None:
    write_manifest(manifest(), tmp_path / "m")
    names = table(sample_id=["aaaaaa", "b", "c", "d", "e"]).replace_schema_metadata({b"unlearning": CARD.as_json()})
    pq.write_table(names, tmp_path / "m", compression="none", use_dictionary=False, write_statistics=False)
    content = (tmp_path / "m").read_bytes()
    assert content.count(b"aaaaaa") == 1
    with pytest.raises(DataError, match="sample_id cannot be read"):
        read_manifest(content.replace(b"aaaaaa", b"aa\xffaaa"))


def test_a_few_bytes_that_unpack_to_terabytes_are_refused_by_their_size(tmp_path: Path) -> None:
    rows = 20_000
    long = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, dtype=np.int32)), pa.array(["x" * 1_000_000]))
    bomb = pa.table(
        {
            "sample_id": [str(row) for row in range(rows)],
            "subject_id": pa.nulls(rows, pa.string()),
            "target": long,
            "split": ["train"] * rows,
            "location": [""] * rows,
        }
    )
    pq.write_table(bomb.replace_schema_metadata({b"unlearning": CARD.as_json()}), tmp_path / "m")
    assert (tmp_path / "m").stat().st_size < 1_000_000
    with pytest.raises(DataError, match="bytes of text"):
        read_manifest(tmp_path / "m")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("manifest") / "m"
    write_manifest(manifest(), path)
    return path.read_bytes()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_with_flipped_bytes_is_read_or_refused_but_never_crashes(good: bytes, data: st.DataObject) -> None:
    content = bytearray(good)
    for place in data.draw(st.lists(st.integers(0, len(good) - 1), min_size=1, max_size=8)):
        content[place] = data.draw(st.integers(0, 255))
    try:
        back = read_manifest(bytes(content[: data.draw(st.integers(len(good) - 40, len(good)))]))
    except UnlearningError:
        return
    assert len(back) == 5


def test_a_million_rows_are_made_and_digested_in_seconds() -> None:
    rows = 1_000_000
    numbers = [str(row) for row in range(rows)]
    columns = {
        "sample_id": numbers,
        "subject_id": pa.array(numbers),
        "target": ["cat"] * rows,
        "split": ["train"] * rows,
        "location": numbers,
    }
    big = pa.table(columns)
    start = time.process_time()
    assert len(Manifest(CARD, big).digest) == 64
    assert time.process_time() - start < 8  # seconds of processor time; about one is usual


def test_the_card_is_plain_json_with_its_schema_named(good: bytes) -> None:
    metadata = pq.read_metadata(pa.BufferReader(good)).metadata
    assert json.loads(metadata[b"unlearning"])["schema"] == "unlearning-manifest/1"


# Numbers to predict


def test_a_card_of_numbers_has_no_classes_and_a_card_of_classes_no_unit() -> None:
    card = DataCard("x", "regression", (), (2,), (0.0, 0.0), (1.0, 1.0), target_name="age", target_unit="years")
    with pytest.raises(DataError, match="have no classes"):
        replace(card, classes=("a", "b"))
    with pytest.raises(DataError, match="classes have no target_name"):
        replace(card, task="classification", classes=("a", "b"))
    with pytest.raises(DataError, match="as many fill values"):
        replace(card, fill=(1.0,))
    with pytest.raises(DataError, match="horizon must be"):
        replace(card, horizon=0)
    with pytest.raises(DataError, match="tokens have the shape"):
        replace(card, vocabulary=5)
    tokens = DataCard("x", "regression", (), (2, 7), (), (), vocabulary=5)
    assert tokens.scaling.mean == ()


def test_the_digest_of_a_card_without_the_younger_fields_stays_as_it_was() -> None:
    card = DataCard("x", "classification", ("a", "b"), (1,), (0.0,), (1.0,))
    assert json.loads(card.as_json()).keys() == {
        *("classes", "input_shape", "mean", "name", "schema", "source", "source_sha256", "std", "task"),
    }


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_the_text_of_a_number_gives_it_back_exactly(values: list[float]) -> None:
    card = DataCard("x", "regression", (), (1,), (0.0,), (1.0,))
    ids = [str(row) for row in range(len(values))]
    columns = {
        "sample_id": ids,
        "subject_id": pa.nulls(len(values)),
        "target": number_texts(values),
        "split": ["train"] * len(values),
        "location": ids,
    }
    assert Manifest(card, pa.table(columns)).targets().tolist() == values
