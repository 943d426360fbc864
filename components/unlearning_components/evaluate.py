"""How the model did before and does after, on forgotten and retained, seen and unseen rows."""

from kfp import dsl

from unlearning_components._image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    original: dsl.Input[dsl.Model],
    unlearned: dsl.Input[dsl.Model],
    forget: dsl.Input[dsl.Dataset],
    retain: dsl.Input[dsl.Dataset],
    holdout: dsl.Input[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    per_class: dsl.Output[dsl.ClassificationMetrics],
    evaluation: dsl.Output[dsl.Artifact],
    run: str,
    manifest: str,
) -> None:
    """Measure both models on the same rows.

    Args:
        original: The model before.
        unlearned: The model after.
        forget: Forgotten training rows.
        retain: Retained training rows.
        holdout: Rows that neither model was trained on.
        metrics: Accuracies and drops, as fractions.
        per_class: The unlearned model's confusion matrix on held-out rows.
        evaluation: All of it as JSON, with figures.
        run: The pipeline's MLflow run.
        manifest: The data set, as for select.
    """
    from pathlib import Path

    from unlearning.config import as_plain
    from unlearning.data.selection import read_rows
    from unlearning.metrics.classification import compare_classifiers, weights_changed
    from unlearning.reporting.figures import confusion_matrices, per_class_accuracy, prediction_distribution
    from unlearning_components.handover import write_json
    from unlearning_components.surroundings import fetch_manifest, outputs_of_both, stage

    with stage(run, "evaluate") as record:
        data = fetch_manifest(manifest)
        models, outputs = outputs_of_both(original.path, unlearned.path, forget.path, retain.path, holdout.path, data)
        gone = read_rows(forget.path)[1]["forget_classes"]
        report = compare_classifiers(outputs, classes=data.card.classes, forget_classes=gone)
        before, after = (
            {name: weights.detach() for name, weights in models[model].named_parameters()}
            for model in ("original", "unlearned")
        )
        report.metrics["weights_changed"] = weights_changed(before, after)
        write_json(Path(evaluation.path, "evaluation.json"), as_plain(report))
        names = [data.card.classes[index] for index in gone]
        columns = [[row[key] for row in report.per_class] for key in ("test_original", "test_unlearned")]
        tables = [report.confusion["original"], report.confusion["unlearned"]]
        figures = {
            "per_class_accuracy.svg": per_class_accuracy(data.card.classes, columns[0], columns[1], names),
            "confusion_matrices.svg": confusion_matrices(data.card.classes, tables[0], tables[1], names),
        }
        if shares := report.forget_predictions:
            figures["prediction_distribution.svg"] = prediction_distribution(
                data.card.classes, shares["original"], shares["unlearned"], names
            )
        for name, content in figures.items():
            Path(evaluation.path, name).write_bytes(content)
            record.figure(f"figures/{name}", content)
        for name, value in report.metrics.items():
            metrics.log_metric(name, value)
        per_class.log_confusion_matrix(list(data.card.classes), report.confusion["unlearned"])
        record.metrics(report.metrics)
        record.summary(report.metrics)
