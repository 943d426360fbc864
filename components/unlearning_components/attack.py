"""Attacks that try to find traces of the forgotten rows."""

from kfp import dsl

from unlearning_components._image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def attack(
    outputs: dsl.Input[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    roc: dsl.Output[dsl.ClassificationMetrics],
    attacks: dsl.Output[dsl.Artifact],
    run: str,
    seed: int = 0,
) -> None:
    """Run membership inference against the models, on what they answered in `evaluate`.

    Args:
        outputs: From evaluate. On the original attacks should succeed; on the unlearned model they should do no better
            than chance, on either side of it.
        metrics: What each attack reached.
        roc: The population attack's curve on the unlearned model's forgotten rows, by entropy or by residual.
        attacks: All of it as JSON, with the curves as a figure.
        run: The pipeline's MLflow run.
        seed: Of the attacks' random draws.
    """
    from pathlib import Path

    from unlearning.attacks.membership import MODELS
    from unlearning.reporting.figures import roc_curves
    from unlearning_components.completions import stage_once
    from unlearning_components.evaluations import attacked
    from unlearning_components.handover import read_outputs, write_json

    with stage_once(run, "attack", given={"seed": seed}, reads=[outputs], makes=[metrics, roc, attacks]) as record:
        if record is None:
            return
        answers, task, levels = read_outputs(outputs.path)
        report = attacked(answers, task=task, levels=levels, seed=seed)
        statistic = "residual" if task == "regression" else "entropy"
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
            for model in MODELS
            if model in answers
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
