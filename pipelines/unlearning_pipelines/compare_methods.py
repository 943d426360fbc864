"""Which method should I use on my model? All that apply, beside a model that never saw what is to be forgotten."""

from typing import NamedTuple

from kfp import dsl

from unlearning_components.compare import compare
from unlearning_components.retrain import retrain
from unlearning_pipelines.tasks import begin, task


class Comparison(NamedTuple):
    """What a comparison gives."""

    run: str
    report: dsl.HTML
    summary: dsl.Markdown


@dsl.pipeline(name="compare-methods", description="Run every method that applies, and hold it against retraining")
def compare_methods(
    model: str = "models:/digits@champion",
    manifest: str = "digits",
    request: str = "class",
    forget: list = ["3"],  # type: ignore[type-arg]
    ids: str = "share:0.04",
    reference: str = "train",
    methods: list = [],  # type: ignore[type-arg]
    settings: dict = {},  # type: ignore[type-arg]
    seeds: int = 3,
    retain_per_class: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Load, select, retrain or fetch the reference, compare. No model is registered.

    Args:
        model: models:/NAME@ALIAS, models:/NAME/VERSION, or the address of a bundle.
        manifest: A data source such as "digits", or the address of a .parquet manifest.
        request: What is forgotten: class, sample or subject.
        forget: Names (or indices) of the classes, when the request is class.
        ids: Otherwise: address of a text file with one id on each line, or "share:0.04", as for delete_samples.
        reference: "train": one by the model's recipe, or the address of a model retrained without what is to be
            forgotten.
        methods: Names of those to compare; empty: all that serve the request.
        settings: Method to settings, such as {"unsir": {"preset": "paper"}}.
        seeds: Runs of each method, each with its own seed.
        retain_per_class: Most retain rows of each class that a method may use; 0 for all.
        seed: Of the first run, and of the reference's training.
    """
    data = {"manifest": manifest, "forget": forget, "ids": ids, "retain_per_class": retain_per_class, "seed": seed}
    begun = begin(
        "compare_methods", request=request, model=model, method="retrain", policy={}, reference=reference, **data
    )
    common = {"original": begun.original, "forget": begun.forget, "retain": begun.retain}
    common |= {"run": begun.run, "manifest": manifest, "seed": seed}
    retrained = task(retrain(reference=reference, **common)).outputs["retrained"]
    what = {"model": model, "methods": methods, "settings": settings, "seeds": seeds}
    compared = task(compare(retrained=retrained, holdout=begun.holdout, **what, **common))
    return Comparison(run=begun.run, report=compared.outputs["report"], summary=compared.outputs["summary"])
