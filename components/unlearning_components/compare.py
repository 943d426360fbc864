"""Every method that applies, on one model, beside a model that never saw what is to be forgotten."""

from kfp import dsl

from unlearning_components._image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def compare(
    original: dsl.Input[dsl.Model],
    retrained: dsl.Input[dsl.Model],
    forget: dsl.Input[dsl.Dataset],
    retain: dsl.Input[dsl.Dataset],
    holdout: dsl.Input[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    comparison: dsl.Output[dsl.Artifact],
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
    run: str,
    model: str,
    manifest: str,
    methods: list = [],  # type: ignore[type-arg]
    settings: dict = {},  # type: ignore[type-arg]
    seeds: int = 3,
    seed: int = 0,
) -> None:
    """Run the methods one after the other, and show them in one table and one picture.

    Args:
        original: The model before; left unchanged.
        retrained: The reference.
        forget: The rows to forget.
        retain: The retain rows that a method may use.
        holdout: Rows that no model was trained on.
        metrics: Means over seeds.
        comparison: Every run as JSON, and the picture.
        report: The table and the picture as one page.
        summary: The table.
        run: The pipeline's MLflow run, which ends here.
        model: Address of the original, for the report.
        manifest: The data set, as for select.
        methods: Names; empty: all that serve the request.
        settings: Method to settings.
        seeds: Runs of each method.
        seed: Of the first.
    """
    from pathlib import Path

    from unlearning_components.comparisons import run_comparison
    from unlearning_components.handover import write_json
    from unlearning_components.surroundings import stage, tracker

    folders = {
        "original": original.path,
        "retrained": retrained.path,
        "forget": forget.path,
        "retain": retain.path,
        "holdout": holdout.path,
    }
    with stage(run, "compare") as record:
        done = run_comparison(
            {name: Path(folder) for name, folder in folders.items()},
            model=model,
            manifest=manifest,
            methods=methods,
            settings=settings,
            seeds=range(seed, seed + seeds),
            summary=tracker().summary_of(run),
        )
        write_json(Path(comparison.path, "comparison.json"), done.content)
        Path(comparison.path, "comparison.svg").write_bytes(done.figure)
        record.figure("figures/comparison.svg", done.figure)
        for name, value in done.metrics.items():
            metrics.log_metric(name, value)
        record.metrics(done.metrics)
        record.summary(done.metrics)
        Path(report.path).write_text(done.page)
        Path(summary.path).write_text(done.text)
        for tracked in (record, record.pipeline):
            tracked.text(done.page, "report.html")
            tracked.tags({"mlflow.note.content": done.text})
    tracker().close(run, "FINISHED")
