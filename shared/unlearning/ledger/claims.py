"""Who works on what: a batch is claimed by one process at a time, and a process that lost its claim cannot write.

A claim lasts as long as its lease; the number of the event that granted it is its fencing token. Once another process
has taken over, the token is another one, and every write under the old one is refused, however late it wakes. Clocks
decide only when someone may take over, never who is right.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from unlearning.errors import LedgerError, UsageError
from unlearning.ledger import merkle, tables
from unlearning.ledger.events import CLAIMED, DISSOLVED, PENDING, PROMOTING, canonical, digest_of, moment
from unlearning.ledger.store import Ledger, Writer, chunks

SCHEMA = "unlearning-batch/1"
LEASE_SECONDS = 3600.0
_ACTIVE = (CLAIMED, PROMOTING)


class ClaimLostError(LedgerError):
    """The batch is no longer this process's: another took it over, or it was dissolved. Stop; nothing was written."""


@dataclass(frozen=True)
class Plan:
    """The batch that the next claim would make.

    Attributes:
        batch: Digest of `content`.
        content: What the batch is: model, data set, kind, root and number of its requests, base, settings.
        refs: Its requests, sorted.
        first_due: The earliest of their due dates.
        overdue: How many of them are past theirs.
        twins: How many ask for the very same as another one.
        waiting: Other requests about this model that would still wait.
        urgent: How many of them go first.
    """

    batch: str
    content: dict[str, Any]
    refs: list[str]
    first_due: str
    overdue: int
    twins: int
    waiting: int
    urgent: int = 0


@dataclass(frozen=True)
class Claim:
    """The right to work on a batch; plain JSON types, so that it can be handed from stage to stage.

    Attributes:
        batch: Digest of its content.
        token: Fencing token.
        owner: Who holds it.
        lease_until: When others may take over.
        state: "claimed", or "promoting" when it was taken over after the point of no return: reconcile first.
        model: Registered model.
        dataset: Data set, or "*".
        kind: "class", "subject", "sample", "target" or "period".
        members: Root of the list of its requests.
        count: Their number.
        base: Digest of the model to start from, or "".
    """

    batch: str
    token: int
    owner: str
    lease_until: str
    state: str
    model: str
    dataset: str
    kind: str
    members: str
    count: int
    base: str

    def as_plain(self) -> dict[str, Any]:
        """As JSON has it; `Claim(**...)` turns it back."""
        return asdict(self)


def plan(
    ledger: Ledger, *, model: str = "", limit: int = 0, base: str = "", settings: Mapping[str, Any] | None = None
) -> Plan | None:
    """The batch that a claim with the same arguments would make now; None when nothing waits. Writes nothing.

    A batch is about one model, one data set and one kind, those of the most urgent request. Requests that ask for the
    very same go together, beyond the limit if need be.

    Args:
        ledger: Which.
        model: Only requests about this model; "" for any that no batch is at work on.
        limit: At most so many requests; 0 for all.
        base: Digest of the model to start from.
        settings: What else makes the result what it is: method, data manifest, seed.
    """
    if limit < 0:
        raise UsageError(f"the limit of a batch is 0 (none) or more requests, got {limit}")
    with ledger.reading() as connection:
        return _plan(connection, moment(ledger.clock()), model, limit, base, settings or {})


