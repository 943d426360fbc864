"""A classifier before and after: every output metric from one cached forward pass per model and set."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unlearning.metrics.accuracy import accuracy, confusion, per_class_accuracy, prediction_distribution
from unlearning.metrics.divergence import jensen_shannon
from unlearning.metrics.intervals import gap_to

SETS = ("forget.train", "retain.train", "forget.test", "retain.test")
"""forget and retain rows of the training split; held-out rows under the same rule. A set without rows is left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """One model's cached outputs on one set: logits, shape (N, C), and targets, shape (N,)."""

    logits: Tensor
    targets: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassificationReport:
    """What changed between two models.

    Attributes:
        metrics: Flat names, fractions: "forget_accuracy.test.original", "retain_accuracy_drop.test", ...
        standard_errors: Of some of the metrics, by the same names.
        per_class: For each class its held-out and training rows and accuracies; None where it has no rows.
        confusion: For each model the counts on held-out rows, true class by predicted class.
        forget_predictions: For each model the share of each class among predictions for held-out forget rows.
    """

    metrics: dict[str, float]
    standard_errors: dict[str, float]
    per_class: list[dict[str, Any]]
    confusion: dict[str, list[list[int]]]
    forget_predictions: dict[str, list[float]]


def compare_classifiers(
    models: Mapping[str, Mapping[str, Outputs]], *, classes: Sequence[str], forget_classes: Sequence[int]
) -> ClassificationReport:
    """Accuracies, drops, per-class table, confusion and where the forgotten class went.

    Args:
        models: "original" and "unlearned", and "retrained" where there is one, each with its outputs on the same
            `SETS`; only forget.test may be left out. After them, under any name, further retrained models.
        classes: Names, in the order of the logits.
        forget_classes: Indices of the forgotten classes; empty when rows were forgotten rather than classes.

    Raises:
        ValueError: When the models were not run on the same sets, or a set that is needed is missing.
    """
    original, unlearned = models["original"], models["unlearned"]
    check_sets(models)
    metrics: dict[str, float] = {}
    errors: dict[str, float] = {}
    for name in original:
        part, split = name.split(".")
        for model, outputs in models.items():
            value = accuracy(outputs[name].logits, outputs[name].targets)
            metrics[f"{part}_accuracy.{split}.{model}"] = value
            errors[f"{part}_accuracy.{split}.{model}"] = _binomial_error(value, len(outputs[name].targets))
        drop = metrics[f"{part}_accuracy.{split}.original"] - metrics[f"{part}_accuracy.{split}.unlearned"]
        metrics[f"{part}_accuracy_drop.{split}"] = drop
        errors[f"{part}_accuracy_drop.{split}"] = _paired_error(original[name], unlearned[name])
    for model, outputs in models.items():
        unseen = "forget.test" if "forget.test" in outputs else "retain.test"
        names = [f"{name.split('.')[0]}_accuracy.{name.split('.')[1]}.{model}" for name in ("forget.train", unseen)]
        metrics[f"seen_gap.forget.{model}"] = metrics[names[0]] - metrics[names[1]]
        errors[f"seen_gap.forget.{model}"] = math.hypot(errors[names[0]], errors[names[1]])
    if reference := models.get("retrained"):
        for name in original:
            part, split = name.split(".")
            stem = f"{part}_accuracy.{split}"
            known = [metrics[f"{stem}.{model}"] for model in models if model not in ("original", "unlearned")]
            for model, outputs, prefix in (("unlearned", unlearned, ""), ("original", original, "control.")):
                key = f"{prefix}{part}_gap.{split}"
                by_rows = _paired_error(reference[name], outputs[name])
                metrics[key], errors[key] = gap_to(metrics[f"{stem}.{model}"], known, by_rows)
        apart = jensen_shannon(unlearned["forget.train"].logits, reference["forget.train"].logits)
        metrics["divergence.forget"] = apart.mean().item()
        errors["divergence.forget"] = apart.double().std(correction=0).item() / math.sqrt(len(apart))
    counts = {
        f"{split}.{model}": sum(
            confusion(outputs[name].logits, outputs[name].targets, classes=len(classes))
            for name in outputs
            if name.endswith(split)
        )
        for model, outputs in models.items()
        for split in ("train", "test")
    }
    tables = {name: table for name, table in counts.items() if isinstance(table, Tensor)}
    by_class = {name: per_class_accuracy(table) for name, table in tables.items()}
    rows: list[dict[str, Any]] = [
        {
            "class": name,
            "forgotten": index in forget_classes,
            "test_rows": int(tables["test.original"][index].sum()),
            "train_rows": int(tables["train.original"][index].sum()),
            **{key.replace(".", "_"): values[index] for key, values in by_class.items()},
        }
        for index, name in enumerate(classes)
    ]
    drops = [
        (row["test_original"] - row["test_unlearned"], row["test_rows"], row["test_unlearned"])
        for row in rows
        if not row["forgotten"] and row["test_rows"]
    ]
    worst, worst_rows, left = max(drops)
    metrics["worst_class_drop.test"] = worst
    errors["worst_class_drop.test"] = _binomial_error(left, worst_rows)
    shares = {}
    if "forget.test" in original:
        shares = {
            model: prediction_distribution(outputs["forget.test"].logits, classes=len(classes))
            for model, outputs in models.items()
        }
        metrics["forget_top_prediction_share.test.unlearned"] = shares["unlearned"].max().item()
    return ClassificationReport(
        metrics=metrics,
        standard_errors=errors,
        per_class=rows,
        confusion={model: tables[f"test.{model}"].tolist() for model in models},
        forget_predictions={model: share.tolist() for model, share in shares.items()},
    )


