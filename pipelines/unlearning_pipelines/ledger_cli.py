"""What people type about deletion requests and the ledger. Nothing here loads torch or kfp."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from unlearning.ledger.filing import Filed
    from unlearning.ledger.guards import Guards
    from unlearning.ledger.overview import Status
    from unlearning.ledger.store import Ledger

requests = typer.Typer(help="Deletion requests: file them, look at them, change their course.", no_args_is_help=True)
ledger = typer.Typer(help="The record of all requests: check it, seal it, see what is next.", no_args_is_help=True)

ACT = 3
"""Exit code when someone must act: requests at risk or overdue, excluded rows found."""
DESK = "desk"

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
Ref = Annotated[str, typer.Argument(help="The request, as the list names it; its first 6 digits or more.")]
Reason = Annotated[str, typer.Argument(help="One line, without ids or names of people.")]
By = Annotated[str, typer.Option("--by", help="The role that does it, never a person's name.")]


@requests.command()
def add(
    key: Annotated[str, typer.Option(help="The controller's own name of the request; the same twice is the same.")],
    id_: Annotated[list[str], typer.Option("--id", help="A class, an id, a range or a period; repeat for more.")],
    model: Annotated[str, typer.Option(help="The registered model that is to forget.")],
    kind: Annotated[str, typer.Option(help="class, subject, sample, target (0:80) or period (2017-03).")] = "subject",
    controller: Annotated[str, typer.Option(help="Who asks on behalf of the person.")] = "desk",
    dataset: Annotated[str, typer.Option(help='Name of the data set, or "*".')] = "*",
    regulation: Annotated[str, typer.Option(help="gdpr, uk_gdpr, ccpa, other or internal.")] = "gdpr",
    submitted: Annotated[str, typer.Option(help="When the person asked: 2026-11-21T09:30:00Z; now if left out.")] = "",
    expedite: Annotated[bool, typer.Option(help="Goes first.")] = False,
    by: By = DESK,
    as_json: Json = False,
) -> None:
    """File one request."""
    more = {"controller": controller, "dataset": dataset, "regulation": regulation, "submitted_at": submitted}
    more["priority"] = "expedite" if expedite else "normal"
    filed, due = file_one(key=key, id_=id_, model=model, kind=kind, by=by, **more)
    typer.echo(f"{filed.status} as {filed.ref[:12]}, due {due[:10]}")
    with opened() as found:
        row = _rows(found, filed.ref)[0]
    if row["state"] == "held":
        typer.echo(f"held: {row['reason']}")
    last_line({**asdict(filed), "due_at": due, "state": row["state"]}, as_json)


def file_one(
    *, key: str, id_: list[str], model: str, kind: str, by: str = DESK, submitted_at: str = "", **more: str
) -> tuple[Filed, str]:
    """What became of a request, and its due date.

    Args:
        key: The controller's own name of it.
        id_: Classes, ids, ranges or periods.
        model: The registered model.
        kind: What the ids are of.
        by: The role that files it.
        submitted_at: When the person asked; now when empty.
        **more: Further fields of a request, by name.

    Raises:
        UsageError: When it cannot be filed, with the reason.
    """
    from unlearning.errors import DataError, UsageError
    from unlearning.ledger.events import moment
    from unlearning.ledger.filing import file_requests
    from unlearning.ledger.guards import holds
    from unlearning.ledger.requests import request_from

    with opened(make=True) as found:
        values = {"key": key, "ids": id_, "model": model, "kind": kind, "controller": "desk", **more}
        values["submitted_at"] = submitted_at or moment(found.clock())
        try:
            request = request_from(values)
        except DataError as error:
            raise UsageError(str(error)) from error
        (filed,) = file_requests(found, [request], actor=by, hold=holds(found, guards()))
        if filed.reason:
            raise UsageError(f"the request was not filed: {filed.reason}")
        return filed, str(next(iter(_rows(found, filed.ref)))["due_at"])


@requests.command(name="import")
def import_(
    path: Annotated[Path, typer.Argument(help="A .jsonl, .csv or .parquet file.")],
    model: Annotated[str, typer.Option(help="For rows that name none.")] = "",
    controller: Annotated[str, typer.Option(help="For rows that name none.")] = "",
    regulation: Annotated[str, typer.Option(help="For rows that name none.")] = "",
    rejects: Annotated[Path | None, typer.Option(help="Where to write every rejected row's line and reason.")] = None,
    strict: Annotated[bool, typer.Option(help="End with 1 when any row was rejected.")] = False,
    by: By = "intake",
    as_json: Json = False,
) -> None:
    """File every good row of a file, and say why the others are not."""
    from unlearning.ledger.guards import holds
    from unlearning.ledger.intake import import_file

    given = {"model": model, "controller": controller, "regulation": regulation}
    with opened(make=True) as found:
        defaults = {name: value for name, value in given.items() if value}
        hold = holds(found, guards())
        report = import_file(found, path, actor=by, defaults=defaults, rejects=rejects, hold=hold)
    typer.echo(
        f"{report.accepted} accepted, {report.repeated} filed before, {report.twins} twins, "
        f"{report.rejected} rejected ({report.conflicts} conflicts)"
    )
    for line, reason in report.rejects[:20]:
        typer.echo(f"  line {line}: {reason}")
    last_line(asdict(report), as_json)
    if strict and report.rejected:
        raise typer.Exit(1)


@requests.command()
def intake(by: By = "intake", as_json: Json = False) -> None:
    """Import what was dropped under requests/inbox/ in the object store; every batch begins with it, too."""
    from unlearning.ledger.guards import holds
    from unlearning.ledger.inbox import take_in, totals

    with opened(make=True) as found:
        drops = take_in(found, the_store(), actor=by, hold=holds(found, guards()))
    typer.echo(totals(drops))
    for one in drops:
        if one.refused or one.rejected:
            moved = f"; it lies at {one.moved} now" if one.moved else ""
            typer.echo(f"  {one.report}: {one.refused or f'{one.rejected} rejected'}{moved}")
    last_line({"files": [asdict(one) for one in drops]}, as_json)


@requests.command(name="list")
def list_(
    state: Annotated[str, typer.Option(help="Only those in this state.")] = "",
    model: Annotated[str, typer.Option(help="Only those about this model.")] = "",
    limit: Annotated[int, typer.Option(help="At most so many; 0 for all.", min=0)] = 50,
    as_json: Json = False,
) -> None:
    """List requests in the order of their arrival, without ids."""
    from unlearning.ledger.overview import list_requests

    with opened() as found:
        rows = list(list_requests(found, state=state, model=model, limit=limit))
    for row in rows:
        why = row["outcome"] or row["reason"]
        typer.echo(f"{row['ref'][:12]}  {row['state']:9}  due {row['due_at'][:10]}  {row['model']}  {why}".rstrip())
    last_line({"requests": rows}, as_json)


@requests.command()
def status(
    ref: Annotated[str, typer.Argument(help="A request, to see what happened to it; all figures when left out.")] = "",
    cadence_days: Annotated[float, typer.Option(help="Days between two scheduled batches.", min=0.01)] = 7.0,
    prometheus: Annotated[bool, typer.Option(help="Print Prometheus text instead.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page of it to this file, too.")] = None,
    as_json: Json = False,
) -> None:
    """Show how many requests wait and which are due; ends with 3 when someone must act."""
    from unlearning.ledger.figures import alarms, page
    from unlearning.ledger.figures import prometheus as as_prometheus
    from unlearning.ledger.overview import find
    from unlearning.ledger.overview import status as figures

    with opened() as found:
        if ref:
            _show(find(found, ref), as_json)
            return
        now = figures(found, days=2 * cadence_days)
        budget = guards().hours
        why = [*alarms(now, found.clock(), cadence_days=cadence_days, budget_hours=budget), *_refused()]
    if html is not None:
        html.write_text(page(now, why, f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"))
    if prometheus:
        typer.echo(as_prometheus(now), nl=False)
    else:
        _table(now, why)
    last_line({**asdict(now), "alarms": why}, as_json)
    if why:
        raise typer.Exit(ACT)


@requests.command()
def hold(ref: Ref, reason: Reason, by: By = DESK) -> None:
    """Keep a request out of batches; its clock runs on."""
    from unlearning.ledger import filing

    with opened() as found:
        filing.hold(found, whole(found, ref), reason, actor=by)
    typer.echo(f"held {ref[:12]}")


@requests.command()
def release(ref: Ref, by: By = DESK) -> None:
    """Let a held request into batches again."""
    from unlearning.ledger import filing

    with opened() as found:
        filing.release(found, whole(found, ref), actor=by)
    typer.echo(f"released {ref[:12]}")


@requests.command()
def approve(
    refs: Annotated[list[str], typer.Argument(help="Requests that a guard holds, each by its first 6 digits or more.")],
    by: Annotated[str, typer.Option("--by", help="The role that approves: not the one that filed them.")],
) -> None:
    """Approve requests that a guard holds; each goes on once enough roles have approved it."""
    from unlearning.ledger.guards import approve as approve_one

    with opened() as found:
        for ref in refs:
            left = approve_one(found, whole(found, ref), actor=by)
            more = f"{left} more {'role' if left == 1 else 'roles'} must" if left else "it waits for the next batch"
            typer.echo(f"approved {ref[:12]} by {by}: {more}")


@requests.command()
def extend(ref: Ref, reason: Reason, by: By = DESK) -> None:
    """Move a due date once, as far as its regulation allows; the person must be told why."""
    from unlearning.ledger import filing

    with opened() as found:
        due = filing.extend(found, whole(found, ref), reason, actor=by)
    typer.echo(f"extended {ref[:12]}: due {due[:10]}; tell the person now")


@requests.command()
def cancel(ref: Ref, reason: Reason, by: By = DESK) -> None:
    """End a request that the person took back, before its batch is promoted."""
    from unlearning.ledger import filing

    with opened() as found:
        filing.cancel(found, whole(found, ref), reason, actor=by)
    typer.echo(f"cancelled {ref[:12]}")


@requests.command()
def deny(ref: Ref, reason: Reason, by: By = DESK) -> None:
    """End a request for a reason that the person is told, before its batch is promoted."""
    from unlearning.ledger import filing

    with opened() as found:
        filing.deny(found, whole(found, ref), reason, actor=by)
    typer.echo(f"denied {ref[:12]}; tell the person why")


@requests.command()
def purge(
    keep_days: Annotated[float, typer.Option(help="How long ids stay after the end.", min=0)] = 30.0,
    by: By = "cleaner",
) -> None:
    """Remove the ids of requests that ended long enough ago, all versions of them."""
    typer.echo(f"removed the ids of {purge_due(keep_days=keep_days, by=by)} requests")


@ledger.command()
def upgrade() -> None:
    """Lay the ledger's database out, or bring it to this version's layout."""
    with opened(make=True, any_layout=True) as found:
        typer.echo(f"layout {found.upgrade()}")


@ledger.command()
def verify(as_json: Json = False) -> None:
    """Check the chain, every row that follows from it, and the sealed copies."""
    from unlearning.ledger.segments import verify_sealed
    from unlearning.ledger.verification import verify as verify_rows

    with opened() as found:
        findings = [*verify_rows(found), *verify_sealed(found, the_store())]
        seq, head = found.head()
    for finding in findings:
        typer.echo(f"FAIL {finding}")
    typer.echo(f"{seq} events, head {head}: {f'{len(findings)} findings' if findings else 'everything holds'}")
    last_line({"ok": not findings, "events": seq, "head": head, "findings": findings}, as_json)
    if findings:
        raise typer.Exit(1)


@ledger.command()
def seal(as_json: Json = False) -> None:
    """Copy all events to the object store, where nobody replaces them, and print the head to publish."""
    from unlearning.ledger.segments import seal as seal_events

    with opened() as found:
        count = seal_events(found, the_store())
        head = next(iter(found.events(count - 1, count))).hash if count else found.head()[1]
    typer.echo(f"{count} events are sealed; publish this head where nobody can change it: {head}")
    last_line({"events": count, "head": head}, as_json)


@ledger.command()
def plan(
    model: Annotated[str, typer.Option(help="Only requests about this model.")] = "",
    limit: Annotated[int, typer.Option(help="At most so many; 0 for all.", min=0)] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Look its rows up, too: shares, gates, guards, time, what it would write.")
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="With --dry-run, a parameter of deletion_batch; repeat for more.", metavar="K=V"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the batch that a run would claim now; writes nothing."""
    if dry_run:
        _dry_run(model, limit, set_ or [], as_json)
        return
    from unlearning.ledger.claims import plan as next_batch
    from unlearning.ledger.ladder import LADDER, rung_of

    with opened() as found:
        planned = next_batch(found, model=model, limit=limit)
        rung = rung_of(found, planned.content["model"]) if planned else 0
    if planned is None:
        typer.echo("nothing waits that is not at work already")
        last_line({"requests": 0}, as_json)
        return
    content = planned.content
    step = LADDER[min(rung, len(LADDER) - 1)]
    typer.echo(
        f"{len(planned.refs)} {content['kind']} requests about {content['model']} (data set {content['dataset']}), "
        f"{planned.twins} of them twins, {planned.overdue} overdue, the first due {planned.first_due[:10]}; "
        f"step {step}; {planned.waiting} more would wait"
    )
    facts = {"requests": len(planned.refs), "overdue": planned.overdue, "twins": planned.twins}
    last_line({**facts, **content, "first_due": planned.first_due, "step": step, "waiting": planned.waiting}, as_json)


