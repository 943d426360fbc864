"""What is measured of a model before and after, by its task: the same artifacts from a classifier and a regressor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from unlearning.attacks.membership import MODELS, MembershipReport, membership_attacks
from unlearning.attacks.residual import residual_attacks
from unlearning.config import as_plain
from unlearning.data.manifest import DataCard
from unlearning.metrics.calibration import expected_calibration_error
from unlearning.metrics.change import NO_REFERENCE, STILL, diagnose
from unlearning.metrics.classification import ClassificationReport, Outputs, compare_classifiers, weights_changed
from unlearning.metrics.distance import layer_distances
from unlearning.metrics.features import output_layer
from unlearning.metrics.regressors import RegressionReport, compare_regressors
from unlearning.models.bundle import ModelCard
from unlearning.reporting import audit_figures, figures, value_figures


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """What `evaluate` writes.

    Attributes:
        content: Everything, as JSON types; its "metrics" and "standard_errors" are what the gate reads.
        metrics: Name to number.
        pictures: File name to SVG.
        confusion: The unlearned classifier's counts on held-out rows; empty for a regressor.
    """

    content: dict[str, Any]
    metrics: dict[str, float]
    pictures: dict[str, bytes]
    confusion: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What `measured` found, and what `drawn` needs of it.

    Attributes:
        content: As of `Evaluated`.
        confusion: Likewise.
        weights: Of each model, by name.
        outputs: Of each model, by set.
        data: The manifest's card.
        report: Of the metrics' module.
        forget_classes: Indices.
    """

    content: dict[str, Any]
    confusion: list[list[int]]
    weights: dict[str, dict[str, torch.Tensor]]
    outputs: Mapping[str, Mapping[str, Outputs]]
    data: DataCard
    report: ClassificationReport | RegressionReport
    forget_classes: Sequence[int]


def evaluated(
    outputs: Mapping[str, Mapping[str, Outputs]],
    *,
    card: ModelCard,
    data: DataCard,
    forget_classes: Sequence[int],
    models: Mapping[str, nn.Module],
) -> Evaluated:
    """The models measured on the same rows, with figures.

    Args:
        outputs: "original" and "unlearned", perhaps "retrained", each with its outputs by set. Under other names,
            further retrained models.
        card: Of any of them.
        data: Of the manifest.
        forget_classes: Indices; empty when rows were forgotten.
        models: The networks, by the same names; further retrained ones may be left out.
    """
    found = measured(outputs, card=card, data=data, forget_classes=forget_classes, models=models)
    return Evaluated(
        content=found.content, metrics=found.content["metrics"], pictures=drawn(found), confusion=found.confusion
    )


def measured(
    outputs: Mapping[str, Mapping[str, Outputs]],
    *,
    card: ModelCard,
    data: DataCard,
    forget_classes: Sequence[int],
    models: Mapping[str, nn.Module],
) -> Measured:
    """The numbers of `evaluated`, which takes the same arguments."""
    weights = {
        name: {key: w.detach().cpu() for key, w in network.named_parameters()} for name, network in models.items()
    }
    moved = weights_changed(weights["original"], weights["unlearned"])
    same = "retrained" in weights and _alike(weights["original"], weights["retrained"])
    doubts = [as_plain(NO_REFERENCE)] if same else []
    kept = {name: sets for name, sets in outputs.items() if name in MODELS}
    report: ClassificationReport | RegressionReport
    if card.task == "regression":
        report = compare_regressors(outputs, quantiles=quantiles_of(card))
        content = {
            "standard_errors": report.standard_errors,
            "bins": {model: [as_plain(one) for one in bins] for model, bins in report.bins.items() if model in MODELS},
            "unit": data.target_unit,
            "per_class": [],
            "findings": doubts,
        }
        confusion: list[list[int]] = []
    else:
        report = compare_classifiers(outputs, classes=data.classes, forget_classes=forget_classes)
        for model, sets in kept.items():
            held_out = sets["retain.test"]
            report.metrics[f"calibration_error.test.{model}"] = expected_calibration_error(
                held_out.logits, held_out.targets
            )
        found = diagnose(
            models["original"].state_dict(),
            models["unlearned"].state_dict(),
            head=output_layer(models["original"], torch.zeros(1, *card.input_shape)),
            before=outputs["original"],
            after=outputs["unlearned"],
            reference=outputs.get("retrained"),
        )
        content = {**as_plain(report), "findings": doubts + [as_plain(finding) for finding in found]}
        confusion = report.confusion["unlearned"]
    counted = {"references": float(len(outputs) - 2)} if "retrained" in outputs else {}
    content["metrics"] = {
        name: value
        for name, value in {**report.metrics, "weights_changed": moved, **counted}.items()
        if name.rpartition(".")[2] not in outputs.keys() - kept.keys()  # of further retrained models: the gaps tell
    }
    return Measured(
        content=content,
        confusion=confusion,
        weights=weights,
        outputs=kept,
        data=data,
        report=report,
        forget_classes=forget_classes,
    )


