"""What a batch tries after a gate said no: stronger settings, another method, half of the batch, a full retrain.

Each try that failed is an event; the next claim reads from them which rung the requests have reached. Requests whose
due date is near skip to the last rung. When that fails too they are held for a person: nothing is ever dropped.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import sqlalchemy as sa

from unlearning.errors import UsageError
from unlearning.ledger import tables
from unlearning.ledger.claims import LEASE_SECONDS, Claim, Plan, claim, fenced, plan
from unlearning.ledger.events import CLAIMED, PENDING, PROMOTING, canonical, moment
from unlearning.ledger.filing import Hold, checked_reason
from unlearning.ledger.promotion import standing
from unlearning.ledger.store import Ledger

Step = Literal["first", "stronger", "other_method", "bisect", "retrain"]

LADDER: tuple[Step, ...] = ("first", "stronger", "other_method", "bisect", "retrain")
RESERVE_DAYS = 7.0
"""A batch that failed once and is due within so many days goes to the last rung at once."""
_MOST_REASONS = 20


@dataclass(frozen=True)
class Try:
    """A claimed batch and how it is to be unlearned.

    Attributes:
        claim: The batch.
        rung: 0 for requests that no gate has turned away yet.
        step: What that rung stands for.
    """

    claim: Claim
    rung: int
    step: Step


def claim_next(
    ledger: Ledger,
    *,
    owner: str,
    model: str = "",
    limit: int = 0,
    base: str = "",
    settings: Mapping[str, Any] | None = None,
    ladder: Sequence[Step] = LADDER,
    reserve_days: float = RESERVE_DAYS,
    cadence_days: float = 0.0,
    reset_every: int = 0,
    lease_seconds: float = LEASE_SECONDS,
    resume: bool = False,
    begin: bool = True,
) -> Try | None:
    """The next batch with its rung; None, quickly, when nothing waits. The arguments are those of `claims.claim`.

    Args:
        ledger: Which.
        owner: As for `claim`.
        model: As for `claim`.
        limit: As for `claim`.
        base: As for `claim`.
        settings: As for `claim`; the rung and its step are added.
        ladder: The steps in their order.
        reserve_days: As `RESERVE_DAYS`.
        cadence_days: Days until the next run. A batch that is due before that has this one try alone: the last rung.
        reset_every: After so many batches without one, a batch goes to the last rung, whatever else; 0: never. So does
            one that follows on a model in which earlier deletions were seen to come back.
        lease_seconds: As for `claim`.
        resume: As for `claim`.
        begin: As for `claim`.
    """
    if not ladder:
        raise UsageError("a ladder has one step or more")
    planned, rung = plan(ledger, model=model, limit=limit, base=base), 0
    if planned is not None:
        rung = next_rung(
            ledger,
            planned,
            ladder=ladder,
            reserve_days=reserve_days,
            cadence_days=cadence_days,
            reset_every=reset_every,
        )
        if ladder[rung] == "bisect":
            limit = (len(planned.refs) + 1) // 2
    how = {**(settings or {}), "rung": rung, "step": ladder[rung]}
    held = claim(
        ledger,
        owner=owner,
        model=model,
        limit=limit,
        base=base,
        settings=how,
        lease_seconds=lease_seconds,
        resume=resume,
        begin=begin,
    )
    if held is None:
        return None
    settled = settings_of(ledger, held)  # those of the batch that was taken over, if it was one
    return Try(held, int(settled["rung"]), settled["step"])


def next_rung(
    ledger: Ledger,
    planned: Plan,
    *,
    ladder: Sequence[Step] = LADDER,
    reserve_days: float = RESERVE_DAYS,
    cadence_days: float = 0.0,
    reset_every: int = 0,
) -> int:
    """The place in the ladder at which a planned batch is tried; the arguments are those of `claim_next`.

    Args:
        ledger: Which.
        planned: From `claims.plan`.
        ladder: As for `claim_next`.
        reserve_days: As for `claim_next`.
        cadence_days: As for `claim_next`.
        reset_every: As for `claim_next`.
    """
    rung = min(rung_of(ledger, planned.content["model"]), len(ladder) - 1)
    days = max(reserve_days, cadence_days) if rung else cadence_days
    if days and planned.first_due <= moment(ledger.clock() + timedelta(days=days)):
        return len(ladder) - 1
    known = standing(ledger, planned.content["model"])
    if known.eroded or 0 < reset_every <= known.approximate:
        return len(ladder) - 1
    return rung


def settings_of(ledger: Ledger, claim: Claim) -> dict[str, Any]:
    """The settings that are part of a batch's content."""
    with ledger.reading() as connection:
        query = sa.select(tables.batches.c.content).where(tables.batches.c.batch == claim.batch)
        content = json.loads(str(connection.execute(query).scalar_one()))
    settings: dict[str, Any] = {"rung": 0, "step": "first", **content["settings"]}
    return settings


