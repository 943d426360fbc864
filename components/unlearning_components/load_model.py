"""First stage: the model to unlearn from, checked, and the tracked run of the whole pipeline."""

from kfp import dsl

from unlearning_components._image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def load_model(
    original: dsl.Output[dsl.Model],
    model: str,
    method: str,
    request: str,
    pipeline: str,
    job: str,
    manifest: str = "",
    targets: list = [],  # type: ignore[type-arg]
    retain_per_class: int = 0,
    seed: int = 0,
    policy: dict = {},  # type: ignore[type-arg]
    reads: list = ["forget", "retain", "calibration"],  # type: ignore[type-arg]
    reference: str = "none",
    audit: str = "none",
    work: str = "",
) -> str:
    """Fetch the model, check its hashes, and open the pipeline's MLflow run.

    Args:
        original: The checked bundle.
        model: models:/NAME@ALIAS, models:/NAME/VERSION, an object-store address or a folder of a bundle.
        method: The unlearning method; refused when it cannot serve the request.
        request: What is forgotten: class, subject, sample, target or period.
        pipeline: Name of the pipeline, for the run.
        job: Id of this pipeline run; a retry with the same id continues the same MLflow run.
        manifest: The data set, for the run.
        targets: The classes, ranges of the target or periods to forget, for the run.
        retain_per_class: Most retain rows of each class that the method may use, for the run.
        seed: Of every random choice, for the run.
        policy: The gate's bounds, checked here so that a mistake in them costs no training.
        reads: Kinds of rows that the pipeline gives a method; one that reads others is refused.
        reference: Where the retrained model comes from, for the run and the policy's bounds.
        audit: Which deeper attacks there will be, likewise.
        work: The deletion batch and its fencing token, from claim. With the same parameters a batch has one MLflow run,
            whichever pipeline runs work on it, and stages that one of them finished are not run again.

    Returns:
        The id of the pipeline's MLflow run.
    """
    import time
    from pathlib import Path

    from unlearning.data.selection import SPOKEN
    from unlearning.ledger.events import digest_of
    from unlearning.methods import method as method_named
    from unlearning.policy.gates import check_audit, policy_for, policy_with
    from unlearning.tracking.runs import JOB
    from unlearning_components.completions import WORK
    from unlearning_components.surroundings import fetch_model, stage, tracker

    began = time.monotonic()
    bundle = fetch_model(model, Path(original.path))
    method_named(method, request=request, reads=reads, task=bundle.card.task)
    check_audit(audit, task=bundle.card.task, reference=reference)
    there = {"reference": reference != "none", "audit": audit != "none"}
    policy_with(policy, policy_for(bundle.card.task, request, **there))
    runs = tracker()
    runs.prepare()
    parameters = {
        "model": model,
        "method": method,
        "request": request,
        "manifest": manifest,
        "reference": reference,
        "audit": audit,
        "retain_per_class": retain_per_class,
        "seed": seed,
        **({"forget": targets} if request in SPOKEN else {}),
    }
    named = ", ".join(map(str, targets)) if request in SPOKEN else ""
    shown = " ".join(filter(None, (pipeline, named if len(named) <= 40 else f"{named[:39]}…", method)))
    tags = {"unlearning.pipeline": pipeline, JOB: job, **({WORK: work} if work else {})}
    key = f"batch/{work.partition(':')[0]}/{digest_of(parameters)[:12]}" if work else job
    run = runs.open_run(shown, key, parameters, tags)
    print(f"tracked as MLflow run {run}")
    with stage(run, "load_model", began=began) as record:
        record.params({"architecture": bundle.card.architecture, "digest": bundle.digest})
        original.metadata.update({"digest": bundle.digest, "architecture": bundle.card.architecture, "uri": model})
    print(f"tracked as MLflow run {run}")
    return run
