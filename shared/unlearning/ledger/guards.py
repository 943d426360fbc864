"""What holds a request until people have looked at it: many at once, whole classes, too large a share; and a budget.

Nothing is ever dropped: what a guard holds waits with its clock running, says why, and goes on once enough roles have
approved it. What was approved is not held again by the same guard.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any

import sqlalchemy as sa

from unlearning.config import About, build
from unlearning.errors import UsageError
from unlearning.ledger import tables
from unlearning.ledger.events import HELD, moment
from unlearning.ledger.filing import Hold, row_of
from unlearning.ledger.requests import DeletionRequest
from unlearning.ledger.store import Ledger, Writer, chunks

WHOLE = ("class", "target", "period")
"""Kinds of request that mean whole groups of rows."""
APPROVALS, DAILY, SHARE = "approvals", "daily", "share"


@dataclass(frozen=True, slots=True, kw_only=True)
class Guards:
    """The bounds of an installation, from UNLEARN_GUARDS."""

    approvals: Annotated[int, About("roles that approve a request about classes, ranges or periods; 0: none")] = 0
    daily: Annotated[int, About("requests a day from one controller before the rest is held; 0: no limit")] = 0
    batch: Annotated[int, About("different requests that a batch waits for, unless one is nearly due; 0: none")] = 0
    share: Annotated[float, About("of the training rows, which one batch forgets without approval")] = 0.9
    hours: Annotated[float, About("hours of batches in 30 days before an alarm; 0: no budget")] = 0.0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if min(self.approvals, self.daily, self.batch) < 0 or not (math.isfinite(self.hours) and self.hours >= 0):
            raise ValueError("approvals, daily, batch and hours must be 0 or more")
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, got {self.share}")


def guards_from(text: str) -> Guards:
    """The bounds that a text sets, the others as they are by default.

    Args:
        text: Such as "approvals=2,daily=500,batch=5"; empty: the defaults.

    Raises:
        UsageError: For a bound that there is not, and for a value that it cannot have.

    Example:
        >>> guards_from("approvals=2,share=0.3").share
        0.3
    """
    given: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.partition("=")
        given[name.strip()] = value.strip()
    return build(Guards, given, what="UNLEARN_GUARDS")


def holds(ledger: Ledger, guards: Guards) -> Callable[[DeletionRequest], Hold | None]:
    """Why a new request is held, for `file_requests`; it counts, so one is made for each call.

    Args:
        ledger: Where the requests are filed.
        guards: The bounds.
    """
    came: dict[str, int] = {}

    def hold(request: DeletionRequest) -> Hold | None:
        if guards.daily:
            if request.controller not in came:
                came[request.controller] = _of_today(ledger, request.controller)
            came[request.controller] += 1
            if came[request.controller] > guards.daily:
                why = f"more than {guards.daily} requests in a day from this controller: look whether they are genuine"
                return Hold(why, DAILY, max(1, guards.approvals))
        if guards.approvals and request.kind in WHOLE:
            roles = "one role" if guards.approvals == 1 else f"{guards.approvals} roles"
            return Hold(f"requests of this kind are approved by {roles}", APPROVALS, guards.approvals)
        return None

    return hold


def approve(ledger: Ledger, ref: str, *, actor: str) -> int:
    """How many more roles must approve a held request; at 0 it goes on.

    Args:
        ledger: Which.
        ref: Held by a guard.
        actor: The role that approves it; not the one that filed it, and each role counts once.

    Raises:
        UsageError: When no guard holds it, or the role filed it.
    """
    with ledger.writing(actor) as writer:
        if row_of(writer, ref).state != HELD or (guard := held_by(writer.connection, ref)) is None:
            raise UsageError(f"request {ref[:12]} is not held by a guard: look at its state; `release` may be meant")
        events = tables.events
        filer = sa.select(events.c.actor).where(events.c.request == ref, events.c.kind == "received")
        if writer.connection.execute(filer).scalar() == actor:
            raise UsageError(f'"{actor}" filed request {ref[:12]} and cannot approve it: another role must')
        if actor not in (roles := _approvers(writer, ref, guard["seq"])):
            writer.append("approved", request=ref, body={"guard": guard["guard"]})
        left = max(0, int(guard["approvals"]) - len(roles | {actor}))
        if not left:
            writer.append("released", request=ref)
        return left


def held_by(connection: sa.Connection, ref: str) -> dict[str, Any] | None:
    """The guard that a request was last held by, how many approvals it wants, and its event's `seq`; None: no guard."""
    events = tables.events
    query = sa.select(events).where(events.c.request == ref, events.c.kind.in_(("held", "released")))
    last = connection.execute(query.order_by(events.c.seq.desc()).limit(1)).first()
    if last is None or last.kind != "held":
        return None
    body: Mapping[str, Any] = json.loads(last.body)
    if not body.get("guard"):
        return None
    return {"guard": body["guard"], "approvals": body["approvals"], "seq": int(last.seq)}


def cleared(ledger: Ledger, refs: Iterable[str], guard: str) -> set[str]:
    """Those of some requests that were approved after a guard had held them.

    Args:
        ledger: Which.
        refs: The requests.
        guard: Its name.
    """
    events, found = tables.events, set[str]()
    with ledger.reading() as connection:
        for part in chunks(sorted(refs), 5000):
            query = sa.select(events.c.request, events.c.body).where(events.c.request.in_(part))
            for row in connection.execute(query.where(events.c.kind == "approved")):
                if f'"guard":"{guard}"' in row.body:
                    found.add(row.request)
    return found


def too_few(ledger: Ledger, model: str, guards: Guards, *, days: float) -> int:
    """How many requests about a model wait together while more are to come; 0 when they are served now.

    Few requests at a time cost a batch each, and tell whoever sees both models much about the few. So a batch waits for
    enough of them, but not past the time at which one of them must be served, nor for one that goes first.

    Args:
        ledger: Which.
        model: The registered model.
        guards: The bounds.
        days: A request that is due within so many days is served whatever their number.
    """
    if guards.batch < 2:
        return 0
    from unlearning.ledger.claims import plan
    from unlearning.ledger.ladder import rung_of

    planned = plan(ledger, model=model)
    if planned is None or planned.urgent or rung_of(ledger, model):
        return 0
    soon = moment(ledger.clock() + timedelta(days=days))
    different = len(planned.refs) - planned.twins
    return different if different < guards.batch and planned.first_due > soon else 0


def _approvers(writer: Writer, ref: str, since: int) -> set[str]:
    events = tables.events
    query = sa.select(events.c.actor).where(events.c.request == ref, events.c.kind == "approved", events.c.seq > since)
    return set(writer.connection.execute(query).scalars())


def _of_today(ledger: Ledger, controller: str) -> int:
    table = tables.requests
    since = moment(ledger.clock() - timedelta(days=1))
    query = sa.select(sa.func.count()).select_from(table)
    query = query.where(table.c.controller == controller, table.c.received_at >= since)
    with ledger.reading() as connection:
        return int(connection.execute(query).scalar_one())
