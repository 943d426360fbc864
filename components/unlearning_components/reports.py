"""From a run's artifacts to the report's facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from unlearning.data.selection import read_rows
from unlearning.methods import METHODS
from unlearning.models.bundle import read_bundle
from unlearning.policy.gates import Verdict
from unlearning.reporting.report import AttackRow, ClassRow, RunReport
from unlearning_components.handover import read_json
from unlearning_components.surroundings import fetch_manifest

REFERENCE = (
    "No model retrained without the forgotten rows was compared with. Held-out rows stand in for it: what the model "
    "does on forgotten rows is held against what it does on rows {of} that it was never trained on. That is the weaker "
    "claim: how hard the rows are by themselves is part of the difference."
)
RETRAINED = (
    "Compared with a model retrained without the forgotten rows ({which}), and with held-out rows {of} that neither "
    "was trained on."
)
ALIKE = {
    "class": "of the same classes",
    "subject": "of the same people, or of others",
    "sample": "of the same data set",
    "target": "in the same range",
    "period": "of the same time",
}
NOT_CLAIMED = (
    "That nothing about the forgotten rows remains in the weights: a low accuracy and a blind membership attack show "
    "that the outputs no longer give them away to these tests, not that no other attack could find a trace.",
    "That the model equals one retrained without the rows, which only retraining can give.",
    "That the rows are gone from the source data, from caches, or from models derived from the original.",
    "Compliance with any law: this page is evidence for a decision that people make.",
)
MEDIA = {".svg": "image/svg+xml", ".png": "image/png"}
PACKAGES = ("kfp-unlearning", "torch", "kfp", "mlflow", "numpy", "safetensors")
AUDIT = {
    "relearned_few_shots": (
        "Relearning from a few forgotten rows, {what} reached",
        "How much of it is back after a short training on a few of the forgotten rows?",
    ),
    "relearned_retain_only": (
        "Relearning from retained rows, {what} reached",
        "How much of it is back after a short training on retained rows alone?",
    ),
    "probe_auc": (
        "Linear probe of the features, AUC",
        "Do the features that the last layer reads set forgotten rows apart?",
    ),
    "prototype_accuracy": (
        "Nearest mean of a few rows, accuracy on the class",
        "Are the features of a few rows enough to recognise the class again?",
    ),
    "update_loss_auc": (
        "Before and after: rise of the loss, AUC",
        "Whoever holds both models: are forgotten rows those whose loss rose?",
    ),
    "update_divergence_auc": (
        "Before and after: change of the answer, AUC",
        "Whoever holds both models: are forgotten rows those whose answer changed?",
    ),
    "update_residual_auc": (
        "Before and after: rise of the residual, AUC",
        "Whoever holds both models: are forgotten rows those that are predicted worse?",
    ),
    "update_shift_auc": (
        "Before and after: change of the prediction, AUC",
        "Whoever holds both models: are forgotten rows those whose prediction changed?",
    ),
    "rmia_auc": (
        "RMIA, AUC",
        "Are forgotten rows likelier than others, held against the retrained model?",
    ),
    "inversion_confidence": (
        "Inversion: the original's confidence in the pictures",
        "Does the original recognise what the model thinks the class looks like?",
    ),
    "inversion_similarity": (
        "Inversion: likeness to the mean of the class",
        "Do those pictures look like the class's mean?",
    ),
    "lira_auc": (
        "U-LiRA with shadow models, AUC",
        "Do shadow models that unlearned a row, or never saw it, tell which kind it is here?",
    ),
}
QUESTIONS = {
    "entropy": "Are forgotten training rows told from unseen rows, by how sure the model is?",
    "loss": "Are forgotten training rows told from unseen rows, by how wrong the model is?",
}
VALUE_QUESTIONS = {"residual": "Are forgotten training rows told from unseen rows, by how far off the model is?"}
PUBLISHED = ("entropy", "entropy_attack", "entropies")


def run_report(
    folders: Mapping[str, Path],
    *,
    measured: Sequence[Mapping[str, Any]],
    verdict: Verdict,
    seconds: Mapping[str, float],
    pipeline: str,
    model: str,
    manifest: str,
    seed: int,
) -> RunReport:
    """All that the page says about one run.

    Args:
        folders: The artifacts: original, unlearned, forget, retain, holdout, evaluation, attacks; of noise, preview and
            findings those that there are.
        measured: The evaluation's, the attacks' and perhaps the audit's JSON.
        verdict: Of the gates.
        seconds: Stage to seconds, so far.
        pipeline: Its name.
        model: Address of the original.
        manifest: The data set, as for select.
        seed: Of the run.
    """
    evaluation, attacks, *audits = measured
    original, unlearned = read_bundle(folders["original"]), read_bundle(folders["unlearned"])
    how = unlearned.card.method or {}
    data = fetch_manifest(manifest)
    rows, meta = read_rows(folders["forget"])
    counts = {"forget_train": len(rows["forget"]), **_counts(folders)}
    figures = {
        path.stem: (MEDIA[path.suffix], path.read_bytes())
        for part in ("noise", "preview", "evaluation", "attacks", "findings")
        if part in folders
        for path in sorted(folders[part].iterdir())
        if path.suffix in MEDIA
    }
    notes = folders["preview"] / "notes.json" if "preview" in folders else None
    return RunReport(
        title="",
        verdict=verdict,
        pipeline=pipeline,
        method=how.get("name", ""),
        method_source=METHODS[how["name"]].source if how.get("name") in METHODS else "",
        settings=how.get("settings", {}),
        seed=seed,
        model_name=model,
        original_digest=original.digest,
        unlearned_digest=unlearned.digest,
        manifest_digest=data.digest,
        dataset_name=data.card.name,
        request=meta["request"],
        forget_classes=[data.card.classes[index] for index in meta["forget_classes"]],
        rows={name: count for name, count in counts.items() if count},
        metrics={name: value for part in measured for name, value in part["metrics"].items()},
        per_class=[_class_row(row) for row in evaluation["per_class"]],
        reference=_reference(folders, evaluation["metrics"]).format(of=ALIKE[meta["request"]]),
        notes=read_json(notes)["notes"] if notes and notes.exists() else {},
        not_claimed=NOT_CLAIMED,
        attacks=_attack_rows(attacks),
        audit=[_audit_row(one, unlearned.card.task) for part in audits for one in part["asked"]],
        anamnesis_index=next((part["anamnesis_index"] for part in audits), ""),
        figures=figures,
        seconds=seconds,
        versions={name: version(name) for name in PACKAGES},
    )


def _reference(folders: Mapping[str, Path], metrics: Mapping[str, float]) -> str:
    if "retrained" not in folders:
        return REFERENCE
    bundle = read_bundle(folders["retrained"])
    ours = (bundle.card.method or {}).get("name") == "retrain"
    which = "by the original's recipe" if ours else "given, and taken to be what its name says"
    if (more := int(metrics.get("references", 1)) - 1) > 0:
        which += f", and {more} of other seed{'s' * (more > 1)}"
    return RETRAINED.replace("{which}", f"{which}, sha256 {bundle.digest[:12]}")


def _counts(folders: Mapping[str, Path]) -> dict[str, int]:
    retain, holdout = (read_rows(folders[name])[0] for name in ("retain", "holdout"))
    return {
        "retain_train": len(retain["retain"]),
        "retain_available": len(retain["available"]),
        "forget_test": len(holdout["holdout_forget"]),
        "retain_test": len(holdout["holdout_retain"]),
    }


def _class_row(row: Mapping[str, Any]) -> ClassRow:
    return ClassRow(
        name=row["class"],
        n_test=row["test_rows"],
        original_test=row["test_original"],
        unlearned_test=row["test_unlearned"],
        original_train=row["train_original"],
        unlearned_train=row["train_unlearned"],
        forgotten=row["forgotten"],
        retrained_test=row.get("test_retrained"),
    )


def _audit_row(asked: Mapping[str, Any], task: str) -> AttackRow:
    name, question = AUDIT[asked["metric"]]
    name = name.format(what="skill" if task == "regression" else "accuracy")
    chance = 0.5 if asked["metric"] in ("rmia_auc", "lira_auc") else None
    scores = {model: asked[model] for model in ("original", "unlearned", "retrained")}
    counts = {side: asked[side] for side in ("members", "non_members")}
    return AttackRow(name=name, question=question, ideal=chance, **scores, **counts)


def _attack_rows(attacks: Mapping[str, Any]) -> list[AttackRow]:
    found, counts = attacks["metrics"], attacks["counts"]
    rows = []
    values = "residual.forget.original" in counts
    for statistic, question in VALUE_QUESTIONS.items() if values else QUESTIONS.items():
        for score, title, ideal in (
            ("membership_auc", f"Population attack on {statistic}, AUC", 0.5),
            ("membership_tpr_at_1_percent_fpr", f"Population attack on {statistic}, found at 1% false alarms", 0.01),
        ):
            key = f"{statistic}.forget"
            rows.append(
                AttackRow(
                    name=title,
                    question=question,
                    original=found[f"{score}.{key}.original"],
                    unlearned=found[f"{score}.{key}.unlearned"],
                    retrained=found.get(f"{score}.{key}.retrained"),
                    members=counts[f"{key}.unlearned"]["members"],
                    non_members=counts[f"{key}.unlearned"]["non_members"],
                    ideal=ideal,
                )
            )
    statistic, published, asked = ("residual", "residual_attack", "residuals") if values else PUBLISHED
    retain = counts[f"{statistic}.retain.original"]
    rows.append(
        AttackRow(
            name=f"Control: population attack on {statistic} for retained rows, AUC",
            question="Can this attack see training in this model at all? Near 0.5 on the original it cannot.",
            original=found[f"membership_auc.{statistic}.retain.original"],
            unlearned=found[f"membership_auc.{statistic}.retain.unlearned"],
            retrained=found.get(f"membership_auc.{statistic}.retain.retrained"),
            members=retain["members"],
            non_members=retain["non_members"],
        )
    )
    rows.append(
        AttackRow(
            name=f"Attack on {asked} as published, share called members",
            question="What share of the forgotten rows does a classifier of retained and unseen rows call members?",
            original=found[f"{published}.forget.original"],
            unlearned=found[f"{published}.forget.unlearned"],
            retrained=found.get(f"{published}.forget.retrained"),
            members=retain["members"],
            non_members=retain["non_members"],
        )
    )
    return rows
