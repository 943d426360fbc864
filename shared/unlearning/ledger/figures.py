"""The figures over all requests, for monitors: whether someone must act, a page, and Prometheus text."""

from __future__ import annotations

from datetime import datetime, timedelta
from html import escape

from unlearning.ledger.events import time_of
from unlearning.ledger.overview import Status

WAITING = ("pending", "held", "claimed", "promoting")


def alarms(status: Status, now: datetime, *, cadence_days: float, budget_hours: float = 0.0) -> list[str]:
    """Why someone must act, a sentence each; empty when nothing is due.

    Args:
        status: The figures.
        now: The time.
        cadence_days: Days between two scheduled batches; after two of them without a settled batch, while requests
            wait, the scheduler is taken for dead.
        budget_hours: Hours that the batches of 30 days may take; 0: any. Somebody may be sending what makes them dear.
    """
    found = []
    if status.overdue:
        found.append(f"{status.overdue} requests are overdue: answer them today, the oldest first")
    if status.at_risk:
        found.append(f"{status.at_risk} requests are due within {status.days:g} days: run a batch now")
    if status.eroded:
        found.append(f"what was deleted before shows again in {', '.join(status.eroded)}: run a batch, it retrains")
    if 0 < budget_hours < status.batch_hours:
        found.append(
            f"batches took {status.batch_hours:g} hours in 30 days, the budget is {budget_hours:g}: "
            f"look which requests were dear ({status.turned_away} of {status.batches} tries were turned away)"
        )
    limit = now - timedelta(days=2 * cadence_days)
    quiet = not status.last_settled or time_of(status.last_settled) < limit
    if waiting(status) and quiet and status.oldest_days > 2 * cadence_days:
        last = status.last_settled or "never"
        found.append(f"no batch was settled in two cadences (the last: {last}): look whether the schedule runs")
    return found


def waiting(status: Status) -> int:
    """How many requests still wait for an answer."""
    return sum(status.counts[state] for state in WAITING)


def page(status: Status, why: list[str], at: str) -> str:
    """The figures as one HTML page without scripts or links.

    Args:
        status: The figures.
        why: From `alarms`.
        at: The time, for the heading.
    """
    numbers = {**status.counts, "overdue": status.overdue, f"due within {status.days:g} days": status.at_risk}
    times = {
        "oldest waits": f"{status.oldest_days:g} days",
        "next due": status.next_due[:10] or "nothing",
        "last batch settled": status.last_settled[:19] or "never",
        "asked to closed": f"{status.close_days_p50:g} days for half, {status.close_days_p95:g} for 95 of 100",
        "tries in 30 days": f"{status.batches}, {status.turned_away} turned away, {status.batch_hours:g} hours",
        "ledger": f"{status.seq} events, head {status.head}",
    }
    at_work = {f"at work on {one['model']}": f"{one['state']} by {one['owner']}" for one in status.active}
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>"
        for name, value in {**numbers, **times, **at_work}.items()
    )
    alarm = "".join(f"<p class=alarm>{escape(reason)}</p>" for reason in why) or "<p>Nobody needs to act.</p>"
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Deletion requests</title>'
        "<style>body{font-family:sans-serif;margin:2em}th{text-align:left;padding-right:2em}.alarm{color:#b00020}</style>"
        f"<h1>Deletion requests</h1><p>{escape(at)}</p>{alarm}<table>{rows}</table></html>\n"
    )


def prometheus(status: Status) -> str:
    """The figures in Prometheus' text form, each ending in a newline."""
    lines = ["# TYPE unlearning_requests gauge"]
    lines += [f'unlearning_requests{{state="{state}"}} {number}' for state, number in status.counts.items()]
    settled = time_of(status.last_settled).timestamp() if status.last_settled else 0.0
    for name, value in (
        ("overdue", status.overdue),
        ("at_risk", status.at_risk),
        ("extended", status.extended),
        ("oldest_days", status.oldest_days),
        ("batches_30_days", status.batches),
        ("batches_turned_away_30_days", status.turned_away),
        ("batch_hours_30_days", status.batch_hours),
        ("batch_hours_p95", status.batch_hours_p95),
        ("close_days_p50", status.close_days_p50),
        ("close_days_p95", status.close_days_p95),
        ("models_eroded", len(status.eroded)),
        ("batches_at_work", len(status.active)),
        ("last_settled_timestamp_seconds", round(settled)),
        ("ledger_events", status.seq),
    ):
        lines += [f"# TYPE unlearning_{name} gauge", f"unlearning_{name} {value}"]
    return "\n".join(lines) + "\n"
