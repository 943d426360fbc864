"""What people do with requests: file, hold, release, extend, deny, cancel, and later have their ids removed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import sqlalchemy as sa

from unlearning.errors import LedgerError, UsageError
from unlearning.ledger import tables
from unlearning.ledger.deadlines import POLICY, due_dates, extended
from unlearning.ledger.events import CLAIMED, ENDED, HELD, OPEN, PENDING, moment, time_of
from unlearning.ledger.requests import DeletionRequest
from unlearning.ledger.store import Ledger, Writer, chunks
from unlearning.ledger.vault import PARCEL_REQUESTS, Kept

CONFLICT = "the same key came with another content"
KEEP_DAYS = 30
"""How long ids stay after a request has ended."""

_AHEAD = timedelta(days=1)
_REASON = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]{1,256}")
_LEFTOVER = timedelta(days=1)


@dataclass(frozen=True)
class Hold:
    """Why a request is held.

    Attributes:
        reason: One line.
        guard: The name of the guard that holds it, whose approval it needs; "": anybody may release it.
        approvals: How many roles must approve it.
    """

    reason: str
    guard: str = ""
    approvals: int = 0

    def body(self) -> dict[str, Any]:
        """Of the event."""
        more = {"guard": self.guard, "approvals": self.approvals} if self.guard else {}
        return {"reason": checked_reason(self.reason), **more}


Holds = Callable[[DeletionRequest], Hold | None]


@dataclass(frozen=True)
class Filed:
    """What became of one request on arrival.

    Attributes:
        ref: Its name from now on.
        status: "accepted"; "repeated" (the same came before); "conflict" (its key came before with another content,
            and the earlier request is held if it can be); or "refused".
        reason: Why it was refused; else "".
        twin_of: An open request that asks for the very same, or "".
    """

    ref: str
    status: Literal["accepted", "repeated", "conflict", "refused"]
    reason: str = ""
    twin_of: str = ""


def file_requests(
    ledger: Ledger,
    requests: Iterable[DeletionRequest],
    *,
    actor: str,
    hold: Holds = lambda request: None,
) -> Iterable[Filed]:
    """What became of each request, in their order, a thousand at a time; each thousand is kept whole or not at all.

    Filing the same again changes nothing, so an interrupted call is repeated as it is.

    Args:
        ledger: Where.
        requests: Checked.
        actor: The role or process that files them.
        hold: Says why a new request is held until someone releases or approves it, or None.
    """
    for chunk in chunks(requests, PARCEL_REQUESTS):
        yield from _file(ledger, chunk, actor, hold)


def hold(ledger: Ledger, ref: str, reason: str, *, actor: str) -> None:
    """Keeps a request out of batches until it is released; its clock runs on. A batch that has it is dissolved."""
    with ledger.writing(actor) as writer:
        free(writer, ref, "held")
        writer.append("held", request=ref, body={"reason": checked_reason(reason)})


def release(ledger: Ledger, ref: str, *, actor: str) -> None:
    """Lets a held request into batches again.

    Raises:
        UsageError: When a guard holds it, which wants approvals.
    """
    from unlearning.ledger.guards import held_by

    with ledger.writing(actor) as writer:
        if row_of(writer, ref).state == HELD and (guard := held_by(writer.connection, ref)) is not None:
            raise UsageError(
                f"request {ref[:12]} needs {guard['approvals']} approvals, each by a role that did not file it: "
                "`unlearn requests approve`"
            )
        writer.append("released", request=ref)


def cancel(ledger: Ledger, ref: str, reason: str, *, actor: str) -> None:
    """Ends a request unserved, for the person took it back; a batch that has it is dissolved.

    Raises:
        UsageError: After the point of no return, or when it has ended.
    """
    with ledger.writing(actor) as writer:
        free(writer, ref, "cancelled")
        writer.append("cancelled", request=ref, body={"reason": checked_reason(reason)})


def deny(ledger: Ledger, ref: str, reason: str, *, actor: str) -> None:
    """Ends a request unserved, for a reason that the person is told; a batch that has it is dissolved."""
    with ledger.writing(actor) as writer:
        free(writer, ref, "denied")
        writer.append("denied", request=ref, body={"reason": checked_reason(reason)})


def extend(ledger: Ledger, ref: str, reason: str, *, actor: str) -> str:
    """The later due date, once for each request and only before the first; the person must be told why.

    Raises:
        UsageError: When it was extended before, is overdue, or its regulation knows no extension.
    """
    with ledger.writing(actor) as writer:
        row = row_of(writer, ref)
        if row.extended:
            raise UsageError(f"request {ref[:12]} was extended before: answer by {row.due_at}, or deny with a reason")
        if row.due_at < moment(writer.now):
            raise UsageError(
                f"request {ref[:12]} was due at {row.due_at}: an extension is given before that, not after"
            )
        due = moment(extended(row.regulation, time_of(row.due_at)))
        writer.append("extended", request=ref, body={"due_at": due, "reason": checked_reason(reason)})
        return due


def not_found(ledger: Ledger, refs: Iterable[str], *, evidence: str, actor: str) -> None:
    """Closes requests whose ids match no row; that is a result, with its evidence, not a mistake.

    Args:
        ledger: Where.
        refs: Pending, or in a batch that has not passed its point of no return.
        evidence: Digest of the manifest that was searched.
        actor: Who searched.
    """
    if not re.fullmatch("[0-9a-f]{64}", evidence):
        raise UsageError("the evidence of a search is the digest of the manifest: 64 hexadecimal digits")
    if wanted := sorted(set(refs)):
        with ledger.writing(actor) as writer:
            writer.append("not_found", members=wanted, body={"manifest_sha256": evidence})


def close(ledger: Ledger, batch: str, *, obligations: dict[str, Any], actor: str) -> None:
    """Closes the served requests of a batch, once everything around the model is done as well.

    Args:
        ledger: Where.
        batch: Settled.
        obligations: What was done, or will be and when: source data, exclusion list, old model.
        actor: Who says so.
    """
    with ledger.writing(actor) as writer:
        row = writer.connection.execute(sa.select(tables.batches).where(tables.batches.c.batch == batch)).first()
        if row is None or row.state != "settled":
            raise UsageError(f"batch {batch[:12]} is {row.state if row else 'unknown'}: only a settled one is closed")
        writer.append("closed", batch=batch, body={"obligations": obligations})


def purge(ledger: Ledger, *, actor: str, keep_days: float = KEEP_DAYS) -> int:
    """The number of ended requests whose ids are now gone from the vault, all versions of them.

    Every step may be repeated: what a killed call left is done by the next.

    Args:
        ledger: Where.
        actor: Who removes them.
        keep_days: How long ids stay after the end; 0 or more.
    """
    if not keep_days >= 0:
        raise UsageError(f"ids are kept for 0 days or more after the end, got {keep_days}")
    limit, table, purged = moment(ledger.clock() - timedelta(days=keep_days)), tables.requests, 0
    query = sa.select(tables.parcels.c.parcel).join(table, table.c.ref == tables.parcels.c.ref)
    query = query.where(table.c.state.in_(ENDED), table.c.purged.is_(False), table.c.changed_at <= limit).distinct()
    with ledger.reading() as connection:
        parcels = list(connection.execute(query).scalars())
    for parcel in parcels:
        purged += _empty(ledger, parcel, limit, actor)
    _drop_leftovers(ledger, actor)
    return purged


def read_ids(ledger: Ledger, refs: Sequence[str]) -> Iterable[Kept]:
    """What the vault holds of some requests, parcel by parcel.

    Raises:
        LedgerError: When the ids of one are gone.
    """
    wanted, found = set(refs), 0
    table, by_parcel = tables.parcels, dict[str, set[str]]()
    with ledger.reading() as connection:
        for chunk in chunks(sorted(wanted), 5000):
            for row in connection.execute(sa.select(table).where(table.c.ref.in_(chunk))):
                by_parcel.setdefault(row.parcel, set()).add(row.ref)
    if missing := len(wanted) - sum(map(len, by_parcel.values())):
        raise LedgerError(f"the ids of {missing} of {len(wanted)} requests were removed: they have ended")
    for parcel, inside in sorted(by_parcel.items()):
        for kept in ledger.vault.read(parcel):
            if kept.ref in inside:
                found += 1
                yield kept
    if found != len(wanted):
        raise LedgerError(f"the vault lacks the ids of {len(wanted) - found} requests: restore its parcels")


def row_of(writer: Writer, ref: str) -> Any:
    """The state of a request.

    Raises:
        UsageError: When there is none of that name.
    """
    row = writer.connection.execute(sa.select(tables.requests).where(tables.requests.c.ref == ref)).first()
    if row is None:
        raise UsageError(f"there is no request {ref[:12]!r}: see the list of requests")
    return row


def free(writer: Writer, ref: str, wanted: str) -> None:
    """Takes a request out of its batch, if it is in one, by dissolving that.

    Raises:
        UsageError: When the batch has passed its point of no return, or the request has ended.
    """
    row = row_of(writer, ref)
    if row.state == CLAIMED:
        writer.append("dissolved", batch=row.batch, body={"reason": f"a request of it was {wanted}", "by": ref})
    elif row.state not in (PENDING, HELD):
        past = "its batch has passed the point of no return" if row.state in OPEN else "it has ended"
        raise UsageError(f"request {ref[:12]} is {row.state} and cannot be {wanted}: {past}")


def checked_reason(text: str) -> str:
    """The reason itself, when it is one line of 1 to 256 printable characters."""
    if not _REASON.fullmatch(text):
        raise UsageError("a reason is one line of 1 to 256 printable characters, without ids or names of people")
    return text


def _file(ledger: Ledger, chunk: list[DeletionRequest], actor: str, hold: Holds) -> list[Filed]:
    names, now = ledger.names, ledger.clock()
    refs = [one.ref(names) for one in chunk]
    with ledger.reading() as connection:
        known = _contents(connection, refs)
    results: dict[int, Filed] = {}
    fresh: dict[str, int] = {}
    for place, (one, ref) in enumerate(zip(chunk, refs, strict=True)):
        if one.submitted_at > now + _AHEAD:
            results[place] = Filed(ref, "refused", "submitted_at lies in the future")
        elif ref not in known:
            fresh.setdefault(ref, place)
    parcel = ""
    if fresh:
        kept = (Kept(ref, chunk[place].key, chunk[place].kind, chunk[place].ids) for ref, place in fresh.items())
        parcel = ledger.vault.put(kept, now)
    elif all(known.get(ref) == one.content(names) for one, ref in zip(chunk, refs, strict=True)):
        return [results.get(place) or Filed(ref, "repeated") for place, ref in enumerate(refs)]
    with ledger.writing(actor) as writer:
        known = _contents(writer.connection, refs)
        targets = [one.target(names) for one in chunk]
        twins, mapped = _open_targets(writer.connection, targets), []
        for place, (one, ref, target) in enumerate(zip(chunk, refs, targets, strict=True)):
            if place in results:
                continue
            content = one.content(names)
            if ref in known:
                same = known[ref] == content
                results[place] = Filed(ref, "repeated" if same else "conflict", "" if same else CONFLICT)
                if not same:
                    _conflict(writer, ref, content)
                continue
            known[ref] = content
            results[place] = Filed(ref, "accepted", twin_of=twins.get(target, ""))
            due, aim = due_dates(one.regulation, one.submitted_at)
            body = {
                "controller": one.controller,
                "kind": one.kind,
                "model": one.model,
                "dataset": one.dataset,
                "regulation": one.regulation,
                "target": target,
                "content": content,
                "ids": len(one.ids),
                "urgency": 0 if one.priority == "expedite" else 1,
                "twin_of": twins.get(target, ""),
                "submitted_at": moment(one.submitted_at),
                "received_at": moment(writer.now),
                "due_at": moment(due),
                "aim_at": moment(aim),
                "policy": POLICY,
            }
            writer.append("received", request=ref, body=body)
            twins.setdefault(target, ref)
            mapped.append({"ref": ref, "parcel": parcel})
            if (why := hold(one)) is not None:
                writer.append("held", request=ref, body=why.body())
        if mapped:
            if not ledger.vault.holds(parcel):
                raise LedgerError("filing took so long that its ids were taken for leftovers: file the same again")
            writer.connection.execute(sa.insert(tables.parcels), mapped)
    if parcel and not mapped:
        ledger.vault.drop(parcel)
    return [results[place] for place in range(len(chunk))]


def _conflict(writer: Writer, ref: str, content: str) -> None:
    writer.append("conflict", request=ref, body={"content": content})
    if row_of(writer, ref).state == PENDING:
        writer.append("held", request=ref, body={"reason": CONFLICT})


def _contents(connection: sa.Connection, refs: Sequence[str]) -> dict[str, str]:
    table = tables.requests
    rows = connection.execute(sa.select(table.c.ref, table.c.content).where(table.c.ref.in_(refs)))
    return {row.ref: row.content for row in rows}


def _open_targets(connection: sa.Connection, targets: Sequence[str]) -> dict[str, str]:
    """The earliest open request of each target."""
    table = tables.requests
    query = sa.select(table.c.target, table.c.ref).where(
        table.c.target.in_(targets), table.c.state.in_((PENDING, HELD, CLAIMED)), table.c.twin_of == ""
    )
    return {row.target: row.ref for row in connection.execute(query.order_by(table.c.received_seq.desc()))}


def _empty(ledger: Ledger, parcel: str, limit: str, actor: str) -> int:
    """The number of ended requests taken out of one parcel."""
    table, parcels = tables.requests, tables.parcels
    with ledger.writing(actor) as writer:
        query = sa.select(parcels.c.ref, table.c.state, table.c.purged, table.c.changed_at)
        query = query.join(table, table.c.ref == parcels.c.ref).where(parcels.c.parcel == parcel)
        rows = writer.connection.execute(query).all()
        gone = {row.ref for row in rows if row.state in ENDED and not row.purged and row.changed_at <= limit}
        stay = {row.ref for row in rows} - gone
        if not gone:
            return 0
        if stay:
            new = ledger.vault.put((one for one in ledger.vault.read(parcel) if one.ref in stay), writer.now)
            writer.connection.execute(
                sa.update(parcels).where(parcels.c.parcel == parcel, parcels.c.ref.in_(stay)).values(parcel=new)
            )
    ledger.vault.drop(parcel)
    with ledger.writing(actor) as writer:
        query = sa.select(parcels.c.ref).where(parcels.c.parcel == parcel, parcels.c.ref.in_(gone))
        left = list(writer.connection.execute(query).scalars())
        if left:
            writer.append("purged", members=left)
            writer.connection.execute(sa.delete(parcels).where(parcels.c.parcel == parcel))
    return len(left)


def _drop_leftovers(ledger: Ledger, actor: str) -> None:
    """Removes parcels that no request is in: their filing or rewriting was killed.

    It does so in a writer's turn, and filing looks in its own whether the parcel is still there, so that a process that
    slept for days cannot accept a request whose ids are gone.
    """
    for key in ledger.vault.parcels(ledger.clock() - _LEFTOVER):
        query = sa.select(sa.literal(1)).where(tables.parcels.c.parcel == key).limit(1)
        with ledger.writing(actor) as writer:
            if writer.connection.execute(query).first() is None:
                ledger.vault.drop(key)
