"""The verdict, and the report that explains it."""

from kfp import dsl

from unlearning_components._image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def gate(
    original: dsl.Input[dsl.Model],
    unlearned: dsl.Input[dsl.Model],
    forget: dsl.Input[dsl.Dataset],
    retain: dsl.Input[dsl.Dataset],
    holdout: dsl.Input[dsl.Dataset],
    preview: dsl.Input[dsl.Artifact],
    evaluation: dsl.Input[dsl.Artifact],
    attacks: dsl.Input[dsl.Artifact],
    verdict: dsl.Output[dsl.Artifact],
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
    run: str,
    pipeline: str,
    model: str,
    manifest: str,
    seed: int = 0,
    policy: dict = {},  # type: ignore[type-arg]
    noise: dsl.Input[dsl.Dataset] | None = None,
    retrained: dsl.Input[dsl.Model] | None = None,
    findings: dsl.Input[dsl.Artifact] | None = None,
) -> str:
    """Hold the policy's two-sided bounds against everything measured; what was not measured fails.

    Args:
        original: The model before.
        unlearned: The model after.
        forget: What was forgotten; counted.
        retain: Counted, for the report.
        holdout: Likewise.
        preview: How the distillation went, with its pictures.
        evaluation: From evaluate.
        attacks: From attack.
        verdict: Outcome, gates and reasons as JSON.
        report: One self-contained page.
        summary: The page in short.
        run: The pipeline's MLflow run.
        pipeline: Name of the pipeline, for the report.
        model: Address of the original, for the report.
        manifest: The data set, as for select.
        seed: Of the run, for the report.
        policy: Metric name to {"low": ..., "high": ...}, replacing the default bounds; "none" drops one.
        noise: Its pictures go into the report.
        retrained: A model that never saw what is forgotten, where there is one: the policy then has bounds of distances
            from it.
        findings: From audit, where there was one: the policy then bounds some of them.

    Returns:
        pass, fail or inconclusive.
    """
    from dataclasses import replace
    from pathlib import Path

    from unlearning.config import as_plain
    from unlearning.data.selection import read_rows
    from unlearning.models.bundle import read_bundle
    from unlearning.policy.controls import controls
    from unlearning.policy.gates import judge, policy_for, policy_with
    from unlearning.policy.overlaps import warnings
    from unlearning.reporting.report import render_html, render_markdown
    from unlearning_components.completions import stage_once
    from unlearning_components.handover import read_json, write_json
    from unlearning_components.reports import run_report
    from unlearning_components.surroundings import has_model, tracker

    given = {"pipeline": pipeline, "model": model, "manifest": manifest, "seed": seed, "policy": policy}
    models = [original, unlearned, retrained, forget, retain, holdout]
    reads = [*models, preview, evaluation, attacks, findings, noise]
    with stage_once(run, "gate", given=given, reads=reads, makes=[verdict, report, summary]) as record:
        if record is None:
            return str(read_json(Path(verdict.path, "verdict.json"))["outcome"])
        measured = [read_json(Path(evaluation.path, "evaluation.json")), read_json(Path(attacks.path, "attacks.json"))]
        if findings is not None and (audited := Path(findings.path, "audit.json")).is_file():
            measured.append(read_json(audited))
        metrics, errors = (
            {name: value for part in measured for name, value in part[key].items()}
            for key in ("metrics", "standard_errors")
        )
        request, task = read_rows(forget.path)[1]["request"], read_bundle(Path(unlearned.path)).card.task
        reference = retrained is not None and has_model(retrained.path)
        bounds = policy_with(policy, policy_for(task, request, reference=reference, audit=len(measured) > 2))
        control = controls(metrics, errors, task=task, request=request, reference=reference)
        metrics, errors = {**metrics, **control.metrics}, {**errors, **control.standard_errors}
        decided = judge(metrics, errors, bounds, findings=measured[0]["findings"])
        left_out = [sentence for part in measured[2:] for sentence in part["left_out"]]
        decided = replace(decided, caveats=(*control.sentences, *warnings(metrics), *left_out))
        record.metrics(control.metrics)
        write_json(Path(verdict.path, "verdict.json"), {**as_plain(decided), "reasons": decided.reasons})
        folders = {
            "original": original.path,
            "unlearned": unlearned.path,
            "forget": forget.path,
            "retain": retain.path,
            "holdout": holdout.path,
            **({"noise": noise.path} if noise is not None else {}),
            **({"retrained": retrained.path} if reference and retrained is not None else {}),
            "preview": preview.path,
            "evaluation": evaluation.path,
            "attacks": attacks.path,
            **({"findings": findings.path} if findings is not None else {}),
        }
        seconds = {
            name.removeprefix("seconds."): value
            for name, value in tracker().summary_of(run).items()
            if name.startswith("seconds.")
        }
        page = run_report(
            {name: Path(folder) for name, folder in folders.items()},
            measured=measured,
            verdict=decided,
            seconds=seconds,
            pipeline=pipeline,
            model=model,
            manifest=manifest,
            seed=seed,
        )
        Path(report.path).write_text(render_html(page))
        Path(summary.path).write_text(render_markdown(page))
        for tracked in (record, record.pipeline):
            tracked.text(Path(report.path).read_text(), "report.html")
            tracked.tags({"unlearning.verdict": decided.outcome, "mlflow.note.content": Path(summary.path).read_text()})
        verdict.metadata.update({"outcome": decided.outcome, "reasons": "; ".join(decided.reasons)})
    return decided.outcome
