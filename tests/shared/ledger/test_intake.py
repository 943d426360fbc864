import base64
import csv
import json
import resource
import subprocess
import sys
import textwrap
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.fuzz import fuzz, written, wrong_with
from support.hostile import payloads

from unlearning.errors import DataError
from unlearning.ledger.filing import cancel, read_ids
from unlearning.ledger.intake import Report, import_file
from unlearning.ledger.opendsr import accept, answer_status
from unlearning.ledger.opendsr import cancel as cancel_opendsr
from unlearning.ledger.overview import find, list_requests, status
from unlearning.ledger.readers import MOST_LINE, rows
from unlearning.ledger.store import Ledger
from unlearning.ledger.verification import verify

DEFAULTS = {"controller": "shop", "model": "faces"}
GOOD = {"key": "good", "kind": "subject", "ids": ["user-1"], "submitted_at": "2026-11-20T12:00:00Z"}
FORMATS = ("jsonl", "csv", "parquet")


@pytest.fixture(params=["sqlite"])
def dialect(request: pytest.FixtureRequest) -> str:
    """Nothing here depends on the database."""
    return str(request.param)


def write(folder: Path, kind: str, records: list[dict[str, Any]]) -> Path:
    path = folder / f"requests.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif kind == "csv":
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, list(records[0]), lineterminator="\n")
            table.writeheader()
            table.writerows({k: ";".join(v) if isinstance(v, list) else v for k, v in one.items()} for one in records)
    else:
        pq.write_table(pa.Table.from_pylist(records), path)
    return path


def take(ledger: Ledger, path: Path, **options: Any) -> Report:
    return import_file(ledger, path, actor="intake", defaults=DEFAULTS, **options)


