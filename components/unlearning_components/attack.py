"""Attacks that try to find traces of the forgotten rows."""

from kfp import dsl

from unlearning_components._image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def attack(
    original: dsl.Input[dsl.Model],
    unlearned: dsl.Input[dsl.Model],
    forget: dsl.Input[dsl.Dataset],
    retain: dsl.Input[dsl.Dataset],
    holdout: dsl.Input[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    roc: dsl.Output[dsl.ClassificationMetrics],
    attacks: dsl.Output[dsl.Artifact],
    run: str,
    manifest: str,
    seed: int = 0,
    retrained: dsl.Input[dsl.Model] | None = None,
) -> None:
    """Run membership inference against the models.

    Args:
        original: The model before: attacks should succeed here.
        unlearned: The model after: attacks should do no better than chance, on either side of it.
        forget: Forgotten training rows.
        retain: Retained training rows.
        holdout: Rows that neither model was trained on.
        metrics: What each attack reached.
        roc: The population attack's curve on the unlearned model's forgotten rows, by entropy or by residual.
        attacks: All of it as JSON, with the curves as a figure.
        run: The pipeline's MLflow run.
        manifest: The data set, as for select.
        seed: Of the attacks' random draws.
        retrained: A model that never saw what is forgotten, where there is one.
    """
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from unlearning.models.bundle import read_bundle
    from unlearning.reporting.figures import roc_curves
    from unlearning_components.completions import stage_once
    from unlearning_components.evaluations import attacked
    from unlearning_components.handover import write_json
    from unlearning_components.surroundings import fetch_manifest, further_references, outputs_of

    given = {"manifest": manifest, "seed": seed}
    with stage_once(
        run,
        "attack",
        given=given,
        reads=[original, unlearned, retrained, forget, retain, holdout],
        makes=[metrics, roc, attacks],
    ) as record:
        if record is None:
            return
        data = fetch_manifest(manifest)
        folders = {"original": original.path, "unlearned": unlearned.path}
        folders |= {} if retrained is None else {"retrained": retrained.path}
        with TemporaryDirectory() as folder:
            further = further_references(folders.get("retrained", ""), data, Path(folder))
            _, outputs = outputs_of(folders | further, forget.path, retain.path, holdout.path, data)
        card = read_bundle(Path(unlearned.path)).card
        report = attacked(outputs, card=card, seed=seed)
        statistic = "residual" if card.task == "regression" else "entropy"
        counts = {
            name: {"members": curve.members, "non_members": curve.non_members} for name, curve in report.curves.items()
        }
        write_json(
            Path(attacks.path, "attacks.json"),
            {"metrics": report.metrics, "standard_errors": report.standard_errors, "counts": counts},
        )
        shown = {
            f"{asked} rows, {model} model": report.curves[f"{statistic}.{asked}.{model}"].thinned()
            for asked in ("forget", "retain")
            for model in folders
            if model in outputs
            if model != "retrained" or asked == "forget"
        }
        figure = roc_curves(
            {name: (curve.false_positive_rates, curve.true_positive_rates, curve.auc) for name, curve in shown.items()}
        )
        Path(attacks.path, "roc_curves.svg").write_bytes(figure)
        record.figure("figures/roc_curves.svg", figure)
        curve = shown["forget rows, unlearned model"]
        rates = zip(curve.false_positive_rates[1:], curve.true_positive_rates[1:], curve.thresholds[1:], strict=True)
        for fpr, tpr, threshold in rates:
            roc.log_roc_data_point(float(fpr), float(tpr), float(threshold))
        for name, value in report.metrics.items():
            metrics.log_metric(name, value)
        record.metrics(report.metrics)
        record.summary(report.metrics)