def _dry_run(model: str, limit: int, sets: list[str], as_json: bool) -> None:
    from unlearning_components.previews import preview
    from unlearning_pipelines.parameters import defaults, parse

    asked = {**defaults("deletion_batch"), **({"name": model} if model else {}), "limit": limit}
    asked |= parse("deletion_batch", sets)
    names = ("limit", "ladder", "policies", "reference", "cadence_days")
    found = preview(asked["name"], asked["manifest"], **{name: asked[name] for name in names})
    if found is None:
        typer.echo("nothing waits that is not at work already")
        last_line({"requests": 0}, as_json)
        return
    typer.echo(
        f"{found.requests} {found.kind} requests, {found.twins} of them twins, {found.without_rows} without rows: "
        f"{found.rows} training rows, {found.share:.1%} of what the model knows"
    )
    if found.classes:
        typer.echo("  of classes: " + ", ".join(f"{name} {share:.1%}" for name, share in found.classes.items()))
    typer.echo(f"step {found.step} by {found.method} {json.dumps(found.settings)}; gates: {', '.join(found.gates)}")
    guess = f"{found.hours:g} hours by the last month's tries" if found.hours else "how long is not known yet"
    typer.echo(f"{guess}; the first is due {found.first_due[:10]}: {'in time' if found.in_time else 'TOO LATE'}")
    for hit in found.hits:
        typer.echo(f"  ! {hit}")
    typer.echo("it would write:")
    for place in found.writes:
        typer.echo(f"  {place}")
    last_line(found.as_plain(), as_json)