def rung_of(ledger: Ledger, model: str) -> int:
    """The rung that the pending requests about a model have reached: one above the highest that one of them failed."""
    table, members, events, batches = tables.requests, tables.members, tables.events, tables.batches
    waiting = (table.c.state == PENDING, table.c.model == model)
    gated = sa.select(events.c.body).join(batches, batches.c.batch == events.c.batch)
    gated = gated.where(sa.text("events.kind = 'gated'"), batches.c.model == model)  # as the index has it
    with ledger.reading() as connection:
        oldest = connection.execute(sa.select(sa.func.min(table.c.received_seq)).where(*waiting)).scalar()
        if oldest is None:
            return 0
        bodies = connection.execute(gated.where(events.c.seq > oldest)).scalars()
        for content in sorted(map(json.loads, bodies), key=lambda body: -int(body["rung"])):
            inside = sa.select(members.c.ref).where(members.c.root == content["members"])
            if connection.execute(sa.select(table.c.ref).where(*waiting, table.c.ref.in_(inside)).limit(1)).first():
                return int(content["rung"]) + 1
    return 0


def turn_away(
    ledger: Ledger, claim: Claim, *, outcome: str, reasons: Sequence[str], ladder: Sequence[Step] = LADDER
) -> str:
    """The next step, after a gate said no: the requests wait for it; after the last they are held, and it is "".

    Args:
        ledger: Which.
        claim: Before the point of no return.
        outcome: The gate's: "fail" or "inconclusive".
        reasons: Why, a sentence each; without ids.
        ladder: The steps in their order.

    Raises:
        ClaimLostError: When the batch is no longer this process's.
    """
    settings = settings_of(ledger, claim)
    rung = int(settings["rung"])
    following = ladder[rung + 1] if rung + 1 < len(ladder) else ""
    body = {
        "outcome": outcome,
        "reasons": [reason[:256] for reason in reasons[:_MOST_REASONS]],
        "rung": rung,
        "step": settings["step"],
        "next": following,
        "members": claim.members,
    }
    with ledger.writing(claim.owner) as writer:
        fenced(writer, claim, CLAIMED)
        table = tables.requests
        query = sa.select(table.c.ref).where(table.c.batch == claim.batch, table.c.state == CLAIMED)
        inside = list(writer.connection.execute(query).scalars())
        writer.append("gated", batch=claim.batch, body=body)
        writer.append("dissolved", batch=claim.batch, body={"reason": f"a gate said {outcome}"})
        if not following and inside:
            reason = checked_reason(f"every rung failed, the last was {settings['step']}: decide what to do")
            writer.append("held", members=inside, body={"reason": reason})
    return following


def retested(ledger: Ledger, claim: Claim, digest: str, measures: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why a batch's model may not serve, a sentence each: what earlier batches deleted shows in it; empty when nothing.

    All that was measured is one event, and what came back an alarm, which sends the next batches to the last rung until
    a model was trained again. Repeating it changes nothing.

    Args:
        ledger: Which.
        claim: Before the point of no return.
        digest: The model that was measured.
        measures: Of each: metric, value, standard_error, low, high, outcome and reason.

    Raises:
        ClaimLostError: When the batch is no longer this process's.
    """
    back = [str(one["reason"])[:256] for one in measures if one["outcome"] == "fail"]
    names = ("metric", "value", "standard_error", "low", "high", "outcome")
    figures = [{name: one[name] for name in names} for one in measures]
    body = {"model": claim.model, "digest": digest, "measures": figures}
    with ledger.writing(claim.owner) as writer:
        row = fenced(writer, claim, CLAIMED, PROMOTING)
        events = tables.events
        before = sa.select(events.c.body).where(events.c.batch == claim.batch, events.c.kind == "retested")
        if (
            measures
            and row.state == CLAIMED
            and canonical(body) not in writer.connection.execute(before).scalars().all()
        ):
            writer.append("retested", batch=claim.batch, body=body)
            if back:
                writer.append(
                    "eroded", batch=claim.batch, body={"model": claim.model, "digest": digest, "reasons": back}
                )
    return back


def set_aside(ledger: Ledger, claim: Claim, why: str | Hold, refs: Collection[str] | None = None) -> None:
    """Holds a batch's requests for a person: they cannot be served together as they are.

    Args:
        ledger: Which.
        claim: Before the point of no return.
        why: One line, without ids; or the guard that holds them.
        refs: Those that are held; all of them when left out, the others wait again.

    Raises:
        ClaimLostError: When the batch is no longer this process's.
    """
    hold = why if isinstance(why, Hold) else Hold(why)
    with ledger.writing(claim.owner) as writer:
        fenced(writer, claim, CLAIMED)
        table = tables.requests
        query = sa.select(table.c.ref).where(table.c.batch == claim.batch, table.c.state == CLAIMED)
        inside = [ref for ref in writer.connection.execute(query).scalars() if refs is None or ref in refs]
        writer.append("dissolved", batch=claim.batch, body={"reason": "set aside for a person"})
        if hold.guard:
            for ref in inside:
                writer.append("held", request=ref, body=hold.body())
        elif inside:
            writer.append("held", members=inside, body=hold.body())
