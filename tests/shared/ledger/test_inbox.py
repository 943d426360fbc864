"""Files that were dropped under the inbox: once in the ledger, whatever races, breaks or is dropped again."""

import json
import threading
import uuid
from pathlib import Path
from typing import Any

import pytest

from unlearning.errors import StorageError
from unlearning.ledger import inbox
from unlearning.ledger.inbox import PREFIX, REFUSED, REPORTS, refused_files, take_in, totals, waiting
from unlearning.ledger.overview import list_requests
from unlearning.ledger.store import Ledger
from unlearning.ledger.verification import verify
from unlearning.storage import FolderStore

GOOD = {"key": "T-1", "kind": "subject", "ids": ["user-1"], "submitted_at": "2026-11-20T12:00:00Z"}
WHERE = f"{PREFIX}/shop/faces"


@pytest.fixture(params=["sqlite"])
def dialect(request: pytest.FixtureRequest) -> str:
    """Nothing here depends on the database."""
    return str(request.param)


def lines(*records: dict[str, Any]) -> bytes:
    return "".join(json.dumps(one) + "\n" for one in records).encode()


def test_a_drop_is_filed_reported_on_and_removed(ledger: Ledger, store: FolderStore) -> None:
    store.put(f"{WHERE}/a.jsonl", lines(GOOD, {**GOOD, "key": "T-2", "ids": ["../x"]}))
    store.put(f"{WHERE}/b.csv", b"key,kind,ids\nT-3,class,cat;dog\n")
    assert waiting(store)
    first, second = take_in(ledger, store, actor="intake")
    assert (first.accepted, first.rejected, second.accepted, second.refused) == (1, 1, 1, "")
    assert [(one["controller"], one["model"], one["kind"]) for one in list_requests(ledger)] == [
        ("shop", "faces", "subject"),
        ("shop", "faces", "class"),
    ]
    report = json.loads(store.get(first.report))
    assert [one["line"] for one in report["rejects"]] == [2]
    assert "user-1" not in json.dumps(report)
    assert not waiting(store)
    assert "2 requests accepted, 0 filed before, 1 rejected, 0 files refused" in totals([first, second])
    assert verify(ledger) == []


def test_the_same_drop_again_under_any_name_files_nothing_twice(ledger: Ledger, store: FolderStore) -> None:
    for name in ("a", "a", "b"):
        store.put(f"{WHERE}/{name}.jsonl", lines(GOOD))
        take_in(ledger, store, actor="intake")
        assert not waiting(store)
    assert len(list(list_requests(ledger))) == 1


def test_rows_name_controller_and_model_where_the_folders_do_not(ledger: Ledger, store: FolderStore) -> None:
    store.put(f"{PREFIX}/a.jsonl", lines({**GOOD, "controller": "desk", "model": "faces"}, {**GOOD, "key": "T-2"}))
    store.put(f"{PREFIX}/shop/b.jsonl", lines({**GOOD, "model": "cars"}))
    counts = [(one.accepted, one.rejected) for one in take_in(ledger, store, actor="intake")]
    assert counts == [(1, 1), (1, 0)]
    assert [(one["controller"], one["model"]) for one in list_requests(ledger)] == [("desk", "faces"), ("shop", "cars")]


def test_an_opendsr_request_is_taken_in_and_answered_without_its_identities(ledger: Ledger, store: FolderStore) -> None:
    asked = {
        "regulation": "gdpr",
        "subject_request_id": str(uuid.uuid4()),
        "subject_request_type": "erasure",
        "submitted_time": "2026-11-20T12:00:00Z",
        "subject_identities": [
            {"identity_type": "controller_customer_id", "identity_value": "user-9", "identity_format": "raw"}
        ],
    }
    store.put(f"{WHERE}/ask.json", json.dumps(asked).encode())
    store.put(f"{WHERE}/bad.json", b'{"regulation": "none"}')
    store.put(f"{PREFIX}/lost.json", json.dumps(asked).encode())
    by_name = {
        Path(json.loads(store.get(one.report))["file"]).stem: one for one in take_in(ledger, store, actor="intake")
    }
    assert by_name["ask"].answer["status"] == 201
    assert by_name["ask"].answer["subject_request_id"] == asked["subject_request_id"]
    assert by_name["bad"].answer["status"] == 400
    assert "CONTROLLER/MODEL" in by_name["lost"].refused
    assert b"user-9" not in store.get(by_name["ask"].report)
    assert "encoded_request" not in by_name["ask"].answer
    assert list(store.keys(PREFIX)) == []
    assert list(store.keys(REFUSED)) == [by_name["lost"].moved]


