"""Which rows to forget, which to retain, and which were never trained on."""

from kfp import dsl

from unlearning_components._image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def select(
    original: dsl.Input[dsl.Model],
    forget: dsl.Output[dsl.Dataset],
    retain: dsl.Output[dsl.Dataset],
    holdout: dsl.Output[dsl.Dataset],
    run: str,
    manifest: str,
    request: str,
    targets: list = [],  # type: ignore[type-arg]
    ids: str = "",
    retain_per_class: int = 1000,
    seed: int = 0,
) -> None:
    """Resolve the request to row numbers of the manifest; no ids leave this stage.

    Args:
        original: The model, whose inputs and classes the manifest must fit.
        forget: Training rows to forget.
        retain: Training rows to keep, and those of them that the method may use.
        holdout: Held-out rows, apart for what is forgotten and what is not.
        run: The pipeline's MLflow run.
        manifest: A source such as "digits", or the address of a .parquet manifest.
        request: class, subject, sample, target or period.
        targets: Class names (or indices), ranges of the target ("0:80"), or periods ("2017-03").
        ids: For other requests: address of a text file with one id on each line, or "share:0.04".
        retain_per_class: Most retain rows of each class that the method may use; 0 for all.
        seed: Of the draw of those rows.
    """
    from pathlib import Path

    from unlearning.data.selection import SPOKEN, write_rows
    from unlearning.models.bundle import read_bundle
    from unlearning_components.surroundings import fetch_manifest, ids_at, rows_for, stage

    with stage(run, "select") as record:
        data = fetch_manifest(manifest)
        card = read_bundle(Path(original.path)).card
        wanted = targets if request in SPOKEN else ids_at(ids, data, request, seed=seed)
        chosen = rows_for(card, data, request, wanted, retain_per_class=retain_per_class, seed=seed)
        parts = ("forget", "retain", "available", "holdout_forget", "holdout_retain", "calibration")
        rows = {part: getattr(chosen, part) for part in parts}
        meta = {"manifest": data.digest, "forget_classes": list(chosen.forget_classes), "request": request}
        for artifact, kept in ((forget, parts[:1]), (retain, parts[1:3]), (holdout, parts[3:])):
            write_rows(artifact.path, meta=meta, **{part: rows[part] for part in kept})
            artifact.metadata.update({"manifest": data.digest, **{part: str(len(rows[part])) for part in kept}})
        counts = {f"rows.{part}": float(len(values)) for part, values in rows.items()}
        for tracked in (record, record.pipeline):
            tracked.dataset(data.card.name, data.digest, "training", rows=len(data), source=data.card.source)
            tracked.metrics(counts)
