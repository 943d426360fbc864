"""Runs on a cluster: started, waited for, listed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from unlearning.errors import ClusterError, PipelineError, UsageError
from unlearning_pipelines.checks import MOST_DEFAULT_BYTES, secrets_in
from unlearning_pipelines.cluster import Cluster, Uploaded

ENDED = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")
MOST_FAILED_LOOKS = 5
"""In a row, while a run is waited for; one lost answer is no reason to give up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedRun:
    """A run as the server knows it.

    Attributes:
        run_id: Its id.
        name: Shown in the UI.
        state: Such as RUNNING or SUCCEEDED.
        created: When, in ISO 8601; "" when the server does not say.
        url: Its page.
        schedule: The id of the schedule that started it; "" for a person's.
    """

    run_id: str
    name: str
    state: str
    created: str
    url: str
    schedule: str


def checked(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters, when they may be sent: all who see the runs can read them, and a server takes so many bytes.

    Raises:
        UsageError: When they are too large, or hold the value of a secret of this environment.
    """
    text = json.dumps(dict(parameters))
    if (size := len(text.encode())) >= MOST_DEFAULT_BYTES:
        raise UsageError(
            f"the parameters take {size} bytes, a cluster accepts fewer than {MOST_DEFAULT_BYTES}: put lists of "
            "ids into a file and give its address"
        )
    for name in secrets_in(text):
        raise UsageError(
            f"a parameter holds the value of {name}: all who see the run can read parameters; leave it out"
        )
    return dict(parameters)


def submit(
    cluster: Cluster, version: Uploaded, parameters: Mapping[str, Any], *, name: str = "", account: str = ""
) -> str:
    """Start a run of a version; its id.

    Args:
        cluster: Where.
        version: What.
        parameters: Those that were set; the others keep the pipeline's defaults.
        name: Shown in the UI; the pipeline's and the time when left out.
        account: The Kubernetes service account of its pods; the server's default when left out.
    """
    values = checked(parameters)
    experiment = cluster.experiment(make=True)
    shown = name or f"{version.pipeline} {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())}"
    started = cluster.ask(
        f"start {version.pipeline}",
        lambda: cluster.client.run_pipeline(
            experiment,
            shown,
            params=values,
            pipeline_id=version.pipeline_id,
            version_id=version.version_id,
            service_account=account or None,
        ),
    )
    return str(started.run_id)


def verdict_of(run: str) -> str:
    """What the gate said in a run, when MLFLOW_TRACKING_URI names the MLflow of the cluster; else "".

    Raises:
        TrackingError: When MLflow does not answer.
    """
    from unlearning.settings import Settings
    from unlearning_components.surroundings import tracker

    return tracker().verdict_of(run) if Settings().tracking else ""


def wait(
    cluster: Cluster, run: str, *, on_line: Callable[[str], None], every: float = 5.0, timeout: float = 0.0
) -> str:
    """Wait until a run has ended well; its state.

    Args:
        cluster: Where.
        run: Its id.
        on_line: Told of every change: of the run, and of its stages where the server says them.
        every: Seconds between two looks.
        timeout: Seconds after which to give up; 0: never. The run itself goes on.

    Raises:
        PipelineError: When it failed, was cancelled, or takes longer.
        ClusterError: When the server stopped answering.
    """
    began, known, failed = time.monotonic(), dict[str, str](), 0
    while True:
        try:
            found = cluster.ask("look at the run", partial(cluster.client.get_run, run))
            failed = 0
        except ClusterError:
            failed += 1
            if failed >= MOST_FAILED_LOOKS:
                raise
            found = None
        if found is not None:
            for what, state in _states(found):
                if known.get(what) != state:
                    known[what] = state
                    on_line(f"{what}: {state.lower()}")
            state = found.state or ""
            if state in ENDED:
                if state in ("FAILED", "CANCELED"):
                    why = found.error.message if found.error and found.error.message else "see the log of its stages"
                    raise PipelineError(
                        f"the run was {_PAST[state]}: {' '.join(why.split())}: {cluster.link('runs', run)}"
                    )
                return state
        if timeout and time.monotonic() - began > timeout:
            raise PipelineError(f"the run takes longer than {timeout:g} s and goes on: {cluster.link('runs', run)}")
        time.sleep(every)


_PAST = {"FAILED": "stopped by a failure", "CANCELED": "cancelled"}


def listed(cluster: Cluster, most: int) -> list[ListedRun]:
    """The newest runs of the experiment."""
    experiment = cluster.experiment(make=False)
    if not experiment:
        return []
    lookup = partial(
        cluster.client.list_runs, experiment_id=experiment, namespace=cluster.namespace, sort_by="created_at desc"
    )
    return [
        ListedRun(
            run_id=str(run.run_id),
            name=str(run.display_name),
            state=str(run.state or "PENDING"),
            created=run.created_at.isoformat() if run.created_at else "",
            url=cluster.link("runs", run.run_id),
            schedule=str(run.recurring_run_id or ""),
        )
        for run in islice(cluster.pages("list the runs", "runs", lookup), most)
    ]


def _states(run: Any) -> list[tuple[str, str]]:
    """The states of a run and of its stages; what KFP starts around them is left out."""
    tasks = (run.run_details.task_details if run.run_details else None) or []
    stages = [
        (str(task.display_name), str(task.state))
        for task in tasks
        if task.state and task.display_name and not task.display_name.endswith("driver") and task.display_name != "root"
    ]
    return [*stages, ("run", run.state or "PENDING")]
