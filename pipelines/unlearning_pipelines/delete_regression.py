"""Forget rows, people or a range of values from a model that predicts values."""

from kfp import dsl

from unlearning_components.distill import distill
from unlearning_pipelines.tasks import Changed, Outcome, begin, conclude, task


@dsl.pipeline(name="delete-regression", description="Make a trained regressor forget rows or values, and prove it")
def delete_regression(
    model: str = "models:/diabetes@champion",
    manifest: str = "diabetes",
    request: str = "target",
    forget: list = ["0:80"],  # type: ignore[type-arg]
    ids: str = "share:0.1",
    register_as: str = "diabetes",
    method: str = "blindspot",
    settings: dict = {},  # type: ignore[type-arg]
    policy: dict = {},  # type: ignore[type-arg]
    reference: str = "none",
    audit: str = "none",
    seed: int = 0,
) -> Outcome:
    """Load, select, distill, evaluate and attack, gate, promote.

    Args:
        model: models:/NAME@ALIAS, models:/NAME/VERSION, or the address of a bundle.
        manifest: A data source such as "diabetes", or the address of a .parquet manifest.
        request: What is forgotten: target (ranges of the value), period (of time), sample or subject.
        forget: When the request is target, ranges of it: "0:80" means from 0 to below 80; ":80" and "80:" are open on
            one side. When it is period, months, days or hours ("2017-03", "2017-03-01T05"), or ranges of them
            ("2017-03-01/2017-03-08", the last one left out).
        ids: Otherwise: address of a text file with one id on each line, exactly as the manifest has them; ids do not
            belong into parameters. Or "share:0.1": that share of the rows or people, at random, to try it out.
        register_as: The registered model that gets the new version.
        method: The unlearning method; see "unlearn methods".
        settings: The method's settings, such as {"epochs": 5}; what is left out follows the method's rule.
        policy: Gate bounds that differ from the default, such as {"retain_error_rise.test": {"high": 0.2}}.
        reference: A model retrained without what is forgotten, which the verdict is then held against too: "train"
            trains one by the model's recipe, or give its address; "none": held-out rows alone stand in for it.
        audit: Deeper attacks, beside the retrained model: "attacks" relearns, probes and holds before against after;
            what asks classifiers alone is left out, and said so; "none".
        seed: Of every random choice; the same seed gives the same model.
    """
    data = {"manifest": manifest, "forget": forget, "ids": ids, "retain_per_class": 0, "seed": seed}
    begun = begin(
        "delete_regression",
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
        pipeline="delete_regression",
        model=model,
        policy=policy,
        register_as=register_as,
        reference=reference,
        depth=audit,
        seed=seed,
    )