def raw(folder: Path, content: bytes, name: str = "requests.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_requests(ledger: Ledger, tmp_path: Path, kind: str) -> None:
    records = [{**GOOD, "key": f"k{n}", "ids": [f"user-{n}", f"u{n}"], "regulation": "ccpa"} for n in range(3)]
    report = take(ledger, write(tmp_path, kind, records))
    assert (report.accepted, report.rejected, report.rejects) == (3, 0, [])
    refs = [ledger.names.request("shop", f"k{n}") for n in range(3)]
    assert [row["ref"] for row in list_requests(ledger)] == refs
    assert {kept.ids for kept in read_ids(ledger, refs)} == {(f"u{n}", f"user-{n}") for n in range(3)}
    assert find(ledger, refs[0])["due_at"] == "2027-01-04T12:00:00.000000Z"
    head = ledger.head()
    again = take(ledger, write(tmp_path, kind, records))
    assert (again.accepted, again.repeated, ledger.head()) == (0, 3, head)
    assert verify(ledger) == []


@pytest.mark.parametrize("kind", FORMATS)
def test_a_bad_row_is_reported_by_its_line_and_blocks_no_other(ledger: Ledger, tmp_path: Path, kind: str) -> None:
    records = [{**GOOD, "key": f"k{n}"} for n in range(4)]
    records[1]["kind"] = "feature"
    records[2]["ids"] = ["../../etc/passwd"]
    out = tmp_path / "rejects.jsonl"
    report = take(ledger, write(tmp_path, kind, records), rejects=out)
    first = 2 if kind == "csv" else 1
    assert (report.accepted, report.rejected, report.twins) == (2, 2, 1)
    assert [line for line, _ in report.rejects] == [first + 1, first + 2]
    assert "kind" in report.rejects[0][1]
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert written == [{"line": line, "reason": reason} for line, reason in report.rejects]
    assert "passwd" not in out.read_text()


BAD_LINES: dict[str, bytes] = {
    "not an object": b"[1, 2]",
    "no JSON": b"{",
    "trailing text": b'{"key": "a"} x',
    "bad UTF-8": b'{"key": "\xff\xfe"}',
    "a NUL": b'{"key": "a\x00"}',
    "an escaped NUL": b'{"key": "a\\u0000"}',
    "a lone surrogate": b'{"key": "\\ud800"}',
    "a repeated field": b'{"key": "a", "key": "b", "kind": "subject", "ids": ["x"]}',
    "a repeated field inside": b'{"key": "a", "kind": "subject", "ids": [{"a": 1, "a": 2}]}',
    "NaN": b'{"key": NaN}',
    "infinity": b'{"key": -Infinity}',
    "a huge float": b'{"key": 1e309}',
    "a huge integer": b'{"key": ' + b"9" * 5000 + b"}",
    "deep nesting": b"[" * 100_000 + b"]" * 100_000,
    "a feature": b'{"key": "a", "kind": "sample", "ids": ["x"], "features": [0.1]}',
    "a field of 10,000 characters": b'{"key": "' + b"a" * 10_000 + b'", "kind": "sample", "ids": ["x"]}',
    "a formula": b'{"key": "=cmd|x", "kind": "sample", "ids": ["x"]}',
    "a formula as id": b'{"key": "a", "kind": "sample", "ids": ["=HYPERLINK(1)"]}',
    "HTML": b'{"key": "a", "kind": "sample", "ids": ["<script>alert(1)</script>"]}',
    "a template": b'{"key": "a", "kind": "sample", "ids": ["{{7*7}}"]}',
    "traversal": b'{"key": "../a", "kind": "sample", "ids": ["x"]}',
    "a look-alike": '{"key": "a", "kind": "subject", "ids": ["us\u0435r-1"]}'.encode(),
    "a number as id": b'{"key": "a", "kind": "subject", "ids": [1]}',
    "a null id": b'{"key": "a", "kind": "subject", "ids": [null]}',
    "no ids": b'{"key": "a", "kind": "subject", "ids": []}',
    "another schema": b'{"schema_version": "unlearning-request/9", "key": "a"}',
    "another request's state": b'{"key": "a", "kind": "subject", "ids": ["x"], "state": "closed"}',
    "too long a line": b'{"key": "' + b"a" * (MOST_LINE + 10) + b'"}',
}


@pytest.mark.parametrize("what", BAD_LINES)
def test_hostile_lines_are_rejected_and_what_they_held_is_not_repeated(
    ledger: Ledger, tmp_path: Path, what: str
) -> None:
    good = json.dumps(GOOD).encode()
    path = raw(tmp_path, b"\xef\xbb\xbf" + good + b"\r\n" + BAD_LINES[what] + b"\n\n" + good.replace(b"good", b"two"))
    report = take(ledger, path)
    assert (report.accepted, report.rejected) == (2, 1)
    ((line, reason),) = report.rejects
    assert line == 2
    assert reason
    assert len(reason) < 400
    assert reason.isascii()
    assert reason.isprintable()
    for part in ("HYPERLINK", "alert", "7*7", "aaaa", "9999"):
        assert part not in reason


def test_what_is_under_ext_is_let_go(ledger: Ledger, tmp_path: Path) -> None:
    record = {**GOOD, "schema_version": "unlearning-request/1", "ext": {"name": "Canary Jones"}}
    assert take(ledger, write(tmp_path, "jsonl", [record])).accepted == 1
    left = b"".join(path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file())
    assert b"Canary" not in left


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'k2,subject,"user-1', "quote is left open"),
        (b"k2,subject,user-1,more", "4 fields"),
        (b"k2,subject", "2 fields"),
        (b"k2,subject,=1+1", "ids"),
        (b"k2,subject,@SUM(A1)", "ids"),
        (b"k2,subject,user-1;;user-2", "ids"),
        (b"k2,subject," + b"x" * 200_000, "field is too long"),
        (b"k2,subject,a\x00b", "NUL"),
        (b"k2,subject,\xff", "UTF-8"),
        (b"k2,subject,a\rb", "carriage return"),
        (b"=k2,subject,user-1", "key"),
    ],
)
def test_hostile_csv_lines_spoil_themselves_alone(ledger: Ledger, tmp_path: Path, line: bytes, said: str) -> None:
    path = raw(tmp_path, b"key,kind,ids\r\nk1,subject,u1\r\n" + line + b"\r\nk3,subject,u3", "requests.csv")
    report = take(ledger, path)
    assert (report.accepted, [number for number, _ in report.rejects]) == (2, [3])
    assert said in report.rejects[0][1]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"key,kind,ids,ids\n", "twice"),
        ("a.csv", b"key,kind\n", '"ids"'),
        ("a.csv", b"key,kid,ids\n", 'did you mean "kind"'),
        ("a.csv", b'key,"kind,ids\n', "no header"),
        ("a.csv", b"\xff\n", "no header"),
        ("a.jsonl", b"\x1f\x8b\x08\x00", "packed"),
        ("a.jsonl", b"PK\x03\x04", "packed"),
        ("a.xlsx", b"x", "ends in"),
        ("a.parquet", b"PAR1 nonsense PAR1", "Parquet"),
        ("a.parquet", b"", "Parquet"),
    ],
)
def test_files_that_are_no_requests_are_refused_whole(
    ledger: Ledger, tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    with pytest.raises(DataError, match=said) as caught:
        take(ledger, raw(tmp_path, content, name))
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="check the path"):
        take(ledger, tmp_path / "none.jsonl")