@ledger.command()
def free(
    batch: Annotated[str, typer.Argument(help="A batch at work, as the status names it; its first 6 digits or more.")],
    by: By = "operator",
) -> None:
    """Let the next run take a batch over at once, because the run that had it is dead."""
    from unlearning.ledger.claims import expire

    with opened() as found:
        owner = expire(found, batch, actor=by)
    typer.echo(f"batch {batch[:12]} is no longer {owner}'s: the next run goes on with it")


@ledger.command()
def rollback(
    model: Annotated[str, typer.Argument(help="The registered model.")],
    version: Annotated[int, typer.Argument(help="The version that is to serve again.", min=1)],
    by: By = "operator",
) -> None:
    """Serve an earlier version again, if it has forgotten everything that was ever deleted."""
    from unlearning.ledger.serving import roll_back
    from unlearning.tracking import Champion, Registry
    from unlearning_components.surroundings import tracker

    registry = Registry(tracker())
    with opened() as found:
        wanted = registry.version(model, str(version))
        roll_back(found, model, wanted.digest, Champion(registry, model), actor=by)
    typer.echo(f"models:/{model}/{version} serves")


@ledger.command()
def retire(
    model: Annotated[str, typer.Argument(help="The registered model; all of them when left out.")] = "",
    days: Annotated[float, typer.Option(help="Keep what served until so many days ago; UNLEARN_RETIRE_DAYS.")] = -1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go, and remove nothing.")] = False,
    by: By = "retire",
    as_json: Json = False,
) -> None:
    """Remove models that serve no more: every version, MLflow's copies, the runs' artifacts; proved by listing."""
    _last_retired(*retire_due(model=model, days=days, dry_run=dry_run, by=by), as_json)


