"""The `unlearn` command: what people type. Each command parses, calls, and prints."""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from unlearning.errors import UsageError
from unlearning_pipelines import certificate_cli, cluster_commands, ledger_cli

app = typer.Typer(
    name="unlearn",
    help="Make trained models forget, through Kubeflow Pipelines, and prove it as far as it can be proved.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
models = typer.Typer(help="Models in the registry.", no_args_is_help=True)
app.add_typer(models, name="models")
data = typer.Typer(help="Manifests: which rows a data set has, and whose they are.", no_args_is_help=True)
app.add_typer(data, name="data")
app.add_typer(ledger_cli.requests, name="requests")
app.add_typer(ledger_cli.ledger, name="ledger")
app.add_typer(certificate_cli.certificate, name="certificate")
app.command(name="check-manifest")(certificate_cli.check_manifest)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="A parameter: name=value; repeat for more.", metavar="K=V")
]
GATE_SAID_NO = 3


@app.command()
def demo(
    forget: Annotated[str, typer.Option(help="Classes to forget, such as 3 or 1,4,7.")] = "3",
    seed: Annotated[int, typer.Option(help="Of every random choice.")] = 0,
    as_json: Json = False,
) -> None:
    """Train a digits classifier, ask it to forget a class, and run the whole pipeline."""
    from unlearning_pipelines.local import Runner

    with Runner() as runner:
        from unlearning_pipelines.demo import run_demo

        result = run_demo([part.strip() for part in forget.split(",")], seed=seed, runner=runner)
    _finish(asdict(result), result.verdict, as_json)


