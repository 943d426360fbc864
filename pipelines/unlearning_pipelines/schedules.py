"""Recurring runs: one of each name, whose content is what was last asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

from unlearning.errors import UsageError
from unlearning_pipelines.cluster import Cluster, Uploaded, named
from unlearning_pipelines.content import digest_of
from unlearning_pipelines.submissions import checked

MOST_AT_ONCE = 10
"""Runs of one schedule; the server refuses more."""
_MARK = "content sha256 "
_FIELD = r"[0-9A-Za-z*?/,L#-]+"
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SHORTEST = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """When runs start, and how many there may be.

    Attributes:
        cron: Six fields, seconds first, in the server's time zone; "" when `every` is set.
        every: Seconds between two starts; 0 when `cron` is set.
        at_once: Most runs of this schedule at a time.
        catch_up: Whether starts that were missed are made up for, one by one. A batch finds all that is pending by
            itself, so that one run after a pause is enough.
    """

    cron: str = ""
    every: int = 0
    at_once: int = 1
    catch_up: bool = False


def timing(*, cron: str = "", every: str = "", at_once: int = 1, catch_up: bool = False) -> Timing:
    """A checked timing.

    Args:
        cron: Five or six fields; five get second 0.
        every: A number with a unit, such as 30m, 6h or 1d.
        at_once: 1 to 10.
        catch_up: As for `Timing`.

    Raises:
        UsageError: For anything else, or both or none of `cron` and `every`.
    """
    if bool(cron) == bool(every):
        raise UsageError('wanted either --cron "0 0 2 * * *" or --every 1d')
    if not 1 <= at_once <= MOST_AT_ONCE:
        raise UsageError(f"wanted --at-once from 1 to {MOST_AT_ONCE}, got {at_once}")
    if cron:
        fields = cron.split()
        if len(fields) not in (5, 6) or not all(re.fullmatch(_FIELD, field) for field in fields):
            raise UsageError(f'wanted --cron with five or six fields, as "0 0 2 * * *" (seconds first), got "{cron}"')
        return Timing(cron=" ".join(fields if len(fields) == 6 else ["0", *fields]), at_once=at_once, catch_up=catch_up)
    match = re.fullmatch(r"([1-9][0-9]{0,6})([smhd])", every)
    seconds = int(match[1]) * _UNITS[match[2]] if match else 0
    if seconds < _SHORTEST:
        raise UsageError(f'wanted --every such as 30m, 6h or 1d, at least {_SHORTEST} seconds, got "{every}"')
    return Timing(every=seconds, at_once=at_once, catch_up=catch_up)


Change = Literal["made", "replaced", "resumed", "unchanged"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduled:
    """A schedule on the server, and what was done for it.

    Attributes:
        schedule_id: Its id.
        name: Its name.
        change: What was done: "unchanged" when the same content was there and enabled.
        url: Its page.
    """

    schedule_id: str
    name: str
    change: Change
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedSchedule:
    """A schedule as the server knows it.

    Attributes:
        schedule_id: Its id.
        name: Its name.
        enabled: Whether it starts runs.
        when: Cron fields, or "every N s".
        at_once: Most runs at a time.
        catch_up: Whether missed starts are made up for.
    """

    schedule_id: str
    name: str
    enabled: bool
    when: str
    at_once: int
    catch_up: bool


def schedule(
    cluster: Cluster,
    version: Uploaded,
    parameters: Mapping[str, Any],
    when: Timing,
    *,
    name: str = "",
    account: str = "",
) -> Scheduled:
    """Make sure that there is one schedule of this name with this content, and that it is enabled.

    The server cannot change a schedule: another content is made first and the old one removed after, so that there is
    no moment without any.

    Args:
        cluster: Where.
        version: What runs; later uploads do not change it.
        parameters: Those that were set; the others keep the pipeline's defaults.
        when: From `timing`.
        name: Of the schedule; the pipeline's when left out.
        account: The Kubernetes service account of its pods; the server's default when left out.
    """
    values = checked(parameters)
    shown = name or version.pipeline
    experiment = cluster.experiment(make=True)
    wanted = {"version": version.version_id, "parameters": values, "account": account, **asdict(when)}
    mark = _MARK + digest_of(wanted)
    there = _found(cluster, experiment, shown)
    same = [one for one in there if mark in (one.description or "")]
    if same:
        kept, change = same[0], _resumed(cluster, same[0])
    else:
        kept, change = _made(cluster, version, values, when, experiment, shown, account, mark), "made"
    for one in there:
        if one.recurring_run_id != kept.recurring_run_id:
            _remove(cluster, one)
            change = "replaced"
    id_ = str(kept.recurring_run_id)
    return Scheduled(schedule_id=id_, name=shown, change=change, url=cluster.link("recurringrun", id_))


def unschedule(cluster: Cluster, name: str) -> int:
    """The number of schedules of this name that were removed; runs that have started go on."""
    experiment = cluster.experiment(make=False)
    found = _found(cluster, experiment, name) if experiment else []
    for one in found:
        _remove(cluster, one)
    return len(found)


def listed_schedules(cluster: Cluster) -> list[ListedSchedule]:
    """All schedules of the experiment."""
    experiment = cluster.experiment(make=False)
    return [_listed(one) for one in (_found(cluster, experiment, "") if experiment else [])]


def _listed(one: Any) -> ListedSchedule:
    cron = one.trigger.cron_schedule.cron if one.trigger and one.trigger.cron_schedule else ""
    seconds = one.trigger.periodic_schedule.interval_second if one.trigger and one.trigger.periodic_schedule else ""
    return ListedSchedule(
        schedule_id=str(one.recurring_run_id),
        name=str(one.display_name),
        enabled=_enabled(one),
        when=cron or f"every {seconds} s",
        at_once=int(one.max_concurrency or 1),
        catch_up=not one.no_catchup,
    )


def _found(cluster: Cluster, experiment: str, name: str) -> list[Any]:
    lookup = partial(cluster.client.list_recurring_runs, experiment_id=experiment, filter=named(name) if name else None)
    return list(cluster.pages("list the schedules", "recurring_runs", lookup))


def _enabled(one: Any) -> bool:
    return "DISABLE" not in f"{one.mode or ''} {one.status or ''}"


def _resumed(cluster: Cluster, one: Any) -> Change:
    if _enabled(one):
        return "unchanged"
    cluster.ask("resume the schedule", lambda: cluster.client.enable_recurring_run(one.recurring_run_id))
    return "resumed"


def _made(
    cluster: Cluster,
    version: Uploaded,
    values: dict[str, Any],
    when: Timing,
    experiment: str,
    name: str,
    account: str,
    mark: str,
) -> Any:
    return cluster.ask(
        f"schedule {version.pipeline}",
        lambda: cluster.client.create_recurring_run(
            experiment,
            name,
            description=f"{version.pipeline} {version.version}, kept by `unlearn schedule`; {mark}",
            cron_expression=when.cron or None,
            interval_second=when.every or None,
            max_concurrency=when.at_once,
            no_catchup=not when.catch_up,
            params=values,
            pipeline_id=version.pipeline_id,
            version_id=version.version_id,
            service_account=account or None,
        ),
    )


def _remove(cluster: Cluster, one: Any) -> None:
    cluster.ask("remove the old schedule", lambda: cluster.client.delete_recurring_run(one.recurring_run_id))
