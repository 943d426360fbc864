"""Forget rows, or all rows of people."""

from kfp import dsl

from unlearning_components.distill import distill
from unlearning_pipelines.tasks import Changed, Outcome, begin, conclude, task


@dsl.pipeline(name="delete-samples", description="Make a trained classifier forget rows or people, and prove it")
def delete_samples(
    model: str = "models:/digits@champion",
    manifest: str = "digits",
    request: str = "sample",
    ids: str = "share:0.04",
    register_as: str = "digits",
    method: str = "incompetent_teacher",
    settings: dict = {},  # type: ignore[type-arg]
    retain_per_class: int = 0,
    policy: dict = {},  # type: ignore[type-arg]
    reference: str = "none",
    audit: str = "none",
    seed: int = 0,
) -> Outcome:
    """Load, select, distill, evaluate and attack, gate, promote.

    Args:
        model: models:/NAME@ALIAS, models:/NAME/VERSION, or the address of a bundle.
        manifest: A data source such as "digits", or the address of a .parquet manifest.
        request: What the ids are of: sample or subject.
        ids: Address of a text file with one id on each line, exactly as the manifest has them; ids do not belong into
            parameters. Or "share:0.04": that share of the rows or people, at random, to try it out.
        register_as: The registered model that gets the new version.
        method: The unlearning method; see "unlearn methods".
        settings: The method's settings, such as {"epochs": 5}; what is left out follows the method's rule.
        retain_per_class: Most retain rows of each class that the method may use; 0 for all.
        policy: Gate bounds that differ from the default, such as {"retain_accuracy_drop.test": {"high": 0.1}}.
        reference: A model retrained without what is forgotten, which the verdict is then held against too: "train"
            trains one by the model's recipe, or give its address; "none": held-out rows alone stand in for it.
        audit: Deeper attacks, beside the retrained model: "attacks" relearns, inverts and probes; "shadows:16" also
            makes so many shadow models by the same recipe and method, each a training more; "none".
        seed: Of every random choice; the same seed gives the same model.
    """
    data = {"manifest": manifest, "ids": ids, "retain_per_class": retain_per_class, "seed": seed}
    begun = begin(
        "delete_samples",
        request=request,
        model=model,
        method=method,
        policy=policy,
        reference=reference,
        audit=audit,
        **data,
    )
    rows = {"forget": begun.forget, "retain": begun.retain, "holdout": begun.holdout}
    how = {"run": begun.run, "manifest": manifest, "method": method, "settings": settings, "seed": seed}
    taught = task(distill(original=begun.original, model=begun.original, **rows, **how))
    changed = Changed(taught.outputs["unlearned"], taught.outputs["preview"])
    return conclude(
        begun,
        changed,
        pipeline="delete_samples",
        model=model,
        policy=policy,
        register_as=register_as,
        reference=reference,
        depth=audit,
        seed=seed,
    )
