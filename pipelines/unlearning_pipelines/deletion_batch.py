"""Serve the deletion requests that wait: claim, unlearn, judge, promote, certify, close."""

from kfp import dsl

from unlearning_components.attack import attack
from unlearning_components.claim import claim
from unlearning_components.evaluate import evaluate
from unlearning_components.gate import gate
from unlearning_components.retrain import retrain
from unlearning_components.settle import settle
from unlearning_pipelines.tasks import begin, change, task


@dsl.pipeline(name="deletion-batch", description="Serve the deletion requests that wait about one model")
def deletion_batch(
    name: str = "digits",
    manifest: str = "digits",
    limit: int = 0,
    lease_hours: float = 6.0,
    retain_per_class: int = 0,
    policies: dict = {},  # type: ignore[type-arg]
    ladder: dict = {},  # type: ignore[type-arg]
    reference: str = "none",
    cadence_days: float = 7.0,
    seed: int = 0,
) -> None:
    """Claim; then, if any request waits: load, select, unlearn, retrain if asked, evaluate and attack, gate, settle.

    Args:
        name: The registered model; its champion is what forgets.
        manifest: A data source such as "digits", or the address of a .parquet manifest.
        limit: At most so many requests; 0 for all that fit together.
        lease_hours: How long nobody else may take the batch over; longer than a run takes.
        retain_per_class: Most retain rows of each class that the method may use; 0 for all.
        policies: Kind of request to gate bounds that differ from the default, such as {"class":
            {"retain_accuracy_drop.test": {"high": 0.1}}}.
        ladder: Kind of request to a list of methods by rung, such as {"class": [{"method": "unsir"}]}.
        reference: A model retrained without what is forgotten, which the verdict is then held against too: "train"
            trains one by the model's recipe, or give its address; "none": held-out rows alone stand in for it.
        cadence_days: Until the next run. What is due before that is retrained at once: there is time for one try only.
        seed: Of every random choice; the same seed gives the same model.
    """
    job = f"{dsl.PIPELINE_JOB_NAME_PLACEHOLDER}/{dsl.PIPELINE_JOB_ID_PLACEHOLDER}"
    more = {"limit": limit, "lease_hours": lease_hours, "ladder": ladder, "policies": policies}
    when = {"reference": reference, "cadence_days": cadence_days, "seed": seed}
    claimed = task(claim(name=name, manifest=manifest, job=job, **more, **when))
    with dsl.If(claimed.outputs["Output"] > 0, name="requests-wait"):
        what = {key: claimed.outputs[key] for key in ("model", "method", "work")}
        begun = begin(
            "deletion_batch",
            request=claimed.outputs["kind"],
            forget=claimed.outputs["targets"],
            ids=claimed.outputs["ids"],
            manifest=manifest,
            retain_per_class=retain_per_class,
            policy=claimed.outputs["policy"],
            reference=reference,
            seed=seed,
            **what,
        )
        changed = change(begun, method=what["method"], settings=claimed.outputs["settings"], seed=seed)
        rows = {"forget": begun.forget, "retain": begun.retain, "holdout": begun.holdout}
        common = {"run": begun.run, "manifest": manifest}
        seen = {"original": begun.original, "forget": begun.forget, "retain": begun.retain}
        retrained = task(retrain(**seen, **common, reference=reference, seed=seed)).outputs["retrained"]
        both = {"original": begun.original, "unlearned": changed.unlearned, "retrained": retrained, **common}
        found = task(evaluate(**both, **rows)).outputs
        attacks = task(attack(outputs=found["outputs"], run=begun.run, seed=seed)).outputs["attacks"]
        shown = {"preview": changed.preview, "noise": changed.noise, "pipeline": "deletion_batch"}
        measured = {"evaluation": found["evaluation"], "attacks": attacks, "model": what["model"]}
        judged = task(gate(**both, **rows, **shown, **measured, seed=seed, policy=claimed.outputs["policy"]))
        verdict = judged.outputs["verdict"]
        task(settle(batch=claimed.outputs["batch"], unlearned=changed.unlearned, verdict=verdict, run=begun.run))