def retire_due(
    *, model: str = "", days: float = -1, dry_run: bool = False, by: str = "retire"
) -> tuple[list[str], list[str], float]:
    """The digests of models that were removed, of those that wait, and after how many days they may go.

    Args:
        model: The registered model; "" for all of them.
        days: Keep what served until so many days ago; below 0: as the environment says.
        dry_run: Say what would go, and remove nothing.
        by: The role that does it.
    """
    from unlearning.ledger.retirement import retirable, retire_one
    from unlearning.settings import Settings
    from unlearning.tracking import Registry
    from unlearning_components.surroundings import tracker

    keep = Settings().retire_days if days < 0 else days
    done, waiting = list[str](), list[str]()
    with opened() as found:
        store, registry = the_store(), Registry(tracker())
        for name, digest in retirable(found, model=model, days=keep):
            if dry_run:
                typer.echo(f"{name} {digest[:12]} would be removed")
                waiting.append(digest)
                continue
            gone = retire_one(found, store, registry, name, digest, days=keep, actor=by)
            typer.echo(f"{name} {digest[:12]}: {gone.text()}")
            (done if gone.removed is not None else waiting).append(digest)
    return done, waiting, keep


def _last_retired(done: list[str], waiting: list[str], days: float, as_json: bool) -> None:
    typer.echo(f"{len(done)} models removed")
    last_line({"removed": done, "waiting": waiting, "days": days}, as_json)


