"""What there is: requests one by one, and the figures over all of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from unlearning.errors import UsageError
from unlearning.ledger import tables
from unlearning.ledger.events import (
    CLAIMED,
    DISSOLVED,
    ENDED,
    PENDING,
    PROMOTING,
    SETTLED,
    STATES,
    Event,
    moment,
    time_of,
)
from unlearning.ledger.store import Ledger, chunks

ACTIVE = (CLAIMED, PROMOTING)
_WAITING = ("pending", "held", "claimed", "promoting")
_PAGE = 2000
SPAN = timedelta(days=30)
"""How far the figures about batches look back."""
_MOST_TIMES = 100_000


@dataclass(frozen=True)
class Status:
    """The figures over all requests.

    Attributes:
        counts: Requests in each state, all states named.
        overdue: Requests that wait and are past their due date.
        at_risk: Requests that wait, not overdue, and are due within `days`.
        days: Of `at_risk`.
        oldest_days: Age of the oldest request that waits, from the person's asking; 0 when none waits.
        next_due: The earliest due date of those that wait, or "".
        models: Requests that wait, by model.
        extended: Requests whose time was extended.
        active: Batches at work: batch, model, state, owner and lease_until of each.
        last_settled: When a batch was last settled, or "".
        eroded: Models in which earlier deletions were found to come back, until one is trained again.
        batches: Tries that ended in the last 30 days, those that a gate turned away too.
        turned_away: How many of them a gate turned away.
        batch_hours: Hours that all of them took together, from claim to end.
        batch_hours_p95: Hours within which 95 of 100 of them ended.
        close_days_p50: Days within which half of the requests that closed in the last 30 days did, from the asking.
        close_days_p95: Likewise 95 of 100.
        seq: Number of the last event.
        head: Its digest.
    """

    counts: dict[str, int]
    overdue: int
    at_risk: int
    days: float
    oldest_days: float
    next_due: str
    models: dict[str, int]
    extended: int
    active: list[dict[str, str]] = field(default_factory=list)
    last_settled: str = ""
    eroded: list[str] = field(default_factory=list)
    batches: int = 0
    turned_away: int = 0
    batch_hours: float = 0.0
    batch_hours_p95: float = 0.0
    close_days_p50: float = 0.0
    close_days_p95: float = 0.0
    seq: int = 0
    head: str = ""


def status(ledger: Ledger, *, days: float = 7) -> Status:
    """The figures over all requests.

    Args:
        ledger: Which.
        days: A request that waits and is due within so many days, and the time that a batch takes, is at risk.
    """
    now, table = ledger.clock(), tables.requests
    waiting = table.c.state.in_(_WAITING)
    since = now - SPAN
    with ledger.reading() as connection:
        hours, turned_away = _tries(connection, moment(since))
        took = _closed(connection, moment(since))
    longest = _share_below(hours, 0.95)
    days = round(days + longest / 24, 2)
    soon = moment(now + timedelta(days=days))
    with ledger.reading() as connection:
        groups = connection.execute(
            sa.select(
                table.c.state,
                table.c.model,
                sa.func.count().label("number"),
                sa.func.count().filter(table.c.due_at < moment(now)).label("overdue"),
                sa.func.count().filter(table.c.due_at < soon).label("soon"),
                sa.func.min(table.c.submitted_at).label("oldest"),
                sa.func.min(table.c.due_at).label("due"),
            ).group_by(table.c.state, table.c.model)
        ).all()
        extended = connection.execute(
            sa.select(sa.func.count()).select_from(table).where(table.c.extended.is_(True), waiting)
        ).scalar_one()
        active = connection.execute(sa.select(tables.batches).where(tables.ACTIVE).order_by("model")).all()
        settled = connection.execute(
            sa.select(sa.func.max(tables.batches.c.changed_at)).where(tables.batches.c.state == "settled")
        ).scalar()
        serving = tables.serving
        eroded = connection.execute(sa.select(serving.c.model).where(serving.c.eroded).order_by(serving.c.model))
        back = list(eroded.scalars())
        head = connection.execute(sa.select(tables.head)).one()
    wait = [row for row in groups if row.state in _WAITING]
    models: dict[str, int] = {}
    for row in wait:
        models[row.model] = models.get(row.model, 0) + row.number
    overdue = sum(row.overdue for row in wait)
    oldest = min((row.oldest for row in wait), default="")
    return Status(
        counts={state: sum(row.number for row in groups if row.state == state) for state in STATES},
        overdue=overdue,
        at_risk=sum(row.soon for row in wait) - overdue,
        days=days,
        oldest_days=round((now - time_of(oldest)).total_seconds() / 86400, 2) if oldest else 0.0,
        next_due=min((row.due for row in wait), default=""),
        models=dict(sorted(models.items())),
        extended=int(extended),
        active=[
            {name: str(getattr(row, name)) for name in ("batch", "model", "state", "owner", "lease_until")}
            for row in active
        ],
        last_settled=settled or "",
        eroded=back,
        batches=len(hours),
        turned_away=turned_away,
        batch_hours=round(sum(hours), 3),
        batch_hours_p95=round(longest, 3),
        close_days_p50=round(_share_below(took, 0.5), 2),
        close_days_p95=round(_share_below(took, 0.95), 2),
        seq=int(head.seq),
        head=str(head.hash),
    )


def _tries(connection: sa.Connection, since: str) -> tuple[list[float], int]:
    """Hours that each try took that ended since, sorted, and how many of them a gate turned away."""
    batches, events = tables.batches, tables.events
    ended = sa.select(batches.c.batch).where(batches.c.state.in_((SETTLED, DISSOLVED)), batches.c.changed_at >= since)
    hours, begun, turned_away = list[float](), dict[str, str](), 0
    for part in chunks(list(connection.execute(ended).scalars()), 5000):
        kinds = ("claimed", "gated", "settled", "dissolved", "withdrawn")
        query = sa.select(events.c.batch, events.c.kind, events.c.at)
        query = query.where(events.c.batch.in_(part), events.c.kind.in_(kinds)).order_by(events.c.seq)
        for row in connection.execute(query):
            if row.kind == "claimed":
                begun[row.batch] = row.at
            elif row.at < since:
                begun.pop(row.batch, None)
            elif row.kind == "gated":
                turned_away += 1
            elif start := begun.pop(row.batch, ""):
                hours.append(max(0.0, (time_of(row.at) - time_of(start)).total_seconds() / 3600))
    return sorted(hours), turned_away


def _closed(connection: sa.Connection, since: str) -> list[float]:
    """Days from asking to closing of the requests that closed since, sorted; of a hundred thousand at most."""
    table = tables.requests
    query = sa.select(table.c.submitted_at, table.c.changed_at).where(
        table.c.state == "closed", table.c.purged.is_(False), table.c.changed_at >= since
    )
    rows = connection.execute(query.limit(_MOST_TIMES)).all()
    return sorted((time_of(row.changed_at) - time_of(row.submitted_at)).total_seconds() / 86400 for row in rows)


def _share_below(values: list[float], share: float) -> float:
    """The smallest of some sorted values that this share of them does not exceed; 0 without any."""
    return values[max(0, math.ceil(share * len(values)) - 1)] if values else 0.0


def list_requests(
    ledger: Ledger, *, state: str = "", model: str = "", controller: str = "", limit: int = 0
) -> Iterator[dict[str, Any]]:
    """Requests as plain mappings, in the order of their arrival; no ids.

    Args:
        ledger: Which.
        state: Only those in this state; "" for all.
        model: Only those about this model.
        controller: Only those from this controller.
        limit: At most so many; 0 for all.
    """
    if state and state not in STATES:
        raise UsageError(f'no request is ever "{state[:40]}": the states are {", ".join(STATES)}')
    table, after, left = tables.requests, 0, limit
    while True:
        query = sa.select(table).where(table.c.received_seq > after).order_by(table.c.received_seq)
        for column, wanted in ((table.c.state, state), (table.c.model, model), (table.c.controller, controller)):
            if wanted:
                query = query.where(column == wanted)
        with ledger.reading() as connection:
            rows = connection.execute(query.limit(min(left, _PAGE) if limit else _PAGE)).mappings().all()
        for row in rows:
            yield dict(row)
        left -= len(rows)
        if not rows or (limit and not left):
            return
        after = rows[-1]["received_seq"]


def waits(ledger: Ledger, model: str) -> bool:
    """Whether a batch is at work on a model, or requests about it wait for one."""
    table = tables.requests
    query = sa.select(sa.literal(1)).where(table.c.state.in_((PENDING, *ACTIVE)), table.c.model == model).limit(1)
    with ledger.reading() as connection:
        return connection.execute(query).first() is not None


def changed_since(ledger: Ledger, seq: int, model: str, *, limit: int = 0) -> Iterator[dict[str, Any]]:
    """The requests about a model to which something happened, as plain mappings; no ids.

    Args:
        ledger: Which.
        seq: Number of the last event that does not count.
        model: Registered model.
        limit: At most so many; 0 for all.
    """
    table = tables.requests
    query = sa.select(table).where(table.c.model == model, table.c.changed_seq > seq).order_by(table.c.received_seq)
    with ledger.reading() as connection:
        for row in connection.execute(query.limit(limit) if limit else query).mappings():
            yield dict(row)


def find(ledger: Ledger, ref: str) -> dict[str, Any]:
    """One request by its name, or the beginning of it where that is clear; with `history`, its events in order.

    Raises:
        UsageError: When none or several begin so.
    """
    table = tables.requests
    if not 6 <= len(ref) <= 64 or set(ref) - set("0123456789abcdef"):
        raise UsageError("a request is named by 6 to 64 hexadecimal digits, as the list shows them")
    with ledger.reading() as connection:
        query = sa.select(table).where(table.c.ref >= ref, table.c.ref <= ref + "g").limit(2)
        rows = connection.execute(query).mappings().all()
    if len(rows) != 1:
        raise UsageError(f"{'several requests begin' if rows else 'no request begins'} with {ref}: see the list")
    return {**rows[0], "history": list(history(ledger, rows[0]["ref"]))}


def history(ledger: Ledger, ref: str) -> Iterator[Event]:
    """The events of one request, in order: its own, and those of lists and batches that it was in."""
    events, members, batches = tables.events, tables.members, tables.batches
    roots = sa.select(members.c.root).where(members.c.ref == ref)
    spells = sa.select(batches.c.batch).where(batches.c.members.in_(roots))
    query = sa.select(events).where(
        sa.or_(events.c.request == ref, events.c.members.in_(roots), events.c.batch.in_(spells))
    )
    with ledger.reading() as connection:
        rows = connection.execute(query.order_by(events.c.seq)).all()
    yield from (Event(*row) for row in rows)


def is_ended(state: str) -> bool:
    """Whether nothing more happens to a request in this state, but the removal of its ids."""
    return state in ENDED