def check_sets(models: Mapping[str, Mapping[str, Outputs]]) -> None:
    """Nothing, when all models were run on one choice of sets that has what is needed.

    Raises:
        ValueError: When they were not.
    """
    choices = [set(outputs) for outputs in models.values()]
    if (
        any(names != choices[0] for names in choices)
        or not {"retain.train", "retain.test", "forget.train"} <= choices[0]
    ):
        raise ValueError(f"wanted all models' outputs on one choice of {SETS}, got {', '.join(map(str, choices))}")


def weights_changed(original: Mapping[str, Tensor], unlearned: Mapping[str, Tensor]) -> float:
    """L2 distance of the two models' parameters over the original's norm; 0 when nothing changed.

    Of an original whose parameters are all 0 it is infinite once any of them moved.

    Args:
        original: Parameters by name.
        unlearned: The same names and shapes.

    Raises:
        ValueError: When they differ in names or shapes.
    """
    if original.keys() != unlearned.keys():
        raise ValueError("the models have different parameters")
    if wrong := [name for name, tensor in original.items() if tensor.shape != unlearned[name].shape]:
        raise ValueError(f"the models differ in the shape of {', '.join(wrong[:8])}")
    moved = sum((unlearned[name].double() - tensor.double()).square().sum() for name, tensor in original.items())
    size = sum(tensor.double().square().sum() for tensor in original.values())
    squares, norm = float(torch.as_tensor(moved)), float(torch.as_tensor(size))
    if norm == 0:
        return math.inf if squares else 0.0
    return math.sqrt(squares / norm)


def _binomial_error(share: float, count: int) -> float:
    """Of a share of `count` rows; Agresti and Coull's, so that a share of 0 or 1 is not taken as certain."""
    n = count + 4
    p = (share * count + 2) / n
    return math.sqrt(p * (1 - p) / n)


def _paired_error(original: Outputs, unlearned: Outputs) -> float:
    """Of the difference of two accuracies on the same rows."""
    before = (original.logits.argmax(1) == original.targets).double()
    after = (unlearned.logits.argmax(1) == unlearned.targets).double()
    return ((before - after).std(correction=0) / math.sqrt(len(before))).item()