def claim(
    ledger: Ledger,
    *,
    owner: str,
    model: str = "",
    limit: int = 0,
    base: str = "",
    settings: Mapping[str, Any] | None = None,
    lease_seconds: float = LEASE_SECONDS,
    resume: bool = False,
    begin: bool = True,
) -> Claim | None:
    """A batch to work on; None, quickly, when nothing waits or others are at work on all that does.

    A batch whose lease has run out is taken over before a new one is made. There is one batch at a time for each
    model: two that start from the same model would each lack what the other forgot.

    Args:
        ledger: Which.
        owner: Unlike that of any other process, such as the pod's name.
        model: As for `plan`.
        limit: As for `plan`.
        base: As for `plan`.
        settings: As for `plan`.
        lease_seconds: How long, from now, nobody may take over.
        resume: Take over a batch of this very owner at once: it is a process that was started again.
        begin: Whether a new batch may be made, or one be taken over alone.
    """
    again = owner if resume else ""
    if limit < 0 or not 0 < lease_seconds <= 31 * 86400:
        raise UsageError(
            f"a claim needs a limit of 0 or more and a lease of up to 31 days, got {limit}, {lease_seconds}"
        )
    if not _worth_a_try(ledger, model, again, begin):
        return None
    with ledger.writing(owner) as writer:
        now, until = moment(writer.now), moment(writer.now + timedelta(seconds=lease_seconds))
        if (found := _expired(writer.connection, now, model, again)) is not None:
            content = {"owner": owner, "lease_until": until, "token_before": found.token}
            token = writer.append("taken_over", batch=found.batch, body=content).seq
            batch = found.batch
        else:
            planned = _plan(writer.connection, now, model, limit, base, settings or {}) if begin else None
            if planned is None:
                return None
            batch, table = planned.batch, tables.batches
            known = writer.connection.execute(sa.select(table.c.state).where(table.c.batch == batch)).scalar()
            if known is None:
                row = {
                    "batch": batch,
                    "model": planned.content["model"],
                    "members": planned.content["members"],
                    "number": planned.content["count"],
                    "content": canonical(planned.content),
                    "state": DISSOLVED,
                    "token": 0,
                    "owner": "",
                    "lease_until": "",
                    "changed_at": now,
                }
                writer.connection.execute(sa.insert(table), [row])
            content = {"content": planned.content, "owner": owner, "lease_until": until}
            token = writer.append("claimed", batch=batch, members=planned.refs, body=content).seq
        lease = {"token": token, "owner": owner, "lease_until": until}
        writer.connection.execute(sa.update(tables.batches).where(tables.batches.c.batch == batch).values(lease))
        return _as_claim(_batch(writer.connection, batch))


def renew(ledger: Ledger, claim: Claim, *, lease_seconds: float = LEASE_SECONDS) -> Claim:
    """The same claim with a lease that runs from now; works as long as nobody has taken over.

    Raises:
        ClaimLostError: When someone has, or the batch is done or dissolved.
    """
    with ledger.writing(claim.owner) as writer:
        fenced(writer, claim, *_ACTIVE)
        until = moment(writer.now + timedelta(seconds=lease_seconds))
        table = tables.batches
        writer.connection.execute(sa.update(table).where(table.c.batch == claim.batch).values(lease_until=until))
        return _as_claim(_batch(writer.connection, claim.batch))


def expire(ledger: Ledger, batch: str, *, actor: str) -> str:
    """The owner whose lease of a batch ends now, so that the next run takes the batch over where it stopped.

    Safe while that owner lives: whatever it writes after the take-over is refused.

    Args:
        ledger: Which.
        batch: At work; its first 6 digits or more.
        actor: Who says that its process is dead.

    Raises:
        UsageError: When none or several batches at work begin so.
    """
    if not 6 <= len(batch) <= 64 or set(batch) - set("0123456789abcdef"):
        raise UsageError("a batch is named by 6 to 64 hexadecimal digits, as `requests status` shows them")
    table = tables.batches
    with ledger.writing(actor) as writer:
        query = sa.select(table.c.batch, table.c.owner).where(table.c.state.in_(_ACTIVE), table.c.batch >= batch)
        rows = writer.connection.execute(query.where(table.c.batch <= batch + "g").limit(2)).all()
        if len(rows) != 1:
            what = "several batches at work begin" if rows else "no batch at work begins"
            raise UsageError(f"{what} with {batch}: see `unlearn requests status`")
        past = moment(writer.now - timedelta(microseconds=1))
        writer.connection.execute(sa.update(table).where(table.c.batch == rows[0].batch).values(lease_until=past))
        return str(rows[0].owner)


def dissolve(ledger: Ledger, claim: Claim, reason: str) -> None:
    """Gives the batch's requests back, to wait for the next one; only before the point of no return."""
    with ledger.writing(claim.owner) as writer:
        fenced(writer, claim, CLAIMED)
        writer.append("dissolved", batch=claim.batch, body={"reason": reason[:256]})


def batch_members(ledger: Ledger, claim: Claim) -> list[str]:
    """The batch's requests, sorted, without those that have ended since.

    Raises:
        ClaimLostError: When the batch is no longer this process's.
    """
    table = tables.requests
    with ledger.reading() as connection:
        _check(connection, claim, _ACTIVE)
        query = sa.select(table.c.ref).where(table.c.batch == claim.batch, table.c.state.in_(_ACTIVE))
        return sorted(connection.execute(query).scalars())


def fenced(writer: Writer, claim: Claim, *states: str) -> Any:
    """The batch's row, when the claim still holds and the batch is in one of the states.

    Raises:
        ClaimLostError: Otherwise.
    """
    return _check(writer.connection, claim, states)


