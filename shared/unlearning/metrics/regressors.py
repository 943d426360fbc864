"""A regressor before and after: every metric of its predictions from one cached forward pass per model and set."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unlearning.metrics.classification import Outputs, check_sets
from unlearning.metrics.intervals import gap_to
from unlearning.metrics.regression import Bin, error_by_bin, ks_residuals, wasserstein

MODELS = ("original", "unlearned", "retrained")
BINS = 10
"""Bins of equal width over the targets, for the picture of where the error lies."""

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class RegressionReport:
    """What changed between two models.

    Attributes:
        metrics: Flat names: "forget_mae.train.unlearned" in the targets' unit, "retain_error_rise.test" as a share, ...
        standard_errors: Of some of the metrics, by the same names.
        bins: For each model the error on held-out rows by target.
        predictions: For each model its predictions of the forgotten training rows, shape (M,).
        residuals: For each model and set the absolute residual of each row.
    """

    metrics: dict[str, float]
    standard_errors: dict[str, float]
    bins: dict[str, list[Bin]]
    predictions: dict[str, Array]
    residuals: dict[str, dict[str, Array]]


def compare_regressors(
    models: Mapping[str, Mapping[str, Outputs]], *, quantiles: tuple[float, ...] = ()
) -> RegressionReport:
    """Errors, their rise, the gap between seen and unseen forgotten rows, and how far the predictions moved.

    Args:
        models: "original" and "unlearned", and "retrained" where there is one, each with its outputs on the same sets
            of `unlearning.metrics.classification.SETS`; only forget.test may be left out. After them, under any name,
            further retrained models.
        quantiles: Levels of the outputs, when they are quantiles.

    Raises:
        ValueError: When the models were not run on the same sets, a set that is needed is missing, or an output is not
            finite.
    """
    from unlearning.attacks.residual import absolute_residuals
    from unlearning.losses import point

    check_sets(models)
    original = models["original"]
    metrics: dict[str, float] = {}
    errors: dict[str, float] = {}
    predicted = {
        model: {name: point(one.logits, quantiles) for name, one in outputs.items()}
        for model, outputs in models.items()
    }
    residuals = {
        model: {name: absolute_residuals(predicted[model][name], one.targets) for name, one in outputs.items()}
        for model, outputs in models.items()
    }
    for model, sets in residuals.items():
        for name, values in sets.items():
            if not np.isfinite(values).all():
                raise ValueError(f"the {model} model's outputs on {name} are not finite: it is broken")
            part, split = name.split(".")
            key = f"{part}_mae.{split}.{model}"
            metrics[key], errors[key] = float(values.mean()), _error_of_mean(values)
            metrics[f"{part}_rmse.{split}.{model}"] = float(np.sqrt(np.square(values).mean()))
        unseen = sets.get("forget.test", sets["retain.test"])
        key = f"seen_advantage.forget.{model}"
        metrics[key], errors[key] = _relative(sets["forget.train"], unseen)
    before, after = residuals["original"]["retain.test"], residuals["unlearned"]["retain.test"]
    metrics["retain_error_rise.test"] = float((after.mean() - before.mean()) / _above_zero(before.mean()))
    errors["retain_error_rise.test"] = _error_of_mean(after - before) / _above_zero(before.mean())
    if "retrained" in models:
        for name in original:
            part, split = name.split(".")
            theirs = residuals["retrained"][name]
            scale = _above_zero(theirs.mean())
            known = [one[name].mean() / scale for model, one in residuals.items() if model not in MODELS[:2]]
            for model, prefix in (("unlearned", ""), ("original", "control.")):
                ours, key = residuals[model][name], f"{prefix}{part}_error_gap.{split}"
                rows = _error_of_mean(ours - theirs) / scale
                metrics[key], errors[key] = gap_to(float(ours.mean() / scale), known, rows)
    answers = {model: predicted[model]["forget.train"].double().numpy().reshape(-1) for model in models}
    metrics["prediction_shift.forget"] = wasserstein(answers["original"], answers["unlearned"])
    if "retrained" in models:
        metrics["wasserstein.forget"] = wasserstein(answers["unlearned"], answers["retrained"])
    if "forget.test" in original:
        test = ks_residuals(residuals["unlearned"]["forget.train"], residuals["unlearned"]["forget.test"])
        metrics["residual_ks.forget.unlearned"] = test.statistic
    return RegressionReport(
        metrics=metrics,
        standard_errors=errors,
        bins=_bins(models, predicted),
        predictions=answers,
        residuals=residuals,
    )


def _relative(seen: Array, unseen: Array) -> tuple[float, float]:
    """How much smaller the error of seen rows is, as a share of that of unseen ones; and its standard error."""
    scale = _above_zero(unseen.mean())
    ratio = seen.mean() / scale
    error = math.hypot(_error_of_mean(seen), ratio * _error_of_mean(unseen)) / scale
    return float(1 - ratio), float(error)


def _error_of_mean(values: Array) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.inf


def _above_zero(value: Any) -> float:
    return max(float(value), np.finfo(np.float64).tiny)


def _bins(models: Mapping[str, Mapping[str, Outputs]], predicted: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    held_out = [name for name in models["original"] if name.endswith(".test")]
    targets = np.concatenate([models["original"][name].targets.double().numpy().reshape(-1) for name in held_out])
    low, high = float(targets.min()), float(targets.max())
    if low == high:
        return {model: [] for model in models}
    edges = np.linspace(low, high, BINS + 1).tolist()
    return {
        model: error_by_bin(
            targets, np.concatenate([predicted[model][name].double().numpy().reshape(-1) for name in held_out]), edges
        )
        for model in models
    }
