"""A whole batch on copies: the same requests, model and data in a folder of its own, which is removed in the end."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from unlearning.errors import PipelineError, UsageError
from unlearning.ledger.claims import plan
from unlearning.ledger.filing import Hold, file_requests, read_ids
from unlearning.ledger.guards import SHARE, approve, cleared
from unlearning.ledger.ladder import LADDER, next_rung
from unlearning.ledger.opening import open_ledger
from unlearning.ledger.overview import find
from unlearning.ledger.requests import DeletionRequest, request_from
from unlearning.ledger.serving import base_of
from unlearning.settings import Settings
from unlearning.tracking import Champion, Registry, promote_bundle
from unlearning_components.bookkeeping import how_at
from unlearning_components.surroundings import fetch_model, store, tracker
from unlearning_pipelines.local import OnStage
from unlearning_pipelines.parameters import defaults
from unlearning_pipelines.preflight import claim_home
from unlearning_pipelines.runs import Result, run_pipeline

FOLDER = "rehearsals"
_LEFTOVER = 86_400.0
_FIELDS = ("controller", "model", "dataset", "regulation", "submitted_at")
_ELSEWHERE = ("UNLEARN_STORE", "UNLEARN_LEDGER_URL", "UNLEARN_LEDGER_KEY", "UNLEARN_SIGNING_KEY", "MLFLOW_TRACKING_URI")


def rehearse(arguments: Mapping[str, Any], *, on_stage: OnStage) -> Result | None:
    """What a run of `deletion_batch` with these parameters would come to; None when nothing waits.

    Everything from claim to certificate happens in a folder beneath UNLEARN_HOME with a ledger, a store and a registry
    of its own; the real ones are only read. That folder holds ids, and is removed whatever happens; the report stays.

    Args:
        arguments: Parameters that were set.
        on_stage: Called with a stage's name and "started", "finished" or "failed".

    Raises:
        UsageError: When the model has no champion.
    """
    given = {**defaults("deletion_batch"), **arguments}
    home = claim_home().absolute()
    (home / FOLDER).mkdir(exist_ok=True)
    for left in (home / FOLDER).glob("rehearsal-*/"):  # of one that was killed
        if time.time() - left.stat().st_mtime > _LEFTOVER:
            shutil.rmtree(left, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix="rehearsal-", dir=home / FOLDER))
    try:
        copied = _copied(given, scratch / "model")
        if copied is None:
            return None
        requests, approved, ladder = copied
        with _elsewhere(scratch / "home"):
            claim_home()
            runs = tracker()
            runs.prepare()
            bundle = fetch_model(str(scratch / "model"), scratch / "again")
            promote_bundle(runs, store(), bundle, name=given["name"], run_id="", outcome="pass")
            _file(requests, approved)
            result = run_pipeline("deletion_batch", {**arguments, "ladder": ladder}, on_stage=on_stage)
        report = ""
        if result.report:
            report = str(shutil.copy(result.report, home / FOLDER / f"{scratch.name}.html"))
        found = [{**one, "ref": "rehearsed", "batch": ""} for one in result.deletions["requests"]]
        told = {"requests": found, "following": result.deletions["following"]}
        return replace(result, report=report, model_uri="", mlflow_run_id="", deletions=told)
    except PipelineError as error:
        for log in (scratch / "home" / "runs").glob("*.log"):  # it has no ids, and says what went wrong
            kept = home / FOLDER / f"{scratch.name}.log"
            shutil.copy(log, kept)
            raise PipelineError(str(error).replace(str(log), str(kept))) from error
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _copied(given: Mapping[str, Any], into: Path) -> tuple[list[DeletionRequest], set[str], dict[str, Any]] | None:
    """The planned requests, the keys of those that a guard let go, and a ladder that begins at their step."""
    name, registry = str(given["name"]), Registry(tracker())
    ledger = open_ledger()
    try:
        base = base_of(ledger, name, Champion(registry, name))
        planned = plan(ledger, model=name, limit=given["limit"], base=base)
        if planned is None:
            return None
        if not base or (version := registry.with_digest(name, base)) is None:
            raise UsageError(f'"{name}" has no champion that we registered: see `unlearn train` and `models import`')
        rung = next_rung(ledger, planned, cadence_days=given["cadence_days"], reset_every=Settings().reset_every)
        if LADDER[rung] == "bisect":
            planned = plan(ledger, model=name, limit=(len(planned.refs) + 1) // 2, base=base) or planned
        card = fetch_model(f"models:/{name}/{version.version}", into).card
        requests, keys = list[DeletionRequest](), dict[str, str]()
        for kept in read_ids(ledger, planned.refs):
            row = find(ledger, kept.ref)
            fields = {field: row[field] for field in _FIELDS}
            priority = "expedite" if row["urgency"] == 0 else "normal"
            fields |= {"key": kept.key, "kind": kept.kind, "ids": list(kept.ids), "priority": priority}
            requests.append(request_from(fields))
            keys[kept.ref] = kept.key
        approved = {keys[ref] for ref in cleared(ledger, planned.refs, SHARE)}
    finally:
        ledger.close()
    kind = str(planned.content["kind"])
    return requests, approved, {kind: [how_at(LADDER[rung], kind, given["ladder"], card.task)]}


def _file(requests: list[DeletionRequest], approved: set[str]) -> None:
    ledger = open_ledger(make=True)
    try:
        held = Hold("as it was", SHARE, 1)
        for filed in file_requests(
            ledger, requests, actor="rehearsal", hold=lambda one: held if one.key in approved else None
        ):
            if find(ledger, filed.ref)["state"] == "held":
                approve(ledger, filed.ref, actor="rehearsal-2")
    finally:
        ledger.close()


@contextmanager
def _elsewhere(home: Path) -> Iterator[None]:
    """This process, and the stages that it starts, keep everything in another folder."""
    names = ("UNLEARN_HOME", *_ELSEWHERE)
    before = {name: os.environ.get(name) for name in names}
    for name in _ELSEWHERE:
        os.environ.pop(name, None)
    os.environ["UNLEARN_HOME"] = str(home)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
