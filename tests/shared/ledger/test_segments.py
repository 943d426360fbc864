import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unlearning.errors import LedgerError, StorageError
from unlearning.ledger.events import broken_links, read_line
from unlearning.ledger.filing import file_requests, not_found
from unlearning.ledger.probe import probe, probe_store
from unlearning.ledger.pseudonyms import Pseudonyms
from unlearning.ledger.requests import DeletionRequest
from unlearning.ledger.segments import PREFIX, seal, verify_sealed
from unlearning.ledger.store import Ledger
from unlearning.ledger.vault import Vault
from unlearning.storage import FolderStore, ObjectStore, open_store

Make = Callable[..., DeletionRequest]


@pytest.fixture(params=["folder", "bucket"])
def evidence(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "folder":
        return FolderStore(tmp_path / "evidence")
    return open_store(f"s3://{request.getfixturevalue('s3')}/some/prefix")


@pytest.fixture(params=["sqlite"])
def dialect(request: pytest.FixtureRequest) -> str:
    """The database matters to the probe alone, whose test names both."""
    return str(request.param)


def fill(ledger: Ledger, request_of: Make, first: int, count: int) -> None:
    refs = [
        one.ref for one in file_requests(ledger, [request_of(n) for n in range(first, first + count)], actor="intake")
    ]
    not_found(ledger, refs[:2], evidence="e" * 64, actor="select")


class Other:
    """A store that answers as another one does, but for what a test changes."""

    def __init__(self, store: ObjectStore, **changes: Any) -> None:
        self._store = store
        self.__dict__.update(changes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def test_everything_is_sealed_once_and_reads_back_as_the_ledger_has_it(
    ledger: Ledger, evidence: ObjectStore, request_of: Make
) -> None:
    assert seal(ledger, evidence) == 0
    fill(ledger, request_of, 0, 6)
    assert seal(ledger, evidence, most=4) == 7
    keys = list(evidence.keys(PREFIX))
    assert [key for key in keys if "/segments/" in key] == [
        f"{PREFIX}/segments/000000000001.jsonl",
        f"{PREFIX}/segments/000000000005.jsonl",
    ]
    contents = {key: evidence.get(key) for key in keys}
    assert seal(ledger, evidence) == 7
    assert {key: evidence.get(key) for key in evidence.keys(PREFIX)} == contents, "nothing is written twice"
    fill(ledger, request_of, 10, 2)
    assert seal(ledger, evidence) == 10
    lines = b"".join(evidence.get(key) for key in evidence.keys(f"{PREFIX}/segments")).decode().splitlines()
    sealed = [read_line(line) for line in lines if line.startswith('{"event"')]
    assert sealed == list(ledger.events())
    assert list(broken_links(iter(sealed))) == []
    assert verify_sealed(ledger, evidence) == []
    assert b"user-" not in b"".join(map(evidence.get, evidence.keys()))


def test_a_rewritten_database_is_found_out_and_nothing_more_is_sealed(
    ledger: Ledger, evidence: ObjectStore, request_of: Make, laid_out_sqlite: Path, tmp_path: Path, store: FolderStore
) -> None:
    fill(ledger, request_of, 0, 6)
    seal(ledger, evidence)
    # The owner makes another past, with a chain that is perfectly sound.
    (tmp_path / "forged.db").write_bytes(laid_out_sqlite.read_bytes())
    forged = Ledger(f"sqlite:///{tmp_path}/forged.db", Pseudonyms(b"k" * 32), Vault(store))
    fill(forged, request_of, 1, 9)
    assert list(broken_links(forged.events())) == []
    assert any("not those that were sealed, the first 1" in finding for finding in verify_sealed(forged, evidence))
    with pytest.raises(LedgerError, match="rewritten"):
        seal(forged, evidence)
    # Or an older copy is put back.
    (tmp_path / "older.db").write_bytes(laid_out_sqlite.read_bytes())
    older = Ledger(f"sqlite:///{tmp_path}/older.db", Pseudonyms(b"k" * 32), Vault(store))
    with pytest.raises(LedgerError, match="set back"):
        seal(older, evidence)
    assert verify_sealed(older, evidence) != []


def test_every_changed_copy_is_found(ledger: Ledger, evidence: ObjectStore, request_of: Make) -> None:
    fill(ledger, request_of, 0, 6)
    seal(ledger, evidence, most=3)
    for key in list(evidence.keys(PREFIX)):
        whole = evidence.get(key)
        for changed in (whole[:-9], whole.replace(b"0", b"1", 1), b"", whole + b"{}\n"):
            evidence.put(key, changed)
            assert verify_sealed(ledger, evidence) != [], (key, changed[-40:])
        if "/segments/" in key:
            evidence.delete(key)
            if not key.endswith("000000000007.jsonl"):
                assert verify_sealed(ledger, evidence) != [], f"{key} is missing"
        evidence.put(key, whole)
    assert verify_sealed(ledger, evidence) == []


def test_a_reply_that_was_lost_is_recognised_as_ones_own_write(
    ledger: Ledger, evidence: ObjectStore, request_of: Make
) -> None:
    fill(ledger, request_of, 0, 6)
    made: list[str] = []

    def lost(key: str, data: bytes) -> bool:
        evidence.create(key, data)
        made.append(key)
        return False  # what a retry of one's own write is told

    assert seal(ledger, Other(evidence, create=lost), most=4) == 7  # type: ignore[arg-type]
    assert len(made) == len(set(made))
    assert verify_sealed(ledger, evidence) == []


def test_sealing_may_die_at_any_write_and_is_finished_by_the_next(
    ledger: Ledger, evidence: ObjectStore, request_of: Make
) -> None:
    fill(ledger, request_of, 0, 6)
    for effect in (False, True):
        for place in range(6):

            def create(key: str, data: bytes, *, left: list[int] = [place], effect: bool = effect) -> bool:  # noqa: B006
                left[0] -= 1
                if left[0] < 0:
                    if effect:
                        evidence.create(key, data)
                    raise StorageError("timeout")
                return evidence.create(key, data)

            evidence.delete(PREFIX)
            with pytest.raises(StorageError, match="timeout"):
                seal(ledger, Other(evidence, create=create), most=3)  # type: ignore[arg-type]
            assert seal(ledger, evidence, most=3) == 7
            assert verify_sealed(ledger, evidence) == []


def test_foreign_objects_are_reported_and_kept(ledger: Ledger, evidence: ObjectStore, request_of: Make) -> None:
    fill(ledger, request_of, 0, 2)
    evidence.put(f"{PREFIX}/segments/000000000001.jsonl", b"{}")
    with pytest.raises(LedgerError, match="damaged"):
        seal(ledger, evidence)
    assert evidence.get(f"{PREFIX}/segments/000000000001.jsonl") == b"{}"
    evidence.delete(PREFIX)
    evidence.put(f"{PREFIX}/heads/000000000003.json", b"{}")
    with pytest.raises(LedgerError, match="something else already"):
        seal(ledger, evidence)


def seal_often(url: str, folder: Path) -> None:
    ledger = Ledger(url, Pseudonyms(b"k" * 32), Vault(FolderStore(folder / "store")))
    for number in range(12):
        ledger_size = seal(ledger, FolderStore(folder / "evidence"), most=2 + number % 3)
    assert ledger_size >= 7


def test_processes_that_seal_at_once_make_one_chain(ledger: Ledger, url: str, tmp_path: Path, request_of: Make) -> None:
    fill(ledger, request_of, 0, 6)
    fork = multiprocessing.get_context("fork")
    running = [fork.Process(target=seal_often, args=(url, tmp_path)) for _ in range(4)]
    for process in running:
        process.start()
    for number in range(8):
        fill(ledger, request_of, 100 + 10 * number, 3)
    for process in running:
        process.join(60)
    assert [process.exitcode for process in running] == [0] * 4
    seal(ledger, FolderStore(tmp_path / "evidence"))
    assert verify_sealed(ledger, FolderStore(tmp_path / "evidence")) == []


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"], indirect=True)
def test_the_probe_finds_a_good_database_and_store_good_and_leaves_nothing(
    ledger: Ledger, evidence: ObjectStore, dialect: str
) -> None:
    findings = probe(ledger, evidence)
    failed = {finding.what for finding in findings if not finding.holds}
    assert failed == (
        {"what is confirmed survives"} if dialect == "postgresql" else set()
    )  # the test's server has no fsync
    assert len(findings) >= 6
    assert list(evidence.keys()) == []
    assert ledger.head()[0] == 0


def test_the_probe_says_which_store_cannot_hold_the_promise(evidence: ObjectStore) -> None:
    def careless(key: str, data: bytes) -> bool:
        evidence.put(key, data)
        return True

    def late_writer_wins(key: str, data: bytes) -> bool:
        won = evidence.create(key, data)
        if data == b"late":
            evidence.put(key, data)
            return True
        return won

    def forbidden(*_: Any) -> Any:
        raise StorageError("access denied (AccessDenied): check the keys")

    for store, what, said in (
        (Other(evidence, create=careless), "one writer wins", "2 of 2 writers"),
        (Other(evidence, create=lambda key, data: False), "one writer wins", "0 of 2 writers"),
        (Other(evidence, create=late_writer_wins), "one writer wins", "a later writer"),
        (Other(evidence, create=forbidden), "one writer wins", "access denied"),
        (Other(evidence, delete=lambda prefix: 0), "deletion is thorough", "objects stayed"),
        (Other(evidence, delete=forbidden), "deletion is thorough", "access denied"),
    ):
        failed = [finding for finding in probe_store(store) if not finding.holds]  # type: ignore[arg-type]
        assert [finding.what for finding in failed] == [what]
        assert said in failed[0].detail


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"], indirect=True)
def test_the_probe_says_when_the_guards_of_events_are_gone(ledger: Ledger, evidence: ObjectStore, dialect: str) -> None:
    with ledger._engine.begin() as connection:
        for name in ("no_update", "no_delete") if dialect == "sqlite" else ("no_change",):
            on = " ON events" if dialect == "postgresql" else ""
            connection.exec_driver_sql(f"DROP TRIGGER events_{name}{on}")
    failed = {finding.what for finding in probe(ledger, evidence) if not finding.holds}
    assert "events are append-only" in failed
    assert ledger.head()[0] == 0


def test_what_others_seal_while_one_begins_is_no_ledger_that_was_set_back(
    ledger: Ledger, evidence: FolderStore, request_of: Make
) -> None:
    list(file_requests(ledger, [request_of(1)], actor="intake"))
    seal(ledger, evidence)

    done: list[str] = []

    def exists(key: str) -> bool:
        """Another process files and seals just before this one reads the newest segment."""
        if not done:
            done.append(key)
            list(file_requests(ledger, [request_of(2)], actor="intake"))
            seal(ledger, evidence)
        return evidence.exists(key)

    seal(ledger, Other(evidence, exists=exists))  # type: ignore[arg-type]
    assert done
    assert verify_sealed(ledger, evidence) == []
