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
    outputs: dsl.Output[dsl.Artifact],
    run: str,
    manifest: str,
    retrained: dsl.Input[dsl.Model] | None = None,
) -> None:
    """Measure the models on the same rows.

    Args:
        original: The model before.
        unlearned: The model after.
        forget: Forgotten training rows.
        retain: Retained training rows.
        holdout: Rows that neither model was trained on.
        metrics: Accuracies and drops, as fractions; of a regressor its errors.
        per_class: The unlearned classifier's confusion matrix on held-out rows; empty for a regressor.
        evaluation: All of it as JSON, with figures.
        outputs: What each model answered on each set, for attack; no row is named in it.
        run: The pipeline's MLflow run.
        manifest: The data set, as for select.
        retrained: A model that never saw what is forgotten, where there is one.
    """
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from unlearning.data.selection import read_rows
    from unlearning.models.bundle import read_bundle
    from unlearning_components.completions import stage_once
    from unlearning_components.evaluations import evaluated, quantiles_of
    from unlearning_components.handover import write_json, write_outputs
    from unlearning_components.surroundings import fetch_manifest, further_references, outputs_of, overlap_of

    given = {"manifest": manifest}
    with stage_once(
        run,
        "evaluate",
        given=given,
        reads=[original, unlearned, retrained, forget, retain, holdout],
        makes=[metrics, per_class, evaluation, outputs],
    ) as record:
        if record is None:
            return
        data = fetch_manifest(manifest)
        folders = {"original": original.path, "unlearned": unlearned.path}
        folders |= {} if retrained is None else {"retrained": retrained.path}
        with TemporaryDirectory() as folder:
            further = further_references(folders.get("retrained", ""), data, Path(folder))
            models, answers = outputs_of(folders | further, forget.path, retain.path, holdout.path, data)
        card = read_bundle(Path(unlearned.path)).card
        write_outputs(answers, outputs.path, task=card.task, levels=quantiles_of(card))
        done = evaluated(
            answers,
            card=card,
            data=data.card,
            forget_classes=read_rows(forget.path)[1]["forget_classes"],
            models={name: models[name].cpu() for name in folders if name in models},
        )
        twice = overlap_of(folders["unlearned"], forget.path, retain.path, holdout.path, data)
        done.metrics.update(twice)
        write_json(Path(evaluation.path, "evaluation.json"), {**done.content, "metrics": done.metrics})
        for name, content in done.pictures.items():
            Path(evaluation.path, name).write_bytes(content)
            record.figure(f"figures/{name}", content)
        for name, value in done.metrics.items():
            metrics.log_metric(name, value)
        if done.confusion:
            per_class.log_confusion_matrix(list(data.card.classes), done.confusion)
        record.metrics(done.metrics)
        record.summary(done.metrics)