def test_a_file_that_cannot_be_read_is_moved_beside_its_report_and_waits_for_no_run(
    ledger: Ledger, store: FolderStore
) -> None:
    bad = b"key,kind,ids,name\n1,subject,u,Anna\n"
    store.put(f"{WHERE}/a.xlsx", b"PK\x03\x04")
    store.put(f"{WHERE}/b.csv", bad)
    store.put(f"{WHERE}/c.csv.part", b"key,ki")
    refused = take_in(ledger, store, actor="intake")
    assert [bool(one.refused) for one in refused] == [True, True]
    assert not waiting(store)
    assert refused_files(store) == sorted(one.moved for one in refused)
    mark = Path(refused[1].report).stem
    assert refused[1].moved == f"{REFUSED}/{mark}/shop/faces/b.csv", "the name is kept"
    assert store.get(refused[1].moved) == bad
    assert "2 files refused, moved to requests/refused/" in totals(refused)
    assert take_in(ledger, store, actor="intake") == []
    store.put(f"{WHERE}/b.csv", bad)
    (again,) = take_in(ledger, store, actor="intake")
    assert (again.refused, again.moved) == (refused[1].refused, refused[1].moved), "said again, kept once"
    store.put(f"{WHERE}/b.csv", b"key,kind,ids\n1,subject,u\n")
    (mended,) = take_in(ledger, store, actor="intake")
    assert mended.accepted == 1
    assert len(refused_files(store)) == 2
    assert list(store.keys(PREFIX)) == [f"{WHERE}/c.csv.part"]


