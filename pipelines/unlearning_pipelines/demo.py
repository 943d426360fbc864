"""The first five minutes: a request to forget a class is filed, served by a batch, and certified, in plain words."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from unlearning.policy.overlaps import warnings
from unlearning.reporting.wording import amount
from unlearning_components.surroundings import fetch_model, tracker
from unlearning_pipelines.certificate_cli import verify_certificate
from unlearning_pipelines.deletions import words
from unlearning_pipelines.deployment import DIGITS, check_before_training, train_model
from unlearning_pipelines.ledger_cli import file_one, opened
from unlearning_pipelines.local import OnStage, Runner
from unlearning_pipelines.parameters import defaults
from unlearning_pipelines.preflight import check_run, known
from unlearning_pipelines.runs import Result, run_pipeline

MODEL = "digits-demo"
MOST_LINES = 10
"""Requests that are shown one by one."""
MARKS = {"pass": "[bold green]PASS[/]", "fail": "[bold red]FAIL[/]", "inconclusive": "[bold yellow]INCONCLUSIVE[/]"}


def console() -> Console:
    """Plain text where there is no terminal."""
    return Console(highlight=False, soft_wrap=not sys.stdout.isatty())


@contextmanager
def stages_shown() -> Iterator[OnStage]:
    """A line for every stage that ends; on a terminal, a spinner beside the one that runs."""
    out = console()
    with out.status("starting") as status:

        def on_stage(stage: str, state: str) -> None:
            if state == "started":
                status.update(f"{stage} ...")
            else:
                out.print(f"  [green]done[/]    {stage}" if state == "finished" else f"  [red]failed[/]  {stage}")

        yield on_stage


def run_demo(forget: Sequence[str], *, seed: int, runner: Runner | None = None) -> Result:
    """Train and register a digits classifier as the deployed model, file a request, serve it, check its certificate.

    Args:
        forget: Class names.
        seed: Of every random choice.
        runner: As of `run_pipeline`.
    """
    out = console()
    arguments = {"model": f"models:/{MODEL}@champion", "register_as": MODEL, "forget": list(forget), "seed": seed}
    check_before_training("delete_class", {**defaults("delete_class"), **arguments})
    name = _free_name()
    out.print("[bold]1[/]  Training a classifier of handwritten digits: the model in production")
    trained = train_model(name=name, **DIGITS, seed=seed)
    out.print(f"   models:/{name}@champion is version {trained['version']}, {trained['accuracy.test']:.1%} right")
    out.print(f"[bold]2[/]  Somebody asks that class {', '.join(forget)} be forgotten: the request is filed")
    ids = " ".join(f"--id {one}" for one in forget)
    out.print(f"   unlearn requests add --key {name} --kind class {ids} --model {name}", markup=False)
    filed, due = file_one(key=name, id_=list(forget), model=name, kind="class")
    out.print(f"   {filed.status} as {filed.ref[:12]}, due {due[:10]}")
    out.print("[bold]3[/]  A batch takes what waits: a Kubeflow pipeline, run on this machine")
    batch = {"name": name, "seed": seed}
    check_run("deletion_batch", {**defaults("deletion_batch"), **batch})
    with stages_shown() as on_stage:
        result = run_pipeline("deletion_batch", batch, on_stage=on_stage, runner=runner)
    out.print("[bold]4[/]  The verdict")
    show_result(result)
    for certificate in result.deletions["certificates"]:
        out.print("[bold]5[/]  The certificate, checked as anybody can, with the signer's public key and the model")
        path, key = Path(certificate), Path(result.deletions["public_key"])
        model = fetch_model(f"models:/{name}@champion", path.with_name("model")).folder
        command = ["unlearn", "certificate", "verify", str(path), "--key", str(key), "--model", str(model)]
        out.print(f"   {shlex.join(command)}", markup=False)
        verify_certificate(path, key, model=model)
    return result


def _free_name() -> str:
    """What this demo's model is called: every demo has its own, and an earlier one keeps what it was made to forget."""
    names = (MODEL, *(f"{MODEL}-{number}" for number in range(2, 10_000)))
    return next(name for name in names if not known(f"models:/{name}@champion") and not _asked_about(name))


def _asked_about(name: str) -> bool:
    """Whether the ledger has a request about a model, of a demo whose models are gone."""
    from unlearning.ledger.opening import has_ledger
    from unlearning.ledger.overview import list_requests

    if not has_ledger():
        return False
    with opened() as found:
        return any(True for _ in list_requests(found, model=name, limit=1))


def show_result(result: Result) -> None:
    """The numbers that matter, and where to look next."""
    out, numbers = console(), result.metrics
    if not result.mlflow_run_id and not result.verdict:
        out.print(
            f"   {'no batch was left to run' if result.deletions.get('requests') else 'nothing waited'}: no new version"
        )
    if result.verdict:
        out.print(f"   {MARKS[result.verdict]}")
        for name, metric in (
            ("forgotten rows, as trained on", "forget_accuracy.train"),
            ("forgotten class, unseen rows", "forget_accuracy.test"),
            ("everything else, unseen rows", "retain_accuracy.test"),
            ("error on forgotten rows", "forget_mae.train"),
            ("error on unseen rows", "retain_mae.test"),
        ):
            if f"{metric}.unlearned" in numbers:
                before, after = (amount(metric, numbers[f"{metric}.{model}"]) for model in ("original", "unlearned"))
                out.print(f"   {name:30} {before:>7}  ->  {after:>6}")
        attack = "residual" if "retain_mae.test.unlearned" in numbers else "entropy"
        auc = numbers[f"membership_auc.{attack}.forget.unlearned"]
        out.print(f"   membership attack (0.5: blind)                {auc:.2f}")
        for sentence in warnings(numbers):
            out.print(f"   [yellow]note[/]  {sentence}")
    elif result.summary:
        text = Path(result.summary).read_text()
        out.print(Markdown(text) if out.is_terminal else text, markup=False)
    _show_deletions(result, out)
    where = f"; the model is at {result.model_uri}" if result.model_uri else ""
    out.print(f"   took {result.seconds['total']:.0f} s{where}")
    if result.report:
        out.print(f"   report   {result.report}")
    if result.mlflow_run_id:
        out.print(f"   MLflow   run {result.mlflow_run_id}; to look at it: {tracker().ui_command()}")


def _show_deletions(result: Result, out: Console) -> None:
    """What became of the requests, one line each, and where their papers are."""
    found = result.deletions
    requests = found.get("requests", [])
    for request in requests[:MOST_LINES]:
        out.print(f"   request {request['ref'][:12]}  {words(request, found['following'])}", markup=False)
    if len(requests) > MOST_LINES:
        out.print(f"   and {len(requests) - MOST_LINES} more: unlearn requests list")
    for one in found.get("at_work", []):
        until = f"{one['lease_until'][:16].replace('T', ' ')} UTC"
        name = one["batch"][:12]
        out.print(f"   batch {name} is at work; if its run is dead, a run after {until} goes on with it,")
        out.print(f"   or the next one after: unlearn ledger free {name}")
    for certificate in found.get("certificates", []):
        out.print(f"   certificate  {certificate}")
