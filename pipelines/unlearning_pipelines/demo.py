"""The first five minutes: a trained classifier forgets a class, and says so in plain words."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from unlearning.policy.overlaps import warnings
from unlearning.reporting.wording import amount
from unlearning_components.surroundings import tracker
from unlearning_pipelines.deployment import DIGITS, check_before_training, train_model
from unlearning_pipelines.local import OnStage
from unlearning_pipelines.parameters import defaults
from unlearning_pipelines.preflight import check_run
from unlearning_pipelines.runs import Result, run_pipeline

MODEL = "digits-demo"
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


def run_demo(forget: Sequence[str], *, seed: int) -> Result:
    """Train and register a digits classifier as the deployed model, then make it forget.

    Args:
        forget: Class names.
        seed: Of every random choice.
    """
    out = console()
    arguments = {"model": f"models:/{MODEL}@champion", "register_as": MODEL, "forget": list(forget), "seed": seed}
    parameters = {**defaults("delete_class"), **arguments}
    check_before_training("delete_class", parameters)
    out.print("[bold]1[/]  Training a classifier of handwritten digits: the model in production")
    trained = train_model(name=MODEL, **DIGITS, seed=seed)
    out.print(f"   models:/{MODEL}@champion is version {trained['version']}, {trained['accuracy.test']:.1%} right")
    out.print(f"[bold]2[/]  Forgetting class {', '.join(forget)}: a Kubeflow pipeline, run on this machine")
    check_run("delete_class", parameters)
    with stages_shown() as on_stage:
        result = run_pipeline("delete_class", arguments, on_stage=on_stage)
    out.print("[bold]3[/]  The verdict")
    show_result(result)
    return result


def show_result(result: Result) -> None:
    """The numbers that matter, and where to look next."""
    out, numbers = console(), result.metrics
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
    where = f"; the model is at {result.model_uri}" if result.model_uri else ""
    out.print(f"   took {result.seconds['total']:.0f} s{where}")
    if result.report:
        out.print(f"   report   {result.report}")
    if result.mlflow_run_id:
        out.print(f"   MLflow   run {result.mlflow_run_id}; to look at it: {tracker().ui_command()}")
