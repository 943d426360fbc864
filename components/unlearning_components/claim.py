"""First stage of a deletion batch: which requests are served now, and how."""

from kfp import dsl

from unlearning_components._image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def claim(
    batch: dsl.Output[dsl.Artifact],
    kind: dsl.OutputPath(str),  # type: ignore[valid-type]
    targets: dsl.OutputPath(list),  # type: ignore[valid-type]
    ids: dsl.OutputPath(str),  # type: ignore[valid-type]
    model: dsl.OutputPath(str),  # type: ignore[valid-type]
    method: dsl.OutputPath(str),  # type: ignore[valid-type]
    settings: dsl.OutputPath(dict),  # type: ignore[valid-type]
    policy: dsl.OutputPath(dict),  # type: ignore[valid-type]
    work: dsl.OutputPath(str),  # type: ignore[valid-type]
    name: str,
    manifest: str,
    job: str,
    limit: int = 0,
    lease_hours: float = 6.0,
    seed: int = 0,
    ladder: dict = {},  # type: ignore[type-arg]
    policies: dict = {},  # type: ignore[type-arg]
    reference: str = "none",
    cadence_days: float = 7.0,
) -> int:
    """Claim the most urgent requests about a model, and say what the stages need to know of them.

    Args:
        batch: The claim, for settle.
        kind: What they are about: class, subject, sample, target or period.
        targets: The classes, ranges of the target or periods, for requests about those.
        ids: For others: where select finds the ids, in the restricted prefix.
        model: Address of the model to start from.
        method: The unlearning method of their rung.
        settings: The method's settings.
        policy: Gate bounds of their kind that differ from the default.
        work: The batch and its fencing token: under it the stages keep what they finished.
        name: The registered model.
        manifest: The data set.
        job: Id of this pipeline run; when the stage is tried again with it, it goes on with its own batch.
        limit: At most so many requests; 0 for all that fit together.
        lease_hours: How long nobody else may take the batch over.
        seed: Of every random choice.
        ladder: Kind of request to a list of {"method": ..., "settings": ...}, by rung.
        policies: Kind of request to gate bounds that differ from the default.
        reference: Where the retrained model comes from; the policies may then bound distances from it.
        cadence_days: Until the next run; what is due before that is retrained at once.

    Returns:
        How many requests the batch has; 0 when none wait, and then nothing else runs.
    """
    import hashlib
    import json
    from pathlib import Path
    from typing import Any

    from unlearning_components.bookkeeping import next_batch

    found = next_batch(
        name,
        manifest,
        owner=f"batch-run-{hashlib.sha256(job.encode()).hexdigest()[:32]}",
        limit=limit,
        lease_hours=lease_hours,
        seed=seed,
        ladder=ladder,
        policies=policies,
        reference=reference,
        cadence_days=cadence_days,
        into=Path(batch.path),
    )
    nothing = {
        "targets": [],
        "settings": {},
        "policy": {},
        "count": 0,
        "kind": "",
        "ids": "",
        "model": "",
        "method": "",
        "work": "",
    }
    about: dict[str, Any] = found or nothing
    if found is None:
        print("nothing waits: no batch, no new version")
        Path(batch.path).mkdir(parents=True, exist_ok=True)
    places = {"kind": kind, "targets": targets, "ids": ids, "model": model, "method": method, "work": work}
    for key, path in {**places, "settings": settings, "policy": policy}.items():
        value = about[key]
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(value if isinstance(value, str) else json.dumps(value))
    batch.metadata.update({"requests": str(about["count"]), "kind": about["kind"], "method": about["method"]})
    return int(about["count"])
