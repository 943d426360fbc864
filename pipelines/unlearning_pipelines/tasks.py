"""What pipelines have in common, put together when they are compiled: how they begin, how they conclude."""

from typing import Any, NamedTuple

from kfp import dsl

from unlearning_components.attack import attack
from unlearning_components.audit import audit
from unlearning_components.distill import distill
from unlearning_components.evaluate import evaluate
from unlearning_components.gate import gate
from unlearning_components.impair import impair
from unlearning_components.load_model import load_model
from unlearning_components.promote import promote
from unlearning_components.repair import repair
from unlearning_components.retrain import retrain
from unlearning_components.select import select
from unlearning_components.synthesize import synthesize
from unlearning_pipelines.placement import place


class Outcome(NamedTuple):
    """What a deletion pipeline gives."""

    run: str
    verdict: str
    model_uri: str
    report: dsl.HTML


class Begun(NamedTuple):
    """What the later stages of a pipeline read: outputs of load_model and select."""

    run: Any
    original: Any
    manifest: Any
    forget: Any
    retain: Any
    holdout: Any


def task(started: Any) -> Any:
    """The task, never cached: every stage reads mutable state (registry, store, ledger) or writes to MLflow.

    On a cluster it stands as the settings in force want it.
    """
    return place(started.set_caching_options(False), started.component_spec.name.replace("-", "_"))


def begin(
    pipeline: str,
    *,
    manifest: Any,
    request: Any,
    retain_per_class: Any,
    seed: Any,
    forget: Any = None,
    ids: Any = None,
    **more: Any,
) -> Begun:
    """load_model and select.

    Args:
        pipeline: Its name.
        manifest: The data set.
        request: What is forgotten: class, subject, sample, target or period.
        retain_per_class: Most retain rows of each class.
        seed: Of the run.
        forget: The classes, for a pipeline that takes some.
        ids: Where the ids are, for a pipeline that takes some.
        **more: Of load_model: model, method, policy, reads, reference, audit, work.
    """
    data = {"manifest": manifest, "request": request, "retain_per_class": retain_per_class, "seed": seed}
    data |= {} if forget is None else {"targets": forget}
    job = f"{dsl.PIPELINE_JOB_NAME_PLACEHOLDER}/{dsl.PIPELINE_JOB_ID_PLACEHOLDER}"
    loaded = task(load_model(pipeline=pipeline, job=job, **data, **more))
    run, original = loaded.outputs["Output"], loaded.outputs["original"]
    where = {} if ids is None else {"ids": ids}
    chosen = task(select(original=original, run=run, **data, **where))
    return Begun(run, original, manifest, *(chosen.outputs[part] for part in ("forget", "retain", "holdout")))


class Changed(NamedTuple):
    """The unlearned model and what there is to show of its making."""

    unlearned: Any
    preview: Any
    noise: Any = None


def change(begun: Begun, *, method: Any, settings: Any, seed: Any) -> Changed:
    """All four stages that may change a model; those that the method lacks pass it on."""
    rows = {"forget": begun.forget, "retain": begun.retain}
    how = {"run": begun.run, "manifest": begun.manifest, "method": method, "settings": settings, "seed": seed}
    original = begun.original
    noise = task(synthesize(original=original, **rows, **how)).outputs["noise"]
    impaired = task(impair(original=original, noise=noise, **rows, **how)).outputs["impaired"]
    repaired = task(repair(original=original, impaired=impaired, noise=noise, **rows, **how)).outputs["repaired"]
    taught = task(distill(original=original, model=repaired, holdout=begun.holdout, **rows, **how))
    return Changed(taught.outputs["unlearned"], taught.outputs["preview"], noise)


def conclude(
    begun: Begun,
    changed: Changed,
    *,
    pipeline: str,
    model: Any,
    policy: Any,
    register_as: Any,
    reference: Any,
    depth: Any,
    seed: Any,
) -> Outcome:
    """Retrain a reference if one is wanted, evaluate and attack, audit if that is wanted, gate, promote.

    Args:
        begun: From `begin`.
        changed: From `change`, or of the same kind.
        pipeline: Its name.
        model: Address of the original.
        policy: Bounds that differ from the default.
        register_as: The registered model that gets the new version.
        reference: Where the retrained model comes from.
        depth: Which deeper attacks there are: the pipeline's parameter `audit`.
        seed: Of the run.
    """
    common = {"run": begun.run, "manifest": begun.manifest, "seed": seed, "reference": reference}
    seen = {"original": begun.original, "forget": begun.forget, "retain": begun.retain}
    retrained = task(retrain(**seen, **common)).outputs["retrained"]
    rows = {"forget": begun.forget, "retain": begun.retain, "holdout": begun.holdout}
    both = {"original": begun.original, "unlearned": changed.unlearned, "retrained": retrained}
    both |= {"run": begun.run, "manifest": begun.manifest}
    found = task(evaluate(**both, **rows)).outputs
    attacks = task(attack(outputs=found["outputs"], run=begun.run, seed=seed)).outputs["attacks"]
    findings = task(audit(**both, **rows, audit=depth, seed=seed)).outputs["findings"]
    judged = task(
        gate(
            **both,
            **rows,
            preview=changed.preview,
            evaluation=found["evaluation"],
            attacks=attacks,
            findings=findings,
            pipeline=pipeline,
            model=model,
            seed=seed,
            policy=policy,
            **({} if changed.noise is None else {"noise": changed.noise}),
        )
    )
    verdict = judged.outputs["verdict"]
    promoted = task(promote(unlearned=changed.unlearned, verdict=verdict, run=begun.run, register_as=register_as))
    return Outcome(
        run=begun.run,
        verdict=judged.outputs["Output"],
        model_uri=promoted.outputs["Output"],
        report=judged.outputs["report"],
    )
