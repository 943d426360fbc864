"""Forget whole classes by a method that reads no data; data serve to prove it, and for nothing else."""

from kfp import dsl

from unlearning_pipelines.tasks import Outcome, begin, change, conclude


@dsl.pipeline(
    name="delete-class-zero-shot",
    description="Make a trained classifier forget whole classes without showing the method any data",
)
def delete_class_zero_shot(
    model: str = "models:/digits@champion",
    manifest: str = "digits",
    forget: list = ["3"],  # type: ignore[type-arg]
    register_as: str = "digits",
    method: str = "gated_transfer",
    settings: dict = {},  # type: ignore[type-arg]
    policy: dict = {},  # type: ignore[type-arg]
    reference: str = "none",
    audit: str = "none",
    seed: int = 0,
) -> Outcome:
    """Load, select rows to prove it with, change by the method's stages, evaluate and attack, gate, promote.

    Args:
        model: models:/NAME@ALIAS, models:/NAME/VERSION, or the address of a bundle.
        manifest: A data source such as "digits", or the address of a .parquet manifest; for the verdict alone.
        forget: Names (or indices) of the classes to forget.
        register_as: The registered model that gets the new version.
        method: The unlearning method; see "unlearn methods".
        settings: The method's settings, such as {"cycles": 800}; what is left out follows the method's rule.
        policy: Gate bounds that differ from the default, such as {"retain_accuracy_drop.test": {"high": 0.1}}.
        reference: A model retrained without what is forgotten, which the verdict is then held against too: "train"
            trains one by the model's recipe, or give its address; "none": held-out rows alone stand in for it.
        audit: Deeper attacks, beside the retrained model: "attacks" relearns, inverts and probes; "shadows:16" also
            makes so many shadow models by the same recipe and method, each a training more; "none".
        seed: Of every random choice; the same seed gives the same model.
    """
    data = {"manifest": manifest, "forget": forget, "retain_per_class": 1, "seed": seed}
    begun = begin(
        "delete_class_zero_shot",
        request="class",
        reads=[],
        model=model,
        method=method,
        policy=policy,
        reference=reference,
        audit=audit,
        **data,
    )
    changed = change(begun, method=method, settings=settings, seed=seed)
    return conclude(
        begun,
        changed,
        pipeline="delete_class_zero_shot",
        model=model,
        policy=policy,
        register_as=register_as,
        reference=reference,
        depth=audit,
        seed=seed,
    )