def purge_due(*, keep_days: float = 30.0, by: str = "cleaner") -> int:
    """The number of ended requests whose ids are now gone from the vault.

    Args:
        keep_days: How long ids stay after the end.
        by: The role that removes them.
    """
    from unlearning.ledger import filing

    with opened() as found:
        return filing.purge(found, actor=by, keep_days=keep_days)


@contextmanager
def opened(*, make: bool = False, any_layout: bool = False) -> Iterator[Ledger]:
    """The ledger in force, closed at the end; the arguments are those of `open_ledger`."""
    from unlearning.ledger.opening import has_ledger, open_ledger

    if make and not has_ledger():
        from unlearning_pipelines.preflight import claim_home

        claim_home()
    found = open_ledger(make=make, any_layout=any_layout)
    try:
        yield found
    finally:
        found.close()


def guards() -> Guards:
    """The bounds of what goes without people, as the environment says."""
    from unlearning.ledger.guards import guards_from
    from unlearning.settings import Settings

    return guards_from(Settings().guards)


def the_store() -> Any:
    """The object store in force."""
    from unlearning.settings import Settings
    from unlearning.storage import open_store

    return open_store(Settings().store_uri)


def whole(found: Ledger, ref: str) -> str:
    """A request's whole name."""
    from unlearning.ledger.overview import find

    return str(find(found, ref)["ref"])


def _rows(found: Ledger, ref: str) -> list[dict[str, Any]]:
    from unlearning.ledger.overview import find

    return [find(found, ref)]


def _show(request: dict[str, Any], as_json: bool) -> None:
    history = request.pop("history")
    for name in ("ref", "state", "model", "kind", "due_at", "outcome", "reason", "batch"):
        if request[name]:
            typer.echo(f"{name:8} {request[name]}")
    for one in history:
        typer.echo(f"  {one.seq:>8} {one.at[:19]}Z  {one.kind:10} by {one.actor}")
    last_line({**request, "history": [{"seq": one.seq, "at": one.at, "kind": one.kind} for one in history]}, as_json)


def _refused() -> list[str]:
    """Whether files of requests lie where nobody reads them, a sentence."""
    from unlearning.errors import StorageError
    from unlearning.ledger.inbox import REFUSED, refused_files

    try:
        count = len(refused_files(the_store()))
    except StorageError as error:
        return [f"whether files of requests were refused cannot be seen: {error}"]
    what = "file of requests was" if count == 1 else "files of requests were"
    advice = "mend and drop them again under another name, then remove them"
    return [f"{count} {what} refused and lies under {REFUSED}/: {advice}"] if count else []


def _table(now: Status, why: list[str]) -> None:
    for state, number in now.counts.items():
        typer.echo(f"{state:10} {number:>9}")
    typer.echo(f"overdue    {now.overdue:>9}\nat risk    {now.at_risk:>9}  (due within {now.days:g} days)")
    if now.next_due:
        typer.echo(f"next due   {now.next_due[:10]}; the oldest waits for {now.oldest_days:g} days")
    typer.echo(f"settled    {now.last_settled[:19] or 'never'}")
    if now.batches:
        tries = f"{now.batches} in 30 days, {now.turned_away} turned away by a gate"
        typer.echo(f"tries      {tries}; {now.batch_hours:g} hours, 95 of 100 within {now.batch_hours_p95:g}")
    if now.close_days_p95:
        typer.echo(
            f"closed     half within {now.close_days_p50:g} days of the asking, 95 of 100 in {now.close_days_p95:g}"
        )
    for one in now.active:
        typer.echo(f"at work    {one['batch'][:12]} on {one['model']}, {one['state']}, {one['owner']}")
    for reason in why:
        typer.echo(f"ALARM      {reason}")


def last_line(content: dict[str, Any], as_json: bool) -> None:
    """One JSON object, where it was asked for."""
    if as_json:
        typer.echo(json.dumps(content, allow_nan=False))
