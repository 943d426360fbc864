"""One pipeline run from parameters to a result that a person or a script can read."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from unlearning.tracking import Registry
from unlearning.tracking.runs import VERDICT
from unlearning_components.surroundings import tracker
from unlearning_pipelines.deletions import deletions_since, last_event
from unlearning_pipelines.local import LocalRun, OnStage, Runner
from unlearning_pipelines.parameters import defaults
from unlearning_pipelines.preflight import claim_home

BATCH = "deletion_batch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came out of a pipeline run.

    Attributes:
        pipeline: Its name.
        verdict: pass, fail or inconclusive; empty for a pipeline that judges nothing.
        metrics: Flat names to numbers; accuracies as fractions.
        model_uri: Where the unlearned model is kept; empty when there is none.
        report: The page, on this machine; empty where the pipeline hands none out.
        summary: The page in short, as Markdown, where the pipeline gives one; else empty.
        mlflow_run_id: Of the whole pipeline; empty when nothing waited.
        seconds: Stage to seconds, and "total" for the wall time.
        deletions: Of `deletion_batch`: what each request became, certificates, public key; empty for other pipelines.
    """

    pipeline: str
    verdict: str
    metrics: dict[str, float]
    model_uri: str
    report: str
    summary: str
    mlflow_run_id: str
    seconds: dict[str, float]
    deletions: dict[str, Any] = field(default_factory=dict)


def run_pipeline(
    pipeline: str, arguments: Mapping[str, Any], *, on_stage: OnStage, runner: Runner | None = None
) -> Result:
    """Run a pipeline on KFP's local runner and read its result back from MLflow.

    Args:
        pipeline: A name in the catalogue.
        arguments: Checked parameters; what is left out keeps its default.
        on_stage: Told of every stage that starts and ends.
        runner: A process that has begun to import already; one is started when None.

    Raises:
        UnlearningError: What stopped the run; its MLflow run is then FAILED. When this process is told to stop, the
            stages are stopped too, and the MLflow run is KILLED.
    """
    root = claim_home() / "runs"
    began = time.monotonic()
    opened: list[str] = []
    before = last_event() if pipeline == BATCH else 0
    try:
        with runner or Runner() as process:
            ended = process.run(pipeline, arguments, root=root, on_stage=on_stage, on_run=opened.append)
    except BaseException:
        for run in opened:
            tracker().close(run, "KILLED")
        raise
    if ended.error is not None:
        if ended.mlflow_run:
            tracker().close(ended.mlflow_run, "FAILED")
        raise ended.error
    numbers = tracker().summary_of(ended.mlflow_run) if ended.mlflow_run else {}
    seconds = {name.removeprefix("seconds."): v for name, v in numbers.items() if name.startswith("seconds.")}
    if pipeline == BATCH:
        ended = _of_batch(ended, {**defaults(pipeline), **arguments}["name"], before)
    return Result(
        pipeline=pipeline,
        verdict=str(ended.outputs.get("verdict", "")),
        metrics={name: value for name, value in numbers.items() if not name.startswith("seconds.")},
        model_uri=str(ended.outputs.get("model_uri", "")),
        report=str(Path(ended.outputs["report"]).absolute()) if "report" in ended.outputs else "",
        summary=str(Path(ended.outputs["summary"]).absolute()) if "summary" in ended.outputs else "",
        mlflow_run_id=ended.mlflow_run,
        seconds={**seconds, "total": round(time.monotonic() - began, 3)},
        deletions=ended.outputs.get("deletions", {}),
    )


def _of_batch(ended: LocalRun, name: str, before: int) -> LocalRun:
    """The run with outputs, which its pipeline cannot have: its stages stand under a condition."""
    found = deletions_since(before, name, ended.mlflow_run)
    outputs: dict[str, Any] = {"deletions": found.as_plain()}
    if ended.mlflow_run:
        outputs["verdict"] = tracker().tags_of(ended.mlflow_run).get(VERDICT, "")
    if found.certificates:
        outputs["model_uri"] = Registry(tracker()).version(name, "champion").bundle_uri
    if found.report:
        outputs["report"] = found.report
    return replace(ended, outputs=outputs)
