"""Sealed copies of the ledger in the object store, so that nobody can rewrite the database unseen.

A segment is a run of events as JSON Lines, under the number of its first event, with the digest of the segment before.
It is created only if there is none, so one segment begins at each number and none is ever replaced. Beside the segments
lie the lists of requests that their events name, and for each segment the head that it ends with: publish that digest
where its owner cannot change it (a tag, a mail to the data protection officer), and the whole past is fixed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

import sqlalchemy as sa

from unlearning.errors import LedgerError, StorageError
from unlearning.ledger import merkle, tables
from unlearning.ledger.events import GENESIS, Event, broken_links, canonical, read_line
from unlearning.ledger.store import Ledger
from unlearning.storage import ObjectStore

SCHEMA = "unlearning-segment/1"
PREFIX = "evidence/ledger"
SEGMENT_EVENTS = 10_000


@dataclass(frozen=True)
class Segment:
    """A sealed run of events.

    Attributes:
        first: Number of its first event.
        last: Number of its last.
        head: Digest of its last event.
        sha256: Of the whole segment.
        before: sha256 of the segment before, or 64 zeros.
        events: The events.
    """

    first: int
    last: int
    head: str
    sha256: str
    before: str
    events: tuple[Event, ...]


def seal(ledger: Ledger, store: ObjectStore, *, most: int = SEGMENT_EVENTS) -> int:
    """The number of events that are sealed now; all that were there when this began.

    Several processes may seal at once, and every step may be repeated: what is there already is read back and compared.

    Args:
        ledger: Which.
        store: Where its evidence is kept.
        most: Events in one segment.

    Raises:
        LedgerError: When the store holds something else than the ledger.
    """
    seq, head, before = 0, GENESIS, GENESIS
    known = _last_known(ledger, store)
    if (segment := _last_sealed(store, known)) is not None:
        _create(store, f"{PREFIX}/heads/{segment.last:012d}.json", _head_text(segment))
        seq, head, before = segment.last, segment.head, segment.sha256
    until = ledger.head()[0]  # read after the segments: another process may have written and sealed meanwhile
    if seq > until:
        raise LedgerError(
            f"{seq} events are sealed and the ledger has {until}: it was set back; restore a newer copy, write nothing"
        )
    mine = next(ledger.events(seq - 1, seq), None) if seq else None
    if mine is not None and mine.hash != head:
        raise LedgerError(f"event {seq} is not the one that was sealed: the ledger was rewritten; restore it")
    while seq < until:
        events = list(ledger.events(seq, min(until, seq + most)))
        if problems := list(broken_links(iter(events), seq, head)):
            raise LedgerError(f"event {problems[0][0]} {problems[0][1]}: nothing is sealed; restore the ledger")
        for root in sorted({one.members for one in events if one.members}):
            _create(store, f"{PREFIX}/members/{root}.txt", _list_text(ledger.members(root)))
        _create(store, _key(seq + 1), _text(events, before), may_differ=True)
        segment = _read(store, seq + 1)  # ours, or that of a process that sealed at the same time
        _check(segment, seq, head, before)
        if [one.hash for one in segment.events[: len(events)]] != [one.hash for one in events[: len(segment.events)]]:
            raise LedgerError(
                f"the segment from event {seq + 1} holds other events than the ledger: restore the ledger"
            )
        _create(store, f"{PREFIX}/heads/{segment.last:012d}.json", _head_text(segment))
        seq, head, before = segment.last, segment.head, segment.sha256
        until = max(until, seq)
    if segment is not None and segment.first != known:
        _note_last(ledger, store, segment.first)
    return seq


def verify_sealed(ledger: Ledger, store: ObjectStore) -> list[str]:
    """What differs between the ledger and its sealed copies, one sentence each; an empty list when nothing does."""
    seq, head, before = 0, GENESIS, GENESIS
    findings: list[str] = []
    try:
        for segment in _sealed(store):
            _check(segment, seq, head, before)
            if store.get(f"{PREFIX}/heads/{segment.last:012d}.json") != _head_text(segment).encode():
                findings.append(f"the published head of event {segment.last} is not that of its segment")
            ours = {one.seq: one.hash for one in ledger.events(seq, segment.last)}
            wrong = [one.seq for one in segment.events if ours.get(one.seq) != one.hash]
            if wrong:
                findings.append(
                    f"{len(wrong)} events of the ledger are not those that were sealed, the first {wrong[0]}"
                )
            for root in sorted({one.members for one in segment.events if one.members}):
                if not _is_list(store.get(f"{PREFIX}/members/{root}.txt"), root):
                    findings.append(f"the sealed list of requests {root[:12]} was changed")
            seq, head, before = segment.last, segment.head, segment.sha256
    except (LedgerError, StorageError) as error:
        findings.append(str(error))
    return findings


def _sealed(store: ObjectStore) -> Iterator[Segment]:
    """The segments, in order."""
    expected = 1
    for key in store.keys(f"{PREFIX}/segments"):
        if key != _key(expected):
            raise LedgerError(f"the segment from event {expected} is missing, or {key[-40:]!r} is not ours: restore it")
        segment = _read(store, expected)
        yield segment
        expected = segment.last + 1


def _key(first: int) -> str:
    return f"{PREFIX}/segments/{first:012d}.jsonl"


def _last_sealed(store: ObjectStore, known: int) -> Segment | None:
    """The newest segment, found from the last one that is known of, or by a listing; None when there is none."""
    if not known or not store.exists(_key(known)):
        keys = list(store.keys(f"{PREFIX}/segments"))
        return _read(store, _first_of(keys[-1])) if keys else None
    segment = _read(store, known)
    while store.exists(_key(segment.last + 1)):
        segment = _read(store, segment.last + 1)
    return segment


def _last_known(ledger: Ledger, store: ObjectStore) -> int:
    """Number of the first event of a segment that was the newest in this store; 0 when none is known."""
    table = tables.sealed
    with ledger.reading() as connection:
        return int(connection.execute(sa.select(table.c.first).where(table.c.store == _place(store))).scalar() or 0)


def _note_last(ledger: Ledger, store: ObjectStore, first: int) -> None:
    table, place = tables.sealed, _place(store)
    with ledger.writing("seal") as writer:
        noted = sa.update(table).where(table.c.store == place).values(first=first)
        if not writer.connection.execute(noted).rowcount:
            writer.connection.execute(sa.insert(table), [{"store": place, "first": first}])


def _place(store: ObjectStore) -> str:
    return hashlib.sha256(store.uri.encode()).hexdigest()


def _first_of(key: str) -> int:
    found = re.fullmatch(rf"{PREFIX}/segments/([0-9]{{12}})\.jsonl", key)
    if found is None:
        raise LedgerError(f"{key[-60:]!r} is no segment of a ledger: find out who wrote it")
    return int(found[1])


def _text(events: list[Event], before: str) -> str:
    head = {"schema": SCHEMA, "first": events[0].seq, "last": events[-1].seq, "before": before, "head": events[-1].hash}
    return "".join(f"{line}\n" for line in (canonical(head), *(one.line() for one in events)))


def _head_text(segment: Segment) -> str:
    return canonical({"seq": segment.last, "head": segment.head, "segment_sha256": segment.sha256}) + "\n"


def _read(store: ObjectStore, first: int) -> Segment:
    data = store.get(_key(first))
    try:
        top, *lines = data.decode("ascii").splitlines()
        head = json.loads(top)
        events = tuple(read_line(line) for line in lines)
        if head["schema"] != SCHEMA:
            raise ValueError("it has another schema")
        if not events or (head["first"], head["last"], head["head"]) != (first, events[-1].seq, events[-1].hash):
            raise ValueError("its first line does not fit its events")
        return Segment(first, events[-1].seq, events[-1].hash, hashlib.sha256(data).hexdigest(), head["before"], events)
    except (ValueError, KeyError, TypeError) as error:
        raise LedgerError(f"the segment from event {first} is damaged ({error}): restore it") from error


def _check(segment: Segment, seq: int, head: str, before: str) -> None:
    if segment.before != before:
        raise LedgerError(f"the segment from event {segment.first} does not follow on the one before: restore both")
    if problems := list(broken_links(iter(segment.events), seq, head)):
        raise LedgerError(f"sealed event {problems[0][0]} {problems[0][1]}: restore the segment")


def _is_list(data: bytes, root: str) -> bool:
    """Whether a sealed list of requests is as it was written."""
    refs = data.decode("ascii", errors="replace").splitlines()
    if not all(re.fullmatch("[0-9a-f]{64}", ref) for ref in refs):
        return False
    return _list_text(sorted(set(refs))).encode() == data and merkle.root_of_refs(refs) == root


def _list_text(refs: list[str]) -> str:
    return "".join(f"{ref}\n" for ref in refs)


def _create(store: ObjectStore, key: str, text: str, *, may_differ: bool = False) -> None:
    """Makes an object, or finds it there with the same content: a reply that was lost is no failure."""
    data = text.encode("ascii")
    if not store.create(key, data) and not may_differ and store.get(key) != data:
        raise LedgerError(f"{key} holds something else already: find out who wrote it, nothing was replaced")
