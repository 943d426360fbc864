"""Forget whole classes, with some retain data at hand."""

from typing import NamedTuple

from kfp import dsl

from unlearning_components.attack import attack
from unlearning_components.evaluate import evaluate
from unlearning_components.gate import gate
from unlearning_components.impair import impair
from unlearning_components.load_model import load_model
from unlearning_components.promote import promote
from unlearning_components.repair import repair
from unlearning_components.select import select
from unlearning_components.synthesize import synthesize
from unlearning_pipelines.tasks import task


class Outcome(NamedTuple):
    """What a run of the pipeline gives."""

    run: str
    verdict: str
    model_uri: str
    report: dsl.HTML


@dsl.pipeline(name="delete-class", description="Make a trained classifier forget whole classes, and prove it")
def delete_class(
    model: str = "models:/digits@champion",
    manifest: str = "digits",
    forget: list = ["3"],  # type: ignore[type-arg]
    register_as: str = "digits",
    method: str = "unsir",
    settings: dict = {},  # type: ignore[type-arg]
    retain_per_class: int = 1000,
    policy: dict = {},  # type: ignore[type-arg]
    seed: int = 0,
) -> Outcome:
    """Load, select, synthesize, impair, repair, evaluate and attack, gate, promote.

    Args:
        model: models:/NAME@ALIAS, models:/NAME/VERSION, or the address of a bundle.
        manifest: A data source such as "digits", or the address of a .parquet manifest.
        forget: Names (or indices) of the classes to forget.
        register_as: The registered model that gets the new version.
        method: The unlearning method; see "unlearn methods".
        settings: The method's settings, such as {"preset": "paper"}; what is left out follows the method's rule.
        retain_per_class: Most retain rows of each class that the method may use; 0 for all.
        policy: Gate bounds that differ from the default, such as {"retain_accuracy_drop.test": {"high": 0.1}}.
        seed: Of every random choice; the same seed gives the same model.
    """
    loaded = task(
        load_model(
            model=model,
            method=method,
            request="class",
            pipeline="delete_class",
            job=f"{dsl.PIPELINE_JOB_NAME_PLACEHOLDER}/{dsl.PIPELINE_JOB_ID_PLACEHOLDER}",
            manifest=manifest,
            targets=forget,
            retain_per_class=retain_per_class,
            seed=seed,
            policy=policy,
        )
    )
    run, original = loaded.outputs["Output"], loaded.outputs["original"]
    data = {"run": run, "manifest": manifest}
    chosen = task(
        select(original=original, **data, request="class", targets=forget, retain_per_class=retain_per_class, seed=seed)
    )
    rows = {"forget": chosen.outputs["forget"], "retain": chosen.outputs["retain"]}
    how = {**data, "method": method, "settings": settings, "seed": seed}
    noise = task(synthesize(original=original, **rows, **how)).outputs["noise"]
    impaired = task(impair(original=original, noise=noise, **rows, **how)).outputs["impaired"]
    unlearned = task(repair(original=original, impaired=impaired, **rows, **how)).outputs["unlearned"]
    both = {"original": original, "unlearned": unlearned, **data}
    evaluation = task(evaluate(**both, **rows, holdout=chosen.outputs["holdout"])).outputs["evaluation"]
    attacks = task(attack(**both, **rows, holdout=chosen.outputs["holdout"], seed=seed)).outputs["attacks"]
    judged = task(
        gate(
            **both,
            forget=rows["forget"],
            noise=noise,
            evaluation=evaluation,
            attacks=attacks,
            pipeline="delete_class",
            model=model,
            seed=seed,
            policy=policy,
        )
    )
    promoted = task(promote(unlearned=unlearned, verdict=judged.outputs["verdict"], run=run, register_as=register_as))
    return Outcome(
        run=run,
        verdict=judged.outputs["Output"],
        model_uri=promoted.outputs["Output"],
        report=judged.outputs["report"],
    )
