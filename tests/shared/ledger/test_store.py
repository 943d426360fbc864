import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unlearning.errors import LedgerError, StorageError, UsageError
from unlearning.ledger import tables
from unlearning.ledger.events import EFFECTS, GENESIS, STATES, Event, event, read_line
from unlearning.ledger.filing import (
    Filed,
    cancel,
    close,
    deny,
    extend,
    file_requests,
    hold,
    not_found,
    purge,
    read_ids,
    release,
)
from unlearning.ledger.overview import find, list_requests, status
from unlearning.ledger.pseudonyms import Pseudonyms
from unlearning.ledger.requests import DeletionRequest
from unlearning.ledger.store import Ledger
from unlearning.ledger.vault import Vault
from unlearning.ledger.verification import verify
from unlearning.storage import FolderStore

Make = Callable[..., DeletionRequest]


def file(ledger: Ledger, *requests: DeletionRequest, **options: Any) -> list[Filed]:
    return list(file_requests(ledger, requests, actor="intake", **options))


def state(ledger: Ledger, ref: str) -> str:
    return str(find(ledger, ref)["state"])


def files(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def raw(ledger: Ledger, *statements: str) -> None:
    """What someone with the database's password can do."""
    with ledger._engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def test_a_filed_request_is_pending_with_its_dates_and_one_event(ledger: Ledger, request_of: Make) -> None:
    (filed,) = file(ledger, request_of(1))
    assert (filed.status, filed.twin_of) == ("accepted", "")
    found = find(ledger, filed.ref[:8])
    assert (found["state"], found["due_at"], found["aim_at"]) == (
        "pending", "2026-12-20T12:00:00.000000Z", "2026-12-18T12:00:00.000000Z",
    )  # fmt: skip
    assert [one.kind for one in found["history"]] == ["received"]
    assert ledger.head() == (1, found["history"][0].hash)
    assert verify(ledger) == []


def test_the_same_again_is_the_same_request_and_writes_nothing(ledger: Ledger, request_of: Make) -> None:
    first = file(ledger, request_of(1), request_of(2))
    head = ledger.head()
    again = file(ledger, request_of(2), request_of(1, priority="expedite", submitted_at="2026-11-01T00:00:00Z"))
    assert [one.status for one in again] == ["repeated", "repeated"]
    assert {one.ref for one in again} == {one.ref for one in first}
    assert ledger.head() == head
    assert len(list(ledger.vault.parcels(datetime(9000, 1, 1, tzinfo=UTC)))) == 1
    within = file(ledger, request_of(3), request_of(3))
    assert [one.status for one in within] == ["accepted", "repeated"]


def test_the_same_key_with_other_content_is_a_conflict_and_holds_the_first(ledger: Ledger, request_of: Make) -> None:
    (first,) = file(ledger, request_of(1))
    (second, third) = file(ledger, request_of(1, ids=["user-1", "user-9"]), request_of(3))
    assert (second.status, second.ref, third.status) == ("conflict", first.ref, "accepted")
    found = find(ledger, first.ref)
    assert (found["state"], found["ids"]) == ("held", 1)
    assert [one.kind for one in found["history"]] == ["received", "conflict", "held"]
    assert [kept.ids for kept in read_ids(ledger, [first.ref])] == [("user-1",)]
    assert verify(ledger) == []


def test_other_controllers_may_use_the_same_key(ledger: Ledger, request_of: Make) -> None:
    one, other = file(ledger, request_of(1), request_of(1, controller="bank", ids=["user-7"]))
    assert (one.status, other.status) == ("accepted", "accepted")
    assert one.ref != other.ref


def test_a_twin_is_linked_to_the_first_open_request_for_the_same(ledger: Ledger, request_of: Make) -> None:
    first, second, third, fourth = file(
        ledger,
        request_of(1, ids=["a", "b"]),
        request_of(2, ids=["b", "a"]),
        request_of(3, ids=["a"]),
        request_of(4, ids=["a", "b"], model="other"),
    )
    assert (second.twin_of, third.twin_of, fourth.twin_of) == (first.ref, "", "")
    (fifth,) = file(ledger, request_of(5, ids=["a", "b"]))
    assert fifth.twin_of == first.ref


def test_a_request_from_the_future_is_refused_alone(ledger: Ledger, request_of: Make) -> None:
    late, fine = file(ledger, request_of(1, submitted_at="2026-11-23T12:00:00Z"), request_of(2))
    assert (late.status, fine.status) == ("refused", "accepted")
    assert "future" in late.reason
    assert sum(status(ledger).counts.values()) == 1


def test_no_id_and_no_key_of_a_request_is_in_the_database(
    ledger: Ledger, request_of: Make, tmp_path: Path, store: FolderStore
) -> None:
    file(ledger, request_of("canary-key", ids=["canary-id"]), request_of("canary-key", ids=["canary-two"]))
    ledger.close()
    lines = "".join(one.line() for one in ledger.events())
    rows = json.dumps(list(list_requests(ledger)))
    assert "canary" not in lines + rows
    if ledger.dialect == "sqlite":
        outside = b"".join(path.read_bytes() for path in tmp_path.glob("ledger.db*"))
        assert outside
        assert b"canary" not in outside
    assert b"canary-id" in files(tmp_path / "store" / "requests")


def test_hold_release_extend_and_deny_leave_their_reasons(ledger: Ledger, request_of: Make, clock: Any) -> None:
    one, two = file(ledger, request_of(1), request_of(2))
    hold(ledger, one.ref, "identity unclear", actor="desk")
    assert find(ledger, one.ref)["reason"] == "identity unclear"
    with pytest.raises(UsageError, match=r"cannot be .held. now"):
        hold(ledger, one.ref, "again", actor="desk")
    release(ledger, one.ref, actor="desk")
    assert (state(ledger, one.ref), find(ledger, one.ref)["reason"]) == ("pending", "")
    assert extend(ledger, one.ref, "many requests", actor="desk") == "2027-02-20T12:00:00.000000Z"
    with pytest.raises(UsageError, match="extended before"):
        extend(ledger, one.ref, "more", actor="desk")
    deny(ledger, two.ref, "not the person", actor="desk")
    with pytest.raises(UsageError, match="ended"):
        cancel(ledger, two.ref, "too late", actor="desk")
    (three,) = file(ledger, request_of(3))
    clock.forward(days=40)
    with pytest.raises(UsageError, match="before that"):
        extend(ledger, three.ref, "late", actor="desk")
    assert verify(ledger) == []


def test_unknown_requests_and_hostile_reasons_are_refused(ledger: Ledger, request_of: Make) -> None:
    (one,) = file(ledger, request_of(1))
    for act in (hold, cancel, deny):
        with pytest.raises(UsageError, match="no request"):
            act(ledger, "0" * 64, "why", actor="desk")
        for reason in ("", "two\nlines", "x" * 257, "\x1b[2J", "\u202eevil"):
            with pytest.raises(UsageError, match="reason"):
                act(ledger, one.ref, reason, actor="desk")
    with pytest.raises(UsageError, match="actor"):
        hold(ledger, one.ref, "why", actor="a\nb")
    with pytest.raises(UsageError, match="6 to 64"):
        find(ledger, "'; DROP TABLE events; --")
    assert [kind.kind for kind in ledger.events()] == ["received"]


def test_what_was_searched_in_vain_is_closed_with_its_evidence(ledger: Ledger, request_of: Make) -> None:
    one, two = file(ledger, request_of(1), request_of(2))
    not_found(ledger, [one.ref], evidence="a" * 64, actor="select")
    found = find(ledger, one.ref)
    assert (found["state"], found["outcome"]) == ("closed", "no_data_found")
    assert found["history"][-1].content == {"manifest_sha256": "a" * 64}
    assert state(ledger, two.ref) == "pending"
    with pytest.raises(UsageError, match="digest of the manifest"):
        not_found(ledger, [two.ref], evidence="I looked", actor="select")
    with pytest.raises(UsageError, match="settled"):
        close(ledger, "0" * 64, obligations={}, actor="desk")
    assert verify(ledger) == []


def test_a_failed_change_leaves_nothing(ledger: Ledger, request_of: Make) -> None:
    one, two = file(ledger, request_of(1), request_of(2))
    head = ledger.head()
    with pytest.raises(UsageError, match="1 of 2 requests"):
        not_found(ledger, [one.ref, "0" * 64], evidence="a" * 64, actor="select")
    assert (ledger.head(), state(ledger, one.ref)) == (head, "pending")

    def fails_in_the_middle() -> None:
        with ledger.writing("desk") as writer:
            writer.append("held", request=two.ref, body={"reason": "x"})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails_in_the_middle()
    assert (ledger.head(), state(ledger, two.ref)) == (head, "pending")
    assert verify(ledger) == []


def test_a_store_that_fails_accepts_nothing(ledger: Ledger, request_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> str:
        raise StorageError("no space")

    monkeypatch.setattr(ledger.vault, "put", broken)
    with pytest.raises(StorageError):
        file(ledger, request_of(1))
    assert ledger.head() == (0, GENESIS)


def test_ids_are_gone_once_a_request_has_ended_for_long_enough(
    ledger: Ledger, request_of: Make, clock: Any, tmp_path: Path
) -> None:
    one, two, three = file(ledger, request_of("one"), request_of("two"), request_of("three"))
    cancel(ledger, one.ref, "taken back", actor="desk")
    assert purge(ledger, actor="cleaner") == 0
    clock.forward(days=30, minutes=1)
    cancel(ledger, two.ref, "taken back", actor="desk")
    assert purge(ledger, actor="cleaner") == 1
    left = files(tmp_path / "store")
    assert (b"user-one" in left, b"user-two" in left, b"user-three" in left) == (False, True, True)
    assert [kept.ids for kept in read_ids(ledger, [two.ref, three.ref])] != []
    with pytest.raises(LedgerError, match="ids of 1 of 2"):
        list(read_ids(ledger, [one.ref, two.ref]))
    assert find(ledger, one.ref)["purged"]
    assert purge(ledger, actor="cleaner") == 0
    clock.forward(days=31)
    deny(ledger, three.ref, "not the person", actor="desk")
    assert purge(ledger, actor="cleaner", keep_days=0) == 2
    assert files(tmp_path / "store") == b""
    assert verify(ledger) == []


def test_a_purge_that_was_killed_is_finished_by_the_next(
    ledger: Ledger, request_of: Make, clock: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = file(ledger, request_of("one"), request_of("two"))
    cancel(ledger, one.ref, "taken back", actor="desk")
    clock.forward(minutes=1)

    class Killed(BaseException):
        pass

    def die(*_: Any) -> int:
        raise Killed

    for name in ("put", "drop"):
        with monkeypatch.context() as patch:
            patch.setattr(ledger.vault, name, die)
            with pytest.raises(Killed):
                purge(ledger, actor="cleaner", keep_days=0)
        assert not find(ledger, one.ref)["purged"]
        assert verify(ledger) == []
    assert purge(ledger, actor="cleaner", keep_days=0) == 1
    assert b"user-one" not in files(tmp_path / "store")
    assert [kept.ids for kept in read_ids(ledger, [two.ref])] == [("user-two",)]


def test_leftovers_of_a_killed_filing_go_after_a_day_and_what_is_used_stays(
    ledger: Ledger, request_of: Make, clock: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file(ledger, request_of("used"))
    with monkeypatch.context() as patch:
        patch.setattr("unlearning.ledger.filing.tables.parcels", None)
        with pytest.raises(Exception, match=r".*"):
            file(ledger, request_of("lost"))
    assert b"user-lost" in files(tmp_path / "store")
    purge(ledger, actor="cleaner")
    assert b"user-lost" in files(tmp_path / "store"), "it may still be on its way"
    clock.forward(days=2)
    purge(ledger, actor="cleaner")
    assert b"user-lost" not in files(tmp_path / "store")
    assert b"user-used" in files(tmp_path / "store")
    assert [one.status for one in file(ledger, request_of("lost"))] == ["accepted"]


def test_a_filing_that_slept_until_its_parcel_was_swept_is_not_accepted(
    ledger: Ledger, request_of: Make, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = ledger.vault.put

    def slow(*arguments: Any) -> str:
        key = put(*arguments)
        clock.forward(days=3)
        purge(ledger, actor="cleaner")
        return key

    with monkeypatch.context() as patch:
        patch.setattr(ledger.vault, "put", slow)
        with pytest.raises(LedgerError, match="file the same again"):
            file(ledger, request_of(1))
    assert ledger.head() == (0, GENESIS)
    assert [one.status for one in file(ledger, request_of(1))] == ["accepted"]


def test_events_and_lists_cannot_be_changed_or_deleted(ledger: Ledger, request_of: Make) -> None:
    one, _ = file(ledger, request_of(1), request_of(2))
    not_found(ledger, [one.ref], evidence="a" * 64, actor="select")
    attempts = [
        "UPDATE events SET actor = 'me' WHERE seq = 1",
        "DELETE FROM events WHERE seq = 1",
        "UPDATE members SET position = 5",
        "DELETE FROM members",
        "INSERT INTO events SELECT * FROM events WHERE seq = 1",
    ]
    attempts += ["INSERT OR REPLACE INTO events SELECT * FROM events"] if ledger.dialect == "sqlite" else []
    attempts += ["TRUNCATE events"] if ledger.dialect == "postgresql" else []
    for attempt in attempts:
        with pytest.raises(sa.exc.DBAPIError, match=r"append-only|[Uu]nique"):
            raw(ledger, attempt)
    assert verify(ledger) == []


TAMPERING = {
    "UPDATE requests SET state = 'closed' WHERE received_seq = 2": "state differ",
    "UPDATE requests SET due_at = '2030-01-01T00:00:00.000000Z' WHERE received_seq = 2": "due_at differ",
    "UPDATE requests SET controller = 'other' WHERE received_seq = 2": "controller differ",
    "UPDATE requests SET ids = 7 WHERE received_seq = 2": "ids differ",
    "DELETE FROM requests WHERE received_seq = 2": "missing",
    "UPDATE head SET seq = 1": "head is not",
    "UPDATE events SET actor = 'me' WHERE seq = 2": "event 2 has another content",
    "UPDATE events SET kind = 'cancelled' WHERE seq = 2": "event 2 has another content",
    "DELETE FROM events WHERE seq = 2": "event 3 follows event 1",
    "DELETE FROM events WHERE seq = 4": "head is not",
    "UPDATE members SET ref = '00'": "list of requests that was changed",
}


@pytest.mark.parametrize("statement", TAMPERING)
def test_tampering_is_found_and_named(ledger: Ledger, request_of: Make, statement: str) -> None:
    one, *_ = file(ledger, request_of(1), request_of(2), request_of(3))
    not_found(ledger, [one.ref], evidence="a" * 64, actor="select")
    assert verify(ledger) == []
    names = ("no_update", "no_delete", "no_replace", "no_change", "no_truncate")
    drops = [
        f"DROP TRIGGER IF EXISTS {table}_{name}" + (f" ON {table}" if ledger.dialect == "postgresql" else "")
        for table in ("events", "members")
        for name in names
    ]
    raw(ledger, *drops, statement)
    assert any(TAMPERING[statement] in finding for finding in verify(ledger)), verify(ledger)


def test_another_key_is_refused_before_it_takes_every_request_for_new(
    ledger: Ledger, url: str, request_of: Make, store: FolderStore
) -> None:
    file(ledger, request_of(1))
    other = Ledger(url, Pseudonyms(b"x" * 32), Vault(store))
    with pytest.raises(LedgerError, match="another key"):
        file(other, request_of(1))
    other.close()


def test_an_empty_database_says_what_to_do_and_shows_no_password(tmp_path: Path, store: FolderStore) -> None:
    empty = Ledger(f"sqlite:///{tmp_path}/none.db", Pseudonyms(b"k" * 32), Vault(store))
    with pytest.raises(LedgerError, match="upgrade"):
        empty.head()
    nowhere = Ledger("postgresql://me:secret@127.0.0.1:9/none", Pseudonyms(b"k" * 32), Vault(store))
    with pytest.raises(LedgerError, match="cannot read the ledger") as caught:
        nowhere.head()
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    for url, said in (("mysql://x/y", "mysql"), ("nonsense", "UNLEARN_LEDGER_URL")):
        with pytest.raises(LedgerError, match=said):
            Ledger(url, Pseudonyms(b"k" * 32), Vault(store))


def test_the_layout_is_the_one_that_the_code_reads(ledger: Ledger) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    with ledger._engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, tables.metadata) == []
    assert ledger.upgrade() == "0002"


def test_a_layout_from_the_future_is_refused_and_kept(ledger: Ledger) -> None:
    raw(ledger, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(LedgerError, match="newer program"):
        ledger.upgrade()


def test_many_may_lay_out_and_file_at_once(empty_url: str, store: FolderStore, request_of: Make) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        mine = Ledger(empty_url, Pseudonyms(b"k" * 32), Vault(store))
        try:
            mine.upgrade()
            file(mine, *(request_of(one) for one in range(number, number + 5)))
        except BaseException as error:
            failures.append(error)
        finally:
            mine.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    mine = Ledger(empty_url, Pseudonyms(b"k" * 32), Vault(store))
    assert status(mine).counts["pending"] == 10
    assert verify(mine) == []
    mine.close()


def test_status_counts_what_waits_what_is_late_and_what_is_at_risk(
    ledger: Ledger, request_of: Make, clock: Any
) -> None:
    assert status(ledger).counts == dict.fromkeys(STATES, 0)
    late, soon, calm, gone = file(
        ledger,
        request_of(1, submitted_at="2026-10-01T12:00:00Z"),
        request_of(2, submitted_at="2026-10-25T12:00:00Z", model="voices"),
        request_of(3),
        request_of(4, submitted_at="2026-10-01T12:00:00Z"),
    )
    cancel(ledger, gone.ref, "taken back", actor="desk")
    hold(ledger, late.ref, "identity unclear", actor="desk")
    found = status(ledger)
    assert found.counts == {**dict.fromkeys(STATES, 0), "pending": 2, "held": 1, "cancelled": 1}
    assert (found.overdue, found.at_risk, found.oldest_days) == (1, 1, 51.0)
    assert found.next_due == "2026-11-01T12:00:00.000000Z"
    assert found.models == {"faces": 2, "voices": 1}
    assert (found.seq, found.head) == ledger.head()
    assert [row["ref"] for row in list_requests(ledger, state="pending")] == [soon.ref, calm.ref]
    assert [row["ref"] for row in list_requests(ledger, model="voices")] == [soon.ref]
    assert [row["ref"] for row in list_requests(ledger, limit=2)] == [late.ref, soon.ref]
    with pytest.raises(UsageError, match="the states are"):
        next(list_requests(ledger, state="open"))


LEGAL = {(before, kind) for kind, effect in EFFECTS.items() for before in effect.before}
ACTS: dict[str, Callable[[Ledger, str], Any]] = {
    "held": lambda ledger, ref: hold(ledger, ref, "r", actor="a"),
    "released": lambda ledger, ref: release(ledger, ref, actor="a"),
    "cancelled": lambda ledger, ref: cancel(ledger, ref, "r", actor="a"),
    "denied": lambda ledger, ref: deny(ledger, ref, "r", actor="a"),
    "not_found": lambda ledger, ref: not_found(ledger, [ref], evidence="0" * 64, actor="a"),
}


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(sorted(ACTS)), st.integers(0, 2)), max_size=12))
def test_only_lawful_steps_happen_and_the_tables_always_follow_the_events(
    ledger: Ledger, request_of: Make, steps: list[tuple[str, int]]
) -> None:
    salt = ledger.head()[0]
    refs = [one.ref for one in file(ledger, *(request_of(f"{salt}-{number}") for number in range(3)))]
    expected = dict.fromkeys(refs, "pending")
    for kind, which in steps:
        ref = refs[which]
        if (expected[ref], kind) in LEGAL:
            ACTS[kind](ledger, ref)
            expected[ref] = EFFECTS[kind].after
        else:
            with pytest.raises(UsageError):
                ACTS[kind](ledger, ref)
    assert {ref: state(ledger, ref) for ref in refs} == expected
    assert verify(ledger) == []


def test_a_sealed_line_reads_back_and_any_change_is_seen() -> None:
    made = event(3, "2026-11-21T12:00:00.000000Z", "held", prev="a" * 64, actor="desk", code="0.1", request="b" * 64,
                 body={"reason": 'quotes " and \u00e9', "n": 0.1})  # fmt: skip
    line = made.line()
    assert line.isascii()
    assert read_line(line) == made
    assert made.is_sound()
    for name in ("seq", "at", "kind", "request", "batch", "members", "actor", "code", "prev"):
        fields = {slot: getattr(made, slot) for slot in Event.__slots__}
        fields[name] = fields[name] + 1 if name == "seq" else fields[name] + "x"
        assert not Event(**fields).is_sound(), name
    for changed in (
        line.replace(":", ": "),
        line.replace(":0.1", ":0.10"),
        line.replace('"seq":3', '"seq":"3"'),
        "{}",
        "x",
    ):
        with pytest.raises((ValueError, KeyError, TypeError)):
            read_line(changed)