@app.command()
def train(
    name: Annotated[str, typer.Option(help="Name of the registered model.")] = "digits",
    manifest: Annotated[str, typer.Option(help="Data source such as digits, or a .parquet manifest.")] = "digits",
    architecture: Annotated[
        str, typer.Option(help="One of the allow-list, see `unlearn models list`; one that suits the data when empty.")
    ] = "",
    argument: Annotated[list[str] | None, typer.Option(help="Of the architecture: width=0.25.", metavar="K=V")] = None,
    recipe: Annotated[
        list[str] | None, typer.Option(help="Of the training: epochs=15; the rest suits the data.", metavar="K=V")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the initial weights and the order.")] = 0,
    as_json: Json = False,
) -> None:
    """Train a first model by a recipe and register it as champion."""
    from unlearning_pipelines.deployment import train_model
    from unlearning_pipelines.parameters import pairs

    result = train_model(
        name=name,
        manifest=manifest,
        architecture=architecture,
        arguments=pairs("--argument", argument or []),
        recipe=pairs("--recipe", recipe or []),
        seed=seed,
    )
    if "mae.test" in result:
        reached = f"off by {result['mae.test']:.4g} on held-out rows, by {result['mae.train']:.4g} on training rows"
    else:
        accuracies = [f"{result[f'accuracy.{split}']:.1%}" for split in ("test", "train")]
        reached = "{} right on held-out rows, {} on training rows".format(*accuracies)
    _say(f"registered models:/{name}/{result['version']} as champion: {reached}")
    _last_line(result, as_json)


@app.command()
def run(
    pipeline: Annotated[str, typer.Argument(help="Name of a pipeline, such as delete_class.")],
    set_: Set = None,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="Of deletion_batch: all of it on copies, and nothing is claimed or kept.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a pipeline on this machine, on KFP's local runner."""
    from unlearning_pipelines.local import Runner
    from unlearning_pipelines.parameters import defaults, parse

    arguments = parse(pipeline, set_ or [])
    parameters = {**defaults(pipeline), **arguments}
    if rehearse:
        _rehearse(pipeline, arguments, as_json)
        return
    with Runner() as runner:  # imports for the stages, while here everything is checked
        from unlearning_pipelines.demo import show_result, stages_shown
        from unlearning_pipelines.deployment import ensure_default_model
        from unlearning_pipelines.preflight import check_run
        from unlearning_pipelines.runs import run_pipeline

        if {"model", "name"} & parameters.keys() and not {"model", "name"} & arguments.keys():
            ensure_default_model(pipeline, parameters)
        check_run(pipeline, parameters)
        with stages_shown() as on_stage:
            result = run_pipeline(pipeline, arguments, on_stage=on_stage, runner=runner)
    show_result(result)
    _finish(asdict(result), result.verdict, as_json)


def _rehearse(pipeline: str, arguments: dict[str, Any], as_json: bool) -> None:
    from unlearning_pipelines.demo import show_result, stages_shown
    from unlearning_pipelines.parameters import defaults
    from unlearning_pipelines.preflight import check_run
    from unlearning_pipelines.rehearsal import rehearse

    if pipeline != "deletion_batch":
        raise UsageError(f"--rehearse is for deletion_batch: {pipeline} claims nothing, give it another register_as")
    check_run(pipeline, {**defaults(pipeline), **arguments})
    with stages_shown() as on_stage:
        result = rehearse(arguments, on_stage=on_stage)
    if result is None:
        _say("nothing waits that is not at work already")
        _last_line({"requests": 0}, as_json)
        return
    show_result(result)
    _say("a rehearsal: nothing was claimed, registered, certified or closed")
    _finish(asdict(result), result.verdict, as_json)


@app.command()
def worker(
    every: Annotated[str, typer.Option(help="Between two starts, such as 30m, 6h or 1d.")] = "1h",
    set_: Set = None,
    times: Annotated[int, typer.Option(help="Stop after so many runs; 0: when it is told to.", min=0)] = 0,
    tidy: Annotated[
        bool, typer.Option("--tidy", help="After each run also `ledger retire` and `requests purge`, by their rules.")
    ] = False,
) -> None:
    """Serve the deletion requests that wait, again and again, on this machine."""
    from unlearning.ledger.opening import has_ledger
    from unlearning_pipelines.demo import show_result, stages_shown
    from unlearning_pipelines.parameters import defaults, parse
    from unlearning_pipelines.preflight import check_run
    from unlearning_pipelines.runs import run_pipeline
    from unlearning_pipelines.schedules import timing
    from unlearning_pipelines.worker import BATCH, with_cadence, work

    seconds = timing(every=every).every
    arguments = with_cadence(BATCH, parse(BATCH, set_ or []), seconds)

    def once() -> None:
        check_run(BATCH, {**defaults(BATCH), **arguments})
        with stages_shown() as on_stage:
            result = run_pipeline(BATCH, arguments, on_stage=on_stage)
        show_result(result)
        if tidy and has_ledger():
            removed, *_ = ledger_cli.retire_due()
            _say(f"   {len(removed)} old models removed, and the ids of {ledger_cli.purge_due()} requests")

    if work(once, seconds=seconds, times=times):
        raise typer.Exit(1)


@app.command()
def methods(as_json: Json = False) -> None:
    """List the methods: what each reads, serves, makes, can be set to and claims."""
    from unlearning.methods import METHODS

    if as_json:
        settings = {name: [asdict(setting) for setting in row.settings()] for name, row in METHODS.items()}
        _last_line({name: {**asdict(row), "settings": settings[name]} for name, row in METHODS.items()}, as_json)
        return
    for name, row in METHODS.items():
        _say(f"{name}: {row.title} ({row.source})")
        labels = f" (labels of {', '.join(row.labels)})" if row.labels else ""
        _say(f"  reads    {', '.join(row.reads) or 'no data'}{labels}")
        _say(f"  serves   {', '.join(row.requests)} requests to models for {', '.join(row.tasks)}")
        _say(
            f"  makes    {', '.join(row.makes) or 'no further model'}\n  limits   {row.limits}\n  a pass   {row.claim}"
        )


@app.command(name="compile")
def compile_(
    out: Annotated[Path | None, typer.Option(help="Folder for the YAML; the package's own when left out.")] = None,
    image: cluster_commands.Image = "",
    settings: cluster_commands.Settings = None,
) -> None:
    """Compile the pipelines to YAML for a cluster."""
    if cluster_commands.compile_with(image, settings) and out is None:
        raise UsageError("pipelines for a cluster's settings are not the package's own: give --out FOLDER")
    from unlearning_pipelines.compile import COMPILED, compile_all

    for path in compile_all(out or COMPILED):
        _say(str(path))


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what is configured, what works, and what to do about the rest."""
    from unlearning_pipelines.doctor import examine

    findings = examine()
    for finding in findings:
        _say(f"{finding.mark} {finding.what}: {finding.detail}")
    _last_line({"ok": all(f.ok for f in findings), "findings": [asdict(f) for f in findings]}, as_json)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


cluster_commands.register(app)


@models.command(name="list")
def list_models() -> None:
    """List the architectures that a model may have."""
    from unlearning.models.architectures import ARCHITECTURES

    for name, row in ARCHITECTURES.items():
        _say(f"{name:20} {row.summary} ({row.source})")


@models.command(name="import")
def import_(
    source: Annotated[str, typer.Argument(help="A .safetensors, .pt, .pth or .th file, or models:/NAME/3.")],
    name: Annotated[str, typer.Option(help="Name of the registered model.")],
    architecture: Annotated[str, typer.Option(help="One of the allow-list.")],
    manifest: Annotated[str, typer.Option(help="What it was trained on.")],
    argument: Annotated[list[str] | None, typer.Option(help="Of the architecture.", metavar="K=V")] = None,
    mean: Annotated[str, typer.Option(help="Of the model's normalisation, by channel: 0.485,0.456,0.406.")] = "",
    std: Annotated[str, typer.Option(help="Likewise.")] = "",
    fine_tuned: Annotated[bool, typer.Option(help="It was fine-tuned from pretrained weights.")] = False,
    as_json: Json = False,
) -> None:
    """Register somebody's weights: a state_dict, safetensors, or a version in MLflow. Pickled code is never run."""
    from unlearning_pipelines.deployment import import_model
    from unlearning_pipelines.parameters import numbers, pairs

    result = import_model(
        source,
        name=name,
        manifest=manifest,
        architecture=architecture,
        arguments=pairs("--argument", argument or []),
        mean=numbers("--mean", mean),
        std=numbers("--std", std),
        fine_tuned=fine_tuned,
    )
    _say(f"registered models:/{name}/{result['version']} as champion")
    _last_line(result, as_json)


@data.command(name="make")
def make_data(
    source: Annotated[
        str, typer.Argument(help="digits, torchvision:NAME?root=.., folder:PATH, npz:PATH, parquet:PATH")
    ],
    out: Annotated[str, typer.Option(help="Where to write it: a path or s3://bucket/key.parquet.")],
    name: Annotated[str, typer.Option(help="Shown in reports.")] = "",
    test_share: Annotated[float, typer.Option(help="Held out, where the source has no split of its own.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Of that split.")] = 0,
    image_size: Annotated[int, typer.Option(help="Side of every image; 0: as they are.")] = 0,
    as_json: Json = False,
) -> None:
    """Write a manifest: one line per row with its id, subject, class, split and place."""
    from unlearning_pipelines.manifests import make

    result = make(source, out, name=name, test_share=test_share, seed=seed, image_size=image_size or None)
    _say(f"{out}: {result['rows']} rows, {result['classes']} classes, sha256 {result['digest']}")
    _last_line(result, as_json)


def _say(text: str) -> None:
    typer.echo(text)


def _last_line(content: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(content, allow_nan=False))


def _finish(content: dict[str, Any], verdict: str, as_json: bool) -> None:
    _last_line(content, as_json)
    if verdict not in ("pass", ""):
        raise typer.Exit(GATE_SAID_NO)


def main() -> None:
    """Run the command; an error of ours is one line on standard error, without a traceback."""
    from unlearning.errors import UnlearningError

    def stop(*_: object) -> None:
        sys.exit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)  # so that a run that is told to stop still ends its stages and its MLflow run
    try:
        app(prog_name="unlearn")
    except UnlearningError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        print(f"error: {error.strerror or error}: {error.filename or 'no file'}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