def test_parquet_with_other_types_or_columns_is_refused(ledger: Ledger, tmp_path: Path) -> None:
    for table, said in (
        (pa.table({"key": ["a"], "ids": [b"x"]}), "wanted text"),
        (pa.table({"key": [1], "ids": ["x"]}), "wanted text"),
        (pa.table({"key": ["a"], "ids": [[1]]}), "wanted text"),
        (pa.table({"key": ["a"], "ids": ["x"], "pixels": ["x"]}), "no request has"),
        (pa.table({"key": ["a"]}), "ids"),
    ):
        pq.write_table(table, tmp_path / "a.parquet")
        with pytest.raises(DataError, match=said):
            take(ledger, tmp_path / "a.parquet")


def test_parquet_nulls_and_many_ids_reject_their_row(ledger: Ledger, tmp_path: Path) -> None:
    ids = [["a"], None, [None], ["b"] * 10_001, []]
    table = pa.table({"key": [f"k{n}" for n in range(5)], "kind": ["subject"] * 5, "ids": ids})
    pq.write_table(table, tmp_path / "a.parquet")
    report = take(ledger, tmp_path / "a.parquet")
    assert (report.accepted, [line for line, _ in report.rejects]) == (1, [2, 3, 4, 5])


def test_damaged_parquet_is_refused_or_read_and_never_crashes(ledger: Ledger, tmp_path: Path) -> None:
    whole = write(tmp_path, "parquet", [{**GOOD, "key": f"k{n}"} for n in range(50)]).read_bytes()
    for place in range(4, len(whole), 37):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        try:
            found = list(rows(raw(tmp_path, bytes(damaged), "damaged.parquet")))
        except DataError:
            continue
        assert len(found) <= 50


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300) | st.text(alphabet='{}[]":,\\ue0\n\x00ab;"', max_size=200).map(str.encode))
@pytest.mark.parametrize("name", ["fuzz.jsonl", "fuzz.csv"])
def test_any_bytes_are_read_or_refused(tmp_path: Path, name: str, content: bytes) -> None:
    header = b"key,kind,ids\n" if name.endswith("csv") else b""
    try:
        for row in rows(raw(tmp_path, header + content, name)):
            assert (row.values is None) == bool(row.reason)
            assert row.reason.isprintable()
    except DataError as error:
        assert "packed" in str(error)  # noqa: PT017


