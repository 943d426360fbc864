"""What is measured of a model before and after, by its task: the same artifacts from a classifier and a regressor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from unlearning.attacks.membership import MembershipReport, membership_attacks
from unlearning.attacks.residual import residual_attacks
from unlearning.config import as_plain
from unlearning.data.manifest import DataCard
from unlearning.metrics.calibration import expected_calibration_error
from unlearning.metrics.change import NO_REFERENCE, STILL, diagnose
from unlearning.metrics.classification import Outputs, compare_classifiers, weights_changed
from unlearning.metrics.distance import layer_distances
from unlearning.metrics.features import output_layer
from unlearning.metrics.regressors import compare_regressors
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


def evaluated(
    outputs: Mapping[str, Mapping[str, Outputs]],
    *,
    card: ModelCard,
    data: DataCard,
    forget_classes: Sequence[int],
    models: Mapping[str, nn.Module],
) -> Evaluated:
    """Both models measured on the same rows.

    Args:
        outputs: "original" and "unlearned", each with its outputs by set.
        card: Of either model.
        data: Of the manifest.
        forget_classes: Indices; empty when rows were forgotten.
        models: The networks, by the same names.
    """
    weights = {name: {key: w.detach() for key, w in network.named_parameters()} for name, network in models.items()}
    moved = weights_changed(weights["original"], weights["unlearned"])
    same = "retrained" in weights and _alike(weights["original"], weights["retrained"])
    doubts = [as_plain(NO_REFERENCE)] if same else []
    if card.task == "regression":
        report = compare_regressors(outputs, quantiles=quantiles_of(card))
        metrics = {**report.metrics, "weights_changed": moved}
        unit = data.target_unit
        pictures = {
            "error_by_target.svg": value_figures.error_by_target(
                report.bins["original"], report.bins["unlearned"], unit
            ),
            "forget_predictions.svg": value_figures.forget_predictions(
                report.predictions["original"],
                report.predictions["unlearned"],
                outputs["original"]["forget.train"].targets.double().numpy().reshape(-1),
                unit,
            ),
        }
        content = {
            "metrics": metrics,
            "standard_errors": report.standard_errors,
            "bins": {model: [as_plain(one) for one in bins] for model, bins in report.bins.items()},
            "unit": unit,
            "per_class": [],
            "findings": doubts,
        }
        return Evaluated(content=content, metrics=metrics, pictures=pictures)
    measured = compare_classifiers(outputs, classes=data.classes, forget_classes=forget_classes)
    measured.metrics["weights_changed"] = moved
    for model, sets in outputs.items():
        held_out = sets["retain.test"]
        measured.metrics[f"calibration_error.test.{model}"] = expected_calibration_error(
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
    names = [data.classes[index] for index in forget_classes]
    columns = [[row[key] for row in measured.per_class] for key in ("test_original", "test_unlearned")]
    tables = [measured.confusion["original"], measured.confusion["unlearned"]]
    pictures = {
        "per_class_accuracy.svg": figures.per_class_accuracy(data.classes, columns[0], columns[1], names),
        "confusion_matrices.svg": figures.confusion_matrices(data.classes, tables[0], tables[1], names),
    }
    if shares := measured.forget_predictions:
        pictures["prediction_distribution.svg"] = figures.prediction_distribution(
            data.classes, shares["original"], shares["unlearned"], names
        )
    pictures |= _inside(models, outputs)
    return Evaluated(
        content={**as_plain(measured), "findings": doubts + [as_plain(finding) for finding in found]},
        metrics=measured.metrics,
        pictures=pictures,
        confusion=measured.confusion["unlearned"],
    )


def _alike(original: Mapping[str, torch.Tensor], retrained: Mapping[str, torch.Tensor]) -> bool:
    """Whether a model that was given as the retrained one is the original."""
    fits = original.keys() == retrained.keys() and all(w.shape == retrained[name].shape for name, w in original.items())
    return fits and weights_changed(original, retrained) < STILL


def _inside(models: Mapping[str, nn.Module], outputs: Mapping[str, Mapping[str, Outputs]]) -> dict[str, bytes]:
    """Which layers moved, and how sure the models are of the forgotten rows."""
    weights = {name: {key: w.detach().cpu() for key, w in model.named_parameters()} for name, model in models.items()}
    apart = {name: layer_distances(weights["original"], other) for name, other in weights.items() if name != "original"}
    sure = {name: sets["forget.train"].logits.softmax(1).amax(1) for name, sets in outputs.items()}
    shares = {name: (torch.histc(top, 20, 0, 1) / len(top)).tolist() for name, top in sure.items()}
    return {
        "layer_distances.svg": audit_figures.layer_distances(apart["unlearned"], apart.get("retrained", ())),
        "confidence_histograms.svg": audit_figures.confidence_histograms(shares),
    }


def attacked(outputs: Mapping[str, Mapping[str, Outputs]], *, card: ModelCard, seed: int) -> MembershipReport:
    """Membership inference against both models: by what a classifier says, by how far off a regressor is."""
    if card.task != "regression":
        return membership_attacks(outputs, seed=seed)
    return residual_attacks(outputs, quantiles=quantiles_of(card), seed=seed)


def quantiles_of(card: ModelCard) -> tuple[float, ...]:
    """The levels that a model's outputs are; empty when they are the predictions themselves."""
    return tuple((card.recipe or {}).get("quantiles", ()))