@pytest.mark.parametrize("at", ["create", "upload", "delete"])
def test_a_run_cut_off_while_it_moves_a_refused_file_loses_none(
    ledger: Ledger, store: FolderStore, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    store.put(f"{WHERE}/a.xlsx", b"PK")

    def broken(*_: Any) -> Any:
        raise StorageError("the store is away")

    with monkeypatch.context() as patch:
        patch.setattr(store, at, broken)
        with pytest.raises(StorageError):
            take_in(ledger, store, actor="intake")
    assert store.get(f"{WHERE}/a.xlsx") == b"PK"
    (one,) = take_in(ledger, store, actor="intake")
    assert (store.get(one.moved), waiting(store)) == (b"PK", False)
    assert len(list(store.keys(REPORTS))) == 1


def test_a_refused_file_whose_report_is_of_an_older_version_is_moved_too(ledger: Ledger, store: FolderStore) -> None:
    store.put(f"{WHERE}/a.xlsx", b"PK")
    (one,) = take_in(ledger, store, actor="intake")
    older = json.loads(store.get(one.report))
    del older["moved"]
    store.put(one.report, json.dumps(older).encode())
    store.delete(one.moved)
    store.put(f"{WHERE}/a.xlsx", b"PK")
    take_in(ledger, store, actor="intake")
    assert refused_files(store) == [one.moved]


def test_a_refused_file_with_a_long_name_is_kept_under_the_end_of_it(ledger: Ledger, store: FolderStore) -> None:
    name = "/".join(["f" * 215] * 4) + "/a.xlsx"
    store.put(f"{PREFIX}/{name}", b"PK")
    (one,) = take_in(ledger, store, actor="intake")
    assert one.moved == f"{REFUSED}/{Path(one.report).stem}/a.xlsx"
    assert refused_files(store) == [one.moved]


def test_what_is_written_over_a_drop_meanwhile_is_not_removed(
    ledger: Ledger, store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, real = f"{WHERE}/a.jsonl", inbox.import_file
    store.put(key, lines(GOOD))

    def overtaken(*given: Any, **more: Any) -> Any:
        report = real(*given, **more)
        store.put(key, lines({**GOOD, "key": "T-2"}))
        return report

    with monkeypatch.context() as patch:
        patch.setattr(inbox, "import_file", overtaken)
        take_in(ledger, store, actor="intake")
    assert store.exists(key)
    take_in(ledger, store, actor="intake")
    assert not waiting(store)
    assert len(list(list_requests(ledger))) == 2


@pytest.mark.parametrize(
    "name",
    [
        "../../evidence/x.jsonl",
        "a//b.jsonl",
        "./a.jsonl",
        "a\\b.jsonl",
        "a\nb.jsonl",
        f"{'n' * 300}.jsonl",
        ".writing-x/a.jsonl",
    ],
)
def test_a_hostile_name_stops_nothing_and_nothing_is_written_by_it(
    ledger: Ledger, store: FolderStore, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    store.put(f"{WHERE}/good.jsonl", lines(GOOD))
    real, before = store.keys, set(store.keys())
    monkeypatch.setattr(store, "keys", lambda prefix="": [f"{PREFIX}/{name}"] * (prefix == PREFIX) + [*real(prefix)])
    bad, good = take_in(ledger, store, actor="intake")
    assert not waiting(store), "no run can take it in"
    monkeypatch.undo()
    assert (bad.report, good.accepted) == ("", 1)
    assert "name it otherwise" in bad.refused
    written = set(store.keys()) - before
    assert {key.rpartition("/")[0] for key in written} == {"requests", REPORTS}


@pytest.mark.parametrize("name", ["<script>.csv", "=cmd|' !A0.csv", "%2e%2e%2fx.csv", "a\u202eb.csv", "user-17.csv"])
def test_a_drop_with_any_other_name_is_read_and_its_report_is_named_by_digests(
    ledger: Ledger, store: FolderStore, name: str
) -> None:
    store.put(f"{WHERE}/{name}", b"key,kind,ids\n1,subject,u\n")
    (one,) = take_in(ledger, store, actor="intake")
    assert one.accepted == 1
    assert not waiting(store)
    assert set(one.report.removeprefix(f"{REPORTS}/").removesuffix(".json")) <= set("0123456789abcdef-")


@pytest.mark.parametrize("at", ["create", "delete"])
def test_a_run_cut_off_before_the_report_or_the_removal_is_repeated(
    ledger: Ledger, store: FolderStore, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    key, real = f"{WHERE}/a.jsonl", getattr(store, at)
    store.put(key, lines(GOOD))

    def broken(name: str, *rest: Any) -> Any:
        if name.startswith((REPORTS, PREFIX)):
            raise StorageError("the store is away")
        return real(name, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(store, at, broken)
        with pytest.raises(StorageError):
            take_in(ledger, store, actor="intake")
    assert store.exists(key), "never removed before it is recorded"
    take_in(ledger, store, actor="intake")
    assert not waiting(store)
    assert len(list(list_requests(ledger))) == 1
    assert len(list(store.keys(REPORTS))) == 1


def test_runs_that_race_file_every_request_once(ledger: Ledger, store: FolderStore) -> None:
    for number in range(12):
        store.put(f"{WHERE}/{number:02}.jsonl", lines(*({**GOOD, "key": f"T-{number}-{row}"} for row in range(5))))
    errors: list[BaseException] = []

    def run() -> None:
        try:
            take_in(ledger, store, actor="intake")
        except BaseException as error:  # shown by the assertion below
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert errors == []
    assert not waiting(store)
    assert len(list(list_requests(ledger))) == 60
    assert verify(ledger) == []