def test_two_hundred_payloads_are_refused_in_every_field_and_format(ledger: Ledger, tmp_path: Path) -> None:
    hostile = [text for _, text in payloads()]
    assert len(set(hostile)) >= 200
    fields = ("ids", "controller", "key", "model", "dataset", "regulation", "kind", "submitted_at", "priority")
    for kind in FORMATS:
        texts = hostile if kind != "csv" else [text for text in hostile if not set(text) & set("\n\r\x00;")]
        for field in fields:
            records, whole = [], {**DEFAULTS, **GOOD, "dataset": "*", "regulation": "gdpr", "priority": "normal"}
            for number, text in enumerate(texts):
                bad = {**whole, field: [text] if field == "ids" else text}
                records += [{**whole, "key": f"{kind}-{field}-{number}"}, bad]
            rejects = tmp_path / "rejects.jsonl"
            with written() as paths:
                report = import_file(ledger, write(tmp_path, kind, records), actor="test", rejects=rejects)
            first = 2 if kind == "csv" else 1
            found = [json.loads(line) for line in rejects.read_text().splitlines()]
            assert [one["line"] for one in found] == [first + 2 * number + 1 for number in range(len(texts))]
            assert report.accepted == len(texts)
            assert wrong_with(report, rejects, len(records)) == []
            kept = (f"{tmp_path}/store/requests", f"{tmp_path}/ledger.db", str(rejects), f"{tmp_path}/requests.")
            assert [path for path in paths if not path.startswith(kept) and path != f"{tmp_path}/store"] == []
    assert verify(ledger) == []


@pytest.mark.parametrize("seed", [1, 2])
def test_spoilt_rows_by_the_thousand_are_reported_by_line_and_nothing_is_written_elsewhere(
    tmp_path: Path, seed: int
) -> None:
    figures, wrong = fuzz(tmp_path, 3000, seed, 250)
    assert wrong == []
    assert figures["accepted"] > 100
    assert figures["rejected"] > 2000


