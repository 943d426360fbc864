"""Deeper attacks, where they are asked for."""

from kfp import dsl

from unlearning_components._image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def audit(
    original: dsl.Input[dsl.Model],
    unlearned: dsl.Input[dsl.Model],
    retrained: dsl.Input[dsl.Model],
    forget: dsl.Input[dsl.Dataset],
    retain: dsl.Input[dsl.Dataset],
    holdout: dsl.Input[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    findings: dsl.Output[dsl.Artifact],
    run: str,
    manifest: str,
    audit: str = "attacks",
    seed: int = 0,
) -> None:
    """Attack features, inputs and relearning beside the retrained model, and audit the method with shadows, or pass.

    Shadow models are kept in the object store one by one: an audit that was cut off goes on with the next one.

    Args:
        original: The model before.
        unlearned: The model after.
        retrained: A model that never saw what is forgotten.
        forget: Forgotten training rows.
        retain: Retained training rows.
        holdout: Rows that no model was trained on.
        metrics: What each attack reached.
        findings: All of it as JSON, with figures; empty for "none".
        run: The pipeline's MLflow run.
        manifest: The data set, as for select.
        audit: "none", "attacks", or "shadows:16": the attacks, and as many shadow models.
        seed: Of every random choice.
    """
    from pathlib import Path

    from unlearning_components.surroundings import stage

    if audit == "none":
        with stage(run, "audit"):
            Path(findings.path).mkdir(parents=True, exist_ok=True)
        return

    from unlearning_components.audits import run_audit
    from unlearning_components.handover import write_json

    with stage(run, "audit") as record:
        folders = {
            "original": original.path,
            "unlearned": unlearned.path,
            "retrained": retrained.path,
            "forget": forget.path,
            "retain": retain.path,
            "holdout": holdout.path,
        }
        done = run_audit(
            {name: Path(folder) for name, folder in folders.items()}, manifest=manifest, how=audit, seed=seed
        )
        write_json(Path(findings.path, "audit.json"), done.content)
        for name, content in done.pictures.items():
            Path(findings.path, name).write_bytes(content)
            record.figure(f"figures/{name}", content)
        for name, value in done.content["metrics"].items():
            metrics.log_metric(name, value)
        record.metrics(done.content["metrics"])
        record.summary(done.content["metrics"])