def _check(connection: sa.Connection, claim: Claim, states: tuple[str, ...]) -> Any:
    row = _batch(connection, claim.batch)
    if row.token != claim.token:
        raise ClaimLostError(
            f"batch {claim.batch[:12]} was taken over by {row.owner} (token {row.token}, yours {claim.token}): stop"
        )
    if row.state not in states:
        raise ClaimLostError(
            f"batch {claim.batch[:12]} is {row.state}, wanted {' or '.join(states)}: stop and claim again"
        )
    return row


def _batch(connection: sa.Connection, batch: str) -> Any:
    row = connection.execute(sa.select(tables.batches).where(tables.batches.c.batch == batch)).first()
    if row is None:
        raise ClaimLostError(f"there is no batch {batch[:12]}: claim again")
    return row


def _as_claim(row: Any) -> Claim:
    content = json.loads(row.content)
    return Claim(
        batch=row.batch,
        token=int(row.token),
        owner=row.owner,
        lease_until=row.lease_until,
        state=row.state,
        model=row.model,
        dataset=content["dataset"],
        kind=content["kind"],
        members=row.members,
        count=int(row.number),
        base=content["base"],
    )


def _worth_a_try(ledger: Ledger, model: str, owner: str, begin: bool) -> bool:
    """Whether anything waits or may be taken over; takes no turn."""
    with ledger.reading() as connection:
        if _expired(connection, moment(ledger.clock()), model, owner) is not None:
            return True
        return begin and _most_urgent(connection, model) is not None


def _expired(connection: sa.Connection, now: str, model: str, owner: str) -> Any:
    """A batch whose lease has run out, or one of the owner that was started again."""
    table = tables.batches
    free = table.c.lease_until < now
    query = sa.select(table).where(tables.ACTIVE, sa.or_(free, table.c.owner == owner) if owner else free)
    if model:
        query = query.where(table.c.model == model)
    return connection.execute(query.order_by(table.c.lease_until).limit(1)).first()


def _most_urgent(connection: sa.Connection, model: str) -> Any:
    table, batches = tables.requests, tables.batches
    busy = set(connection.execute(sa.select(batches.c.model).where(tables.ACTIVE)).scalars())
    query = sa.select(table.c.model, table.c.dataset, table.c.kind).where(table.c.state == PENDING)
    if model:
        if model in busy:
            return None
        query = query.where(table.c.model == model)
    elif busy:
        query = query.where(table.c.model.not_in(busy))
    return connection.execute(query.order_by(table.c.urgency, table.c.due_at, table.c.received_seq).limit(1)).first()


def _plan(
    connection: sa.Connection, now: str, model: str, limit: int, base: str, settings: Mapping[str, Any]
) -> Plan | None:
    first = _most_urgent(connection, model)
    if first is None:
        return None
    table = tables.requests
    alike = (
        table.c.state == PENDING,
        table.c.model == first.model,
        table.c.dataset == first.dataset,
        table.c.kind == first.kind,
    )
    query = sa.select(table.c.ref, table.c.target, table.c.due_at, table.c.urgency).where(*alike)
    if limit:
        query = query.order_by(table.c.urgency, table.c.due_at, table.c.received_seq).limit(limit)
    due: dict[str, str] = {}
    targets: set[bytes] = set()
    urgent = 0
    for row in connection.execute(query, execution_options={"yield_per": 10_000}):
        due[row.ref] = row.due_at
        targets.add(bytes.fromhex(row.target))
        urgent += row.urgency == 0
    if limit and len(due) == limit:
        for chunk in chunks(targets, 5000):
            wanted = [target.hex() for target in chunk]
            twins = sa.select(table.c.ref, table.c.due_at).where(*alike, table.c.target.in_(wanted))
            due |= {row.ref: row.due_at for row in connection.execute(twins)}
    refs = sorted(due)
    content = {
        "schema": SCHEMA,
        "model": first.model,
        "dataset": first.dataset,
        "kind": first.kind,
        "members": merkle.root_of_refs(refs),
        "count": len(refs),
        "base": base,
        "settings": dict(settings),
    }
    all_waiting = sa.select(sa.func.count()).select_from(table).where(table.c.state == PENDING)
    waiting = connection.execute(all_waiting.where(table.c.model == first.model)).scalar_one()
    return Plan(
        batch=digest_of(content),
        content=content,
        refs=refs,
        first_due=min(due.values()),
        overdue=sum(date < now for date in due.values()),
        twins=len(refs) - len(targets),
        waiting=int(waiting) - len(refs),
        urgent=urgent,
    )