MEASURED = """
    import resource, sys, pathlib
    from unlearning.ledger.readers import rows
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = bad = 0
    try:
        for row in rows(pathlib.Path(sys.argv[1])):
            found += 1
            bad += row.values is None
    except Exception as error:
        print(type(error).__name__, error)
    import pyarrow
    print(found, bad, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("kind", ["one endless line", "one text a million times", "a million ids in one list"])
def test_bombs_are_met_in_bounded_memory(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "bomb.parquet"
    if kind == "one endless line":
        path = tmp_path / "bomb.jsonl"
        with path.open("wb") as file:
            for _ in range(300):
                file.write(b"[" * (1 << 20))
    elif kind == "one text a million times":
        text = pa.DictionaryArray.from_arrays(pa.array([0] * 200_000, pa.int32()), pa.array(["x" * (8 << 20)]))
        pq.write_table(pa.table({"key": text, "ids": text}), path, compression="zstd", store_schema=False)
    else:
        pq.write_table(pa.table({"key": ["a"], "ids": [["x"] * 5_000_000]}), path, compression="zstd")
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEASURED), str(path)],
        capture_output=True, text=True, timeout=100, check=True, env={"PYTHONPATH": "shared", "PATH": "/usr/bin"},
        cwd=Path(__file__).parents[3], preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (60, 60)),
    )  # fmt: skip
    found, bad, grown = map(int, ended.stdout.splitlines()[-1].split())
    assert grown < 400, ended.stdout
    assert bad == found, ended.stdout
    assert found == (0 if kind == "one text a million times" else 1)
    assert ("DataError the file holds a text of 8388608 bytes" in ended.stdout) == (not found)


ID = "22880925-aac5-42f9-a653-cb6921d361ff"


def dsr(**changes: Any) -> bytes:
    record = {
        "regulation": "gdpr",
        "subject_request_id": ID,
        "subject_request_type": "erasure",
        "submitted_time": "2026-11-20T12:00:00Z",
        "subject_identities": [
            {"identity_type": "controller_customer_id", "identity_value": "user-1", "identity_format": "raw"}
        ],
        "api_version": "2.0",
    }
    return json.dumps({**record, **changes}).encode()


def post(ledger: Ledger, body: bytes) -> tuple[int, dict[str, Any]]:
    return accept(ledger, body, controller="shop", model="faces", actor="opendsr")


def test_an_opendsr_erasure_is_filed_and_answered_in_its_form(ledger: Ledger) -> None:
    code, answer = post(ledger, dsr())
    assert (code, answer) == (
        201,
        {
            "controller_id": "shop",
            "expected_completion_time": "2026-12-18T12:00:00Z",
            "received_time": "2026-11-21T12:00:00Z",
            "encoded_request": base64.b64encode(dsr()).decode(),
            "subject_request_id": ID,
        },
    )
    assert post(ledger, dsr()) == (code, answer), "a repeated POST gets the same receipt"
    code, answer = answer_status(ledger, ID, controller="shop")
    assert (code, answer["request_status"]) == (200, "pending")
    assert answer_status(ledger, ID, controller="bank")[0] == 404
    assert cancel_opendsr(ledger, ID, controller="shop", actor="opendsr")[0] == 202
    assert answer_status(ledger, ID, controller="shop")[1]["request_status"] == "cancelled"
    assert cancel_opendsr(ledger, ID, controller="shop", actor="opendsr")[0] == 400
    assert cancel_opendsr(ledger, str(uuid.uuid4()), controller="shop", actor="opendsr")[0] == 404
    assert verify(ledger) == []


def test_an_opendsr_id_with_other_content_is_a_conflict(ledger: Ledger) -> None:
    post(ledger, dsr())
    other = [{"identity_type": "controller_customer_id", "identity_value": "user-2", "identity_format": "raw"}]
    code, answer = post(ledger, dsr(subject_identities=other))
    assert code == 409
    assert "user-2" not in json.dumps(answer)
    assert status(ledger).counts["held"] == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"subject_request_type": "access"},
        {"regulation": "lgpd"},
        {"subject_request_id": "canary"},
        {"subject_request_id": ID.upper()},
        {"subject_request_id": None},
        {"subject_identities": []},
        {"subject_identities": "canary"},
        {"subject_identities": ["canary"]},
        {"subject_identities": [{"identity_type": "email", "identity_value": "canary", "identity_format": "raw"}]},
        {
            "subject_identities": [
                {"identity_type": "controller_customer_id", "identity_value": "canary", "identity_format": "sha256"}
            ]
        },
        {
            "subject_identities": [
                {"identity_type": "controller_customer_id", "identity_value": "<canary>", "identity_format": "raw"}
            ]
        },
        {"submitted_time": "canary"},
        {"submitted_time": None},
        {"submitted_time": "2027-11-20T12:00:00Z"},
    ],
)
def test_opendsr_errors_carry_no_identity(ledger: Ledger, changes: dict[str, Any]) -> None:
    code, answer = post(ledger, dsr(**changes))
    assert (code, answer["error"]["code"]) == (400, 400)
    assert "canary" not in json.dumps(answer)
    assert status(ledger).counts["pending"] == 0
    for body in (b"", b"{", b"[]", b"\xff", b"[" * 100_000, b"x" * (1 << 20 | 1)):
        assert post(ledger, body)[0] == 400


def test_a_cancelled_request_may_be_filed_again_only_under_another_key(ledger: Ledger, tmp_path: Path) -> None:
    take(ledger, write(tmp_path, "jsonl", [GOOD]))
    cancel(ledger, ledger.names.request("shop", "good"), "taken back", actor="desk")
    assert take(ledger, write(tmp_path, "jsonl", [GOOD])).repeated == 1
    report = take(ledger, write(tmp_path, "jsonl", [{**GOOD, "key": "anew"}]))
    assert (report.accepted, report.twins) == (1, 0)
