"""Whether this very bucket and database can hold the ledger's promises: two writers try, and one must win."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Barrier
from typing import TypeVar

import sqlalchemy as sa

from unlearning.errors import LedgerError, StorageError
from unlearning.ledger import tables
from unlearning.ledger.store import Ledger
from unlearning.storage import ObjectStore

T = TypeVar("T")

_ROUNDS = 5
_WRITERS = 2
_SHARED = ("nfs", "cifs", "smb", "fuse.", "9p", "ceph", "gluster", "lustre", "afs")


@dataclass(frozen=True)
class Finding:
    """One thing that was tried.

    Attributes:
        what: What was tried.
        holds: Whether it can be relied on.
        detail: What came, and what to do when it does not hold.
    """

    what: str
    holds: bool
    detail: str


def probe(ledger: Ledger, store: ObjectStore) -> list[Finding]:
    """What the store and the database can and cannot promise; leaves nothing behind in either.

    Args:
        ledger: Laid out.
        store: Where its evidence and ids are kept.
    """
    return [*probe_store(store), *probe_database(ledger)]


def probe_store(store: ObjectStore) -> list[Finding]:
    """Whether create-if-absent lets one of two writers win, keeps the winner's content, and deletion is thorough."""
    top = f"probe/{secrets.token_hex(16)}"
    findings: list[Finding] = []
    try:
        store.check()
        for number in range(_ROUNDS):
            key = f"{top}/{number}"
            contents = [secrets.token_bytes(32) for _ in range(_WRITERS)]
            answers = _together([partial(store.create, key, data) for data in contents])
            winners = [data for data, won in zip(contents, answers, strict=True) if won]
            if len(winners) != 1:
                why = f"{len(winners)} of {_WRITERS} writers were told that they created the same object"
                findings.append(Finding("one writer wins", False, f"{why}: use a store with conditional writes"))
                break
            if store.get(key) != winners[0] or store.create(key, b"late"):
                findings.append(
                    Finding("one writer wins", False, "a later writer replaced the object: use another store")
                )
                break
        else:
            findings.append(Finding("one writer wins", True, f"{_ROUNDS} races of {_WRITERS} had one winner each"))
    except StorageError as error:
        findings.append(Finding("one writer wins", False, str(error)))
    try:
        store.delete(top)
        left = list(store.keys(top))
        detail = "everything that was tried with is gone" if not left else f"{len(left)} objects stayed: check rights"
        findings.append(Finding("deletion is thorough", not left, detail))
    except StorageError as error:
        findings.append(Finding("deletion is thorough", False, str(error)))
    return findings


def probe_database(ledger: Ledger) -> list[Finding]:
    """Whether the database lets one of two writers go first, keeps what it confirmed, and refuses changes to events."""
    try:
        findings = [_takes_turns(ledger), _append_only(ledger)]
        return findings + (_sqlite(ledger) if ledger.dialect == "sqlite" else _postgresql(ledger))
    except LedgerError as error:
        return [Finding("the database answers", False, str(error))]


class _Undo(Exception):  # noqa: N818
    """Takes a try back."""


def _takes_turns(ledger: Ledger) -> Finding:
    """Two writers read the head, wait for each other and would write: the second must wait for the first's end."""
    order: list[str] = []

    def write() -> None:
        try:
            with ledger.writing("probe") as writer:
                order.append("in")
                writer.connection.execute(sa.select(tables.head)).one()
                order.append("out")
                raise _Undo
        except _Undo:
            pass

    _together([write] * 4)
    alternating = order == ["in", "out"] * 4
    detail = (
        "four writers took turns" if alternating else "writers ran at once: use SQLite on a local disk or PostgreSQL"
    )
    return Finding("writers take turns", alternating, detail)


def _append_only(ledger: Ledger) -> Finding:
    """Adds an event and tries to change it, in a transaction that is taken back."""
    changed = False
    for statement in (sa.update(tables.events).values(actor="probe"), sa.delete(tables.events)):
        try:
            with ledger.writing("probe") as writer:
                writer.append("imported", body={"probe": True})
                writer.flush()
                writer.connection.execute(statement)
                changed = True
                raise _Undo
        except (_Undo, LedgerError):
            pass
    detail = "the triggers that guard events are missing: restore them" if changed else "a change was refused"
    return Finding("events are append-only", not changed, detail)


def _sqlite(ledger: Ledger) -> list[Finding]:
    with ledger.reading() as connection:
        mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar()
        path = connection.exec_driver_sql("PRAGMA database_list").one()[2]
    kind = _file_system(Path(path))
    shared = kind.startswith(_SHARED)
    return [
        Finding(
            "write-ahead log", mode == "wal", f"the journal mode is {mode}" + ("" if mode == "wal" else ": upgrade")
        ),
        Finding(
            "a local disk",
            not shared,
            f"the file system is {kind or 'unknown'}"
            + (": SQLite's locks fail on shared volumes, use PostgreSQL" if shared else ""),
        ),
    ]


def _postgresql(ledger: Ledger) -> list[Finding]:
    with ledger.reading() as connection:

        def setting(name: str) -> str:
            return str(connection.execute(sa.text("SELECT current_setting(:name)"), {"name": name}).scalar())

        standby = bool(connection.execute(sa.text("SELECT pg_is_in_recovery()")).scalar())
        version, fsync, commit = setting("server_version_num"), setting("fsync"), setting("synchronous_commit")
    durable = fsync == "on" and commit != "off"
    return [
        Finding("version 12 or later", int(version) >= 120_000, f"the server is {int(version) // 10_000}"),
        Finding("not a standby", not standby, "it is a standby: use the primary's address" if standby else "a primary"),
        Finding(
            "what is confirmed survives",
            durable,
            f"fsync {fsync}, synchronous_commit {commit}"
            + ("" if durable else ": a power cut can lose requests that were accepted; switch both on"),
        ),
    ]


def _file_system(path: Path) -> str:
    """The kind of file system that a path is on, as Linux names it; "" elsewhere."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return ""
    place = path.resolve()
    fitting = [(len(top), kind) for top, kind in mounts if place.is_relative_to(top.replace("\\040", " "))]
    return max(fitting)[1] if fitting else ""


def _together(calls: list[Callable[[], T]]) -> list[T]:
    """What the calls give when they begin at the same moment."""
    start = Barrier(len(calls))

    def one(call: Callable[[], T]) -> T:
        start.wait(30)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(one, calls))
