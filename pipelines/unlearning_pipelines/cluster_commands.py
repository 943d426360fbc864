"""The commands that talk to a cluster; each parses, calls, and prints."""

from __future__ import annotations

import json
import os
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from unlearning_pipelines.cluster import Cluster, Uploaded

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="A parameter: name=value; repeat for more.", metavar="K=V")
]
Host = Annotated[str, typer.Option(help="Address of Kubeflow Pipelines; UNLEARN_KFP_HOST does the same.")]
Namespace = Annotated[str, typer.Option(help="Yours, where the server has users; UNLEARN_KFP_NAMESPACE.")]
Image = Annotated[str, typer.Option(help="Image of all stages; UNLEARN_IMAGE does the same.")]
Settings = Annotated[
    Path | None, typer.Option(help="File of how stages stand on the cluster; UNLEARN_CLUSTER_SETTINGS does the same.")
]
Account = Annotated[str, typer.Option(help="Kubernetes service account of the pods; UNLEARN_KFP_ACCOUNT.")]
GATE_SAID_NO = 3
Name = Annotated[str, typer.Argument(help="Name of a pipeline, such as delete_class.")]


def upload(
    pipelines: Annotated[list[str] | None, typer.Argument(help="Names of pipelines; all when left out.")] = None,
    host: Host = "",
    namespace: Namespace = "",
    image: Image = "",
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Upload pipelines to a cluster, as versions named by their content: the same content is uploaded once."""
    compile_with(image, settings)
    from unlearning_pipelines.catalogue import PIPELINES
    from unlearning_pipelines.parameters import pipeline_named

    names = pipelines or list(PIPELINES)
    for name in names:
        pipeline_named(name)
    cluster = _connected(host, namespace)
    done = []
    for name in names:
        version = _uploaded(cluster, name)
        done.append(asdict(version))
        typer.echo(f"{version.pipeline} {version.version}: {'uploaded' if version.new else 'there already'}")
    _last_line({"versions": done}, as_json)


def submit(
    pipeline: Name,
    set_: Set = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Until it ends; exit code 1: failed, 3: the gate said no.")
    ] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait at most; 0: no limit.", min=0)] = 0,
    name: Annotated[str, typer.Option(help="Of the run; the pipeline's and the time when left out.")] = "",
    account: Account = "",
    host: Host = "",
    namespace: Namespace = "",
    image: Image = "",
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Start a run of a pipeline on a cluster; its version is uploaded when it is not there."""
    compile_with(image, settings)
    from unlearning_pipelines import submissions
    from unlearning_pipelines.parameters import parse

    parameters = submissions.checked(parse(pipeline, set_ or []))
    cluster = _connected(host, namespace)
    version = _uploaded(cluster, pipeline)
    run = submissions.submit(cluster, version, parameters, name=name, account=account or cluster.where.account)
    result: dict[str, Any] = {"run_id": run, **asdict(version), "url": cluster.link("runs", run), "state": "PENDING"}
    typer.echo(f"started {version.pipeline} {version.version} as run {run}\n{result['url']}")
    if wait:
        began = time.monotonic()
        result["state"] = submissions.wait(cluster, run, on_line=typer.echo, every=cluster.where.pause, timeout=timeout)
        result["seconds"] = round(time.monotonic() - began, 1)
        result["verdict"] = submissions.verdict_of(run)
        if result["verdict"]:
            typer.echo(f"verdict: {result['verdict'].upper()}")
    _last_line(result, as_json)
    if result.get("verdict", "") not in ("pass", ""):
        raise typer.Exit(GATE_SAID_NO)


def schedule(
    pipeline: Name,
    set_: Set = None,
    cron: Annotated[str, typer.Option(help='Five fields, or six with seconds first: "0 0 2 * * *".')] = "",
    every: Annotated[str, typer.Option(help="Between two starts, such as 30m, 6h or 1d.")] = "",
    at_once: Annotated[int, typer.Option(help="Most runs of this schedule at a time.")] = 1,
    catch_up: Annotated[bool, typer.Option("--catch-up", help="Make up for every start that was missed.")] = False,
    name: Annotated[str, typer.Option(help="Of the schedule; the pipeline's when left out.")] = "",
    account: Account = "",
    host: Host = "",
    namespace: Namespace = "",
    image: Image = "",
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Start a pipeline again and again. Twice the same is one schedule; another content takes the place of the old."""
    compile_with(image, settings)
    from unlearning_pipelines import schedules
    from unlearning_pipelines.parameters import parse
    from unlearning_pipelines.submissions import checked
    from unlearning_pipelines.worker import with_cadence

    when = schedules.timing(cron=cron, every=every, at_once=at_once, catch_up=catch_up)
    parameters = checked(with_cadence(pipeline, parse(pipeline, set_ or []), when.every))
    cluster = _connected(host, namespace)
    version = _uploaded(cluster, pipeline)
    done = schedules.schedule(cluster, version, parameters, when, name=name, account=account or cluster.where.account)
    how = f"cron {when.cron}" if when.cron else f"every {when.every} s"
    typer.echo(f"schedule {done.name} ({how}, {version.version}): {done.change}\n{done.url}")
    _last_line({**asdict(done), "version": version.version, "timing": asdict(when)}, as_json)


def unschedule(
    name: Annotated[str, typer.Argument(help="Of the schedule, such as delete-samples.")],
    host: Host = "",
    namespace: Namespace = "",
    as_json: Json = False,
) -> None:
    """Remove a schedule. Runs that it has started go on; a schedule that is not there is no error."""
    from unlearning_pipelines import schedules

    removed = schedules.unschedule(_connected(host, namespace), name)
    typer.echo(f"removed {name}" if removed else f"there is no schedule {name}: nothing to do")
    _last_line({"name": name, "removed": removed}, as_json)


def runs(
    most: Annotated[int, typer.Option(help="Runs to list.", min=1, max=1000)] = 20,
    host: Host = "",
    namespace: Namespace = "",
    as_json: Json = False,
) -> None:
    """List the schedules on a cluster, and the newest runs."""
    from unlearning_pipelines import schedules, submissions

    cluster = _connected(host, namespace)
    planned, newest = schedules.listed_schedules(cluster), submissions.listed(cluster, most)
    for one in planned:
        mark = "on " if one.enabled else "off"
        typer.echo(f"schedule {mark} {one.name}: {one.when}, {one.at_once} at once")
    for run in newest:
        typer.echo(f"{run.state.lower():10} {run.created[:19]} {run.name} {run.run_id}")
    if not planned and not newest:
        typer.echo("there are no schedules and no runs")
    _last_line({"schedules": [asdict(one) for one in planned], "runs": [asdict(run) for run in newest]}, as_json)


def register(app: typer.Typer) -> None:
    """Add these commands to the `unlearn` command."""
    for command in (upload, submit, schedule, unschedule, runs):
        app.command()(command)


def compile_with(image: str, settings: Path | None) -> bool:
    """Whether cluster settings are in force; both are read when the components are imported, after this.

    Raises:
        UsageError: When the settings cannot be read.
    """
    from unlearning_pipelines import placement

    if image:
        os.environ["UNLEARN_IMAGE"] = image
    if settings is not None:
        os.environ[placement.VARIABLE] = str(settings)
    return placement.in_force() is not None


def _connected(host: str, namespace: str) -> Cluster:
    from unlearning_pipelines.cluster import Cluster
    from unlearning_pipelines.connection import connection

    return Cluster(connection(host, namespace))


def _uploaded(cluster: Cluster, name: str) -> Uploaded:
    from unlearning_pipelines.compile import compile_one

    with tempfile.TemporaryDirectory(prefix="unlearn-") as folder:
        return cluster.upload(compile_one(name, Path(folder)))


def _last_line(content: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(content, allow_nan=False))
