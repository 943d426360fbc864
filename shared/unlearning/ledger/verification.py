"""Whether the ledger is what its events say: the chain, the lists, and every row that follows from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from unlearning.ledger import merkle, tables
from unlearning.ledger.events import BATCH_STATES, EFFECTS, GENESIS, Event, broken_links
from unlearning.ledger.standing import KINDS, Standing, standings
from unlearning.ledger.store import Ledger, changes, chunks, first_state, members_of

_MOST_FINDINGS = 100
_MOVING = ("due_at", "extended", "state", "batch", "outcome", "reason", "purged", "changed_at", "changed_seq")
_ROWS = 2000

State = tuple[Any, ...]


@dataclass
class Fold:
    """The state of every request and batch, made from events alone.

    Attributes:
        requests: Digest of a request to its moving columns, in the order of `due_at, extended, state, batch, outcome,
            reason, purged, changed_at, changed_seq`.
        batches: Batch to its state, token, and the number of the event that settled it.
        standings: Model to which of its versions serves and what it has forgotten.
        wrong: Events that no state allows, by number.
    """

    requests: dict[str, State] = field(default_factory=dict)
    batches: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    standings: dict[str, Standing] = field(default_factory=dict)
    wrong: list[tuple[int, str]] = field(default_factory=list)
    _inside: dict[str, set[str]] = field(default_factory=dict)
    _model_of: dict[str, str] = field(default_factory=dict)

    def apply(self, one: Event, members: Iterable[str] = ()) -> None:
        """Takes the next event.

        Args:
            one: The event.
            members: The requests of its list, when it has one.
        """
        if one.kind not in EFFECTS:
            self.wrong.append((one.seq, f'is of the unknown kind "{one.kind[:20]}"'))
            return
        if one.kind == "received":
            if one.request in self.requests:
                self.wrong.append((one.seq, "receives a request that was there before"))
            row = first_state(one)
            self.requests[one.request] = tuple(row[name] for name in _MOVING)
            return
        effect, content = EFFECTS[one.kind], one.content
        if one.request:
            about: list[str] = [one.request]
        elif one.members:
            about = list(members)
        else:
            about = list(self._inside.get(one.batch, ())) if one.batch and effect.after else []
        strict = bool(one.request or one.members)
        for ref in about:
            before = self.requests.get(ref)
            if before is None or before[2] not in effect.before:
                if strict:
                    self.wrong.append((one.seq, f'"{one.kind}" does not fit the request {ref[:12]}'))
                continue
            after = dict(zip(_MOVING, before, strict=True)) | changes(one.kind, content)
            if one.kind == "claimed":
                after["batch"] = one.batch
                self._inside.setdefault(one.batch, set()).add(ref)
            after |= {"changed_at": one.at, "changed_seq": one.seq}
            self.requests[ref] = tuple(after[name] for name in _MOVING)
        if one.batch:
            state, token, settled = self.batches.get(one.batch, ("", 0, 0))
            if one.kind in ("claimed", "taken_over"):
                token = one.seq
            if one.kind == "claimed":
                self._model_of[one.batch] = str(content["content"]["model"])
            settled = one.seq if one.kind == "settled" else settled
            self.batches[one.batch] = (BATCH_STATES.get(one.kind, state), token, settled)
            if one.kind in ("dissolved", "withdrawn"):
                self._inside.pop(one.batch, None)
        if one.kind in KINDS:
            model = str(content.get("model", self._model_of.get(one.batch, "")))
            try:
                self.standings.setdefault(model, Standing()).apply(one)
            except KeyError:
                self.wrong.append((one.seq, f'"{one.kind}" speaks of a version that was never to serve'))


def verify(ledger: Ledger) -> list[str]:
    """What is wrong with the ledger, one sentence each, at most a hundred; an empty list when nothing is.

    Looks at the chain of events, the lists that they name, and compares every request and batch with what the events
    make of them. What both the events and the tables were changed to alike, only the sealed copies tell: `segments`.
    """
    findings: list[str] = []
    fold, table, seq, head = Fold(), tables.requests, 0, GENESIS
    seen_roots: dict[str, bool] = {}
    for chunk in chunks(ledger.events(), _ROWS):
        findings += [f"event {number} {what}" for number, what in broken_links(iter(chunk), seq, head)]
        seq, head = chunk[-1].seq, chunk[-1].hash
        received = {one.request: one for one in chunk if one.kind == "received"}
        with ledger.reading() as connection:
            for part in chunks(received, _ROWS):
                rows = {row.ref: row for row in connection.execute(sa.select(table).where(table.c.ref.in_(part)))}
                for ref in part:
                    findings += _fixed_differences(received[ref], rows.get(ref))
            for one in chunk:
                inside: list[str] = []
                if one.members:
                    inside = members_of(connection, one.members)
                    if one.members not in seen_roots:
                        seen_roots[one.members] = merkle.root_of_refs(inside) == one.members
                        if not seen_roots[one.members]:
                            findings.append(f"event {one.seq} names a list of requests that was changed")
                fold.apply(one, inside)
        if len(findings) >= _MOST_FINDINGS:
            return findings[:_MOST_FINDINGS]
    findings += [f"event {number} {what}" for number, what in fold.wrong]
    if ledger.head() != (seq, head):
        findings.append(f"the head is not event {seq}: events were taken off the end, or the head was changed")
    findings += _moving_differences(ledger, fold)
    return findings[:_MOST_FINDINGS]


def _fixed_differences(one: Event, row: Any) -> list[str]:
    if row is None:
        return [f"request {one.request[:12]} of event {one.seq} is missing"]
    expected = first_state(one)
    wrong = [name for name in (*tables.FIXED, "received_seq") if getattr(row, name) != expected[name]]
    return [f"request {one.request[:12]}: {', '.join(wrong)} differ from event {one.seq}"] if wrong else []


def _moving_differences(ledger: Ledger, fold: Fold) -> list[str]:
    """Where the tables hold something else than the fold."""
    findings, left = [], len(fold.requests)
    table, after = tables.requests, ""
    while True:
        columns = [table.c.ref, *(table.c[name] for name in _MOVING)]
        query = sa.select(*columns).where(table.c.ref > after).order_by(table.c.ref).limit(_ROWS)
        with ledger.reading() as connection:
            rows = connection.execute(query).all()
        for row in rows:
            expected = fold.requests.get(row.ref)
            left -= expected is not None
            if expected is None:
                findings.append(f"request {row.ref[:12]} has no event")
            elif tuple(row[1:]) != expected:
                wrong = [name for name, was, is_ in zip(_MOVING, expected, row[1:], strict=True) if was != is_]
                findings.append(f"request {row.ref[:12]}: {', '.join(wrong)} differ from what its events make")
        if not rows or len(findings) >= _MOST_FINDINGS:
            break
        after = rows[-1].ref
    if left and len(findings) < _MOST_FINDINGS:
        findings.append(f"{left} requests of the events are missing")
    with ledger.reading() as connection:
        rows = connection.execute(sa.select(tables.batches)).all()
        held = {row.batch: (row.state, row.token, row.settled_seq) for row in rows}
        served = standings(connection)
    findings += [
        f"batch {batch[:12]} differs from what its events make"
        for batch in sorted(held.keys() | fold.batches.keys())
        if held.get(batch) != fold.batches.get(batch)
    ]
    findings += [
        f'which version of "{model}" serves, or what it has forgotten, differs from what its events make'
        for model in sorted(served.keys() | fold.standings.keys())
        if served.get(model) != fold.standings.get(model)
    ]
    return findings