def drawn(found: Measured) -> dict[str, bytes]:
    """File name to SVG."""
    report, data = found.report, found.data
    if isinstance(report, RegressionReport):
        targets = found.outputs["original"]["forget.train"].targets.double().numpy().reshape(-1)
        bins, answers = report.bins, report.predictions
        return {
            "error_by_target.svg": value_figures.error_by_target(bins["original"], bins["unlearned"], data.target_unit),
            "forget_predictions.svg": value_figures.forget_predictions(
                answers["original"], answers["unlearned"], targets, data.target_unit
            ),
        }
    names = [data.classes[index] for index in found.forget_classes]
    columns = [[row[key] for row in report.per_class] for key in ("test_original", "test_unlearned")]
    tables = [report.confusion["original"], report.confusion["unlearned"]]
    pictures = {
        "per_class_accuracy.svg": figures.per_class_accuracy(data.classes, columns[0], columns[1], names),
        "confusion_matrices.svg": figures.confusion_matrices(data.classes, tables[0], tables[1], names),
    }
    if shares := report.forget_predictions:
        pictures["prediction_distribution.svg"] = figures.prediction_distribution(
            data.classes, shares["original"], shares["unlearned"], names
        )
    weights = found.weights
    apart = {name: layer_distances(weights["original"], other) for name, other in weights.items() if name != "original"}
    sure = {name: sets["forget.train"].logits.softmax(1).amax(1) for name, sets in found.outputs.items()}
    binned = {name: (torch.histc(top, 20, 0, 1) / len(top)).tolist() for name, top in sure.items()}
    return {
        **pictures,
        "layer_distances.svg": audit_figures.layer_distances(apart["unlearned"], apart.get("retrained", ())),
        "confidence_histograms.svg": audit_figures.confidence_histograms(binned),
    }


def _alike(original: Mapping[str, torch.Tensor], retrained: Mapping[str, torch.Tensor]) -> bool:
    """Whether a model that was given as the retrained one is the original."""
    fits = original.keys() == retrained.keys() and all(w.shape == retrained[name].shape for name, w in original.items())
    return fits and weights_changed(original, retrained) < STILL


def attacked(
    outputs: Mapping[str, Mapping[str, Outputs]], *, task: str, levels: Sequence[float] = (), seed: int
) -> MembershipReport:
    """Membership inference against the models: by what a classifier says, by how far off a regressor is.

    Of further retrained models, under other names than `MODELS`, only the gaps to them all are kept.

    Args:
        outputs: As for `evaluated`.
        task: "classification" or "regression".
        levels: What a regressor's outputs are quantiles of; empty when they are the predictions themselves.
        seed: Of the attacks' draws.
    """
    if task == "regression":
        report = residual_attacks(outputs, quantiles=levels, seed=seed)
    else:
        report = membership_attacks(outputs, seed=seed)
    further = outputs.keys() - set(MODELS)

    def ours(found: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in found.items() if name.rpartition(".")[2] not in further}

    return MembershipReport(
        metrics=ours(report.metrics), standard_errors=ours(report.standard_errors), curves=ours(report.curves)
    )


def quantiles_of(card: ModelCard) -> tuple[float, ...]:
    """The levels that a model's outputs are; empty when they are the predictions themselves."""
    return tuple((card.recipe or {}).get("quantiles", ()))
