"""Methods side by side: each run on the same model and rows, measured alike, held against a retrained model."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from unlearning.attacks.membership import cross_entropy, population_attack
from unlearning.attacks.residual import absolute_residuals, residual_attack
from unlearning.data.samples import Samples
from unlearning.losses import point
from unlearning.methods.apply import unlearn
from unlearning.methods.task import Task
from unlearning.metrics.accuracy import accuracy
from unlearning.metrics.divergence import jensen_shannon
from unlearning.metrics.regression import wasserstein
from unlearning.progress import Progress, silent
from unlearning.training import predict

REFERENCES = ("original", "retrained")
COLUMNS = (
    "forget_accuracy.train",
    "forget_accuracy.test",
    "retain_accuracy.test",
    "forgetting_gap",
    "utility_gap",
    "membership_auc.loss.forget",
    "membership_gap",
    "divergence",
    "seconds",
)
"""What is measured of a classifier: shares, AUCs, bits, seconds; forget_accuracy.test only where it has rows."""

VALUE_COLUMNS = (
    "forget_mae.train",
    "forget_mae.test",
    "retain_mae.test",
    "forgetting_gap",
    "utility_gap",
    "membership_auc.residual.forget",
    "membership_gap",
    "wasserstein",
    "seconds",
)
"""Of a regressor: errors and distance in the targets' unit, gaps as shares of the retrained model's error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One run of one method, or one of the two models that all are held against.

    Attributes:
        name: Of the method; "original" or "retrained".
        seed: Of the run.
        figures: Those of the columns that could be measured; empty when it failed.
        failed: Why there is no model; empty when there is one.
    """

    name: str
    seed: int
    figures: Mapping[str, float] = field(default_factory=dict)
    failed: str = ""


def measured(model: nn.Module, sets: Mapping[str, Samples]) -> tuple[dict[str, float], Tensor]:
    """Accuracies, and how well the loss tells forgotten training rows from unseen ones; and the logits of the former.

    Args:
        model: Asked in eval mode.
        sets: "forget.train", "retain.test", and "forget.test" where the request has held-out rows of its own.
    """
    outputs = {name: (predict(model, rows), rows.targets) for name, rows in sets.items()}
    figures = {
        f"{name.split('.')[0]}_accuracy.{name.split('.')[1]}": accuracy(*outputs[name])
        for name in ("forget.train", "forget.test", "retain.test")
        if name in outputs
    }
    unseen = outputs.get("forget.test", outputs["retain.test"])
    roc = population_attack(cross_entropy(*outputs["forget.train"]), cross_entropy(*unseen))
    return {**figures, "membership_auc.loss.forget": roc.auc}, outputs["forget.train"][0]


def measured_values(
    model: nn.Module, sets: Mapping[str, Samples], *, quantiles: Sequence[float] = ()
) -> tuple[dict[str, float], Tensor]:
    """The same of a regressor: its mean absolute errors, the residual attack, and what it predicts of forgotten rows.

    Args:
        model: Asked in eval mode.
        sets: As for `measured`.
        quantiles: Levels of its outputs, when they are quantiles.
    """
    predictions = {name: point(predict(model, rows), quantiles) for name, rows in sets.items()}
    residuals = {name: absolute_residuals(predictions[name], rows.targets) for name, rows in sets.items()}
    figures = {
        f"{name.split('.')[0]}_mae.{name.split('.')[1]}": float(residuals[name].mean())
        for name in ("forget.train", "forget.test", "retain.test")
        if name in residuals
    }
    roc = residual_attack(residuals["forget.train"], residuals.get("forget.test", residuals["retain.test"]))
    return {**figures, "membership_auc.residual.forget": roc.auc}, predictions["forget.train"]


def gaps(figures: Mapping[str, float], reference: Mapping[str, float]) -> dict[str, float]:
    """How far a model is from the retrained one: in forgetting and to an attacker >= 0, in use below 0 when worse.

    Of classifiers differences of accuracies, of regressors differences of errors as shares of the retrained model's.
    """
    if "retain_mae.test" in figures:
        forgetting = abs(figures["forget_mae.train"] / reference["forget_mae.train"] - 1)
        utility, attack = 1 - figures["retain_mae.test"] / reference["retain_mae.test"], "residual"
    else:
        forgetting = abs(figures["forget_accuracy.train"] - reference["forget_accuracy.train"])
        utility, attack = figures["retain_accuracy.test"] - reference["retain_accuracy.test"], "loss"
    name = f"membership_auc.{attack}.forget"
    return {
        "forgetting_gap": forgetting,
        "utility_gap": utility,
        "membership_gap": abs(figures[name] - reference[name]),
    }


def compare(
    original: nn.Module,
    retrained: nn.Module,
    task: Task,
    sets: Mapping[str, Samples],
    *,
    names: Sequence[str],
    settings: Mapping[str, Mapping[str, Any]],
    recipe: Mapping[str, Any] | None,
    seeds: Sequence[int],
    values: bool = False,
    reference_sets: Mapping[str, Samples] | None = None,
    progress: Progress = silent,
) -> Iterator[Candidate]:
    """The original, the retrained model, then every method with every seed, one by one.

    A method that breaks down by itself (a loss that is not finite, a generator that collapses) is a finding: its
    candidate says so. Everything else that goes wrong is raised.

    Args:
        original: Left unchanged.
        retrained: The reference.
        task: What is forgotten, and the rows at hand.
        sets: As for `measured`.
        names: Of the methods.
        settings: Method to settings.
        recipe: How the original was trained.
        seeds: Of the runs.
        values: Whether the models predict values rather than classes.
        reference_sets: The same rows scaled as the retrained model wants them; None: as the others do.
        progress: Called after every step of every method.
    """

    def asked(model: nn.Module) -> tuple[dict[str, float], Tensor]:
        rows = sets if reference_sets is None or model is not retrained else reference_sets
        return (
            measured_values(model, rows, quantiles=(recipe or {}).get("quantiles", ()))
            if values
            else measured(model, rows)
        )

    reference, theirs = asked(retrained)

    def against(model: nn.Module, seconds: float) -> dict[str, float]:
        figures, answers = asked(model)
        apart = (
            {"wasserstein": wasserstein(answers, theirs)}
            if values
            else {"divergence": jensen_shannon(answers, theirs).mean().item()}
        )
        return {
            **figures,
            **gaps(figures, reference),
            **apart,
            **({"seconds": seconds} if math.isfinite(seconds) else {}),
        }

    for name, model in zip(REFERENCES, (original, retrained), strict=True):
        yield Candidate(name=name, seed=seeds[0], figures=against(model, math.nan))
    for name in names:
        for seed in seeds:
            began = time.perf_counter()
            try:
                done = unlearn(
                    original,
                    task,
                    name=name,
                    settings=settings.get(name, {}),
                    recipe=recipe,
                    seed=seed,
                    progress=lambda phase, *rest, name=name: progress(f"{name} {phase}", *rest),
                )
            except FloatingPointError as error:
                yield Candidate(name=name, seed=seed, failed=str(error))
                continue
            seconds = time.perf_counter() - began
            yield Candidate(name=name, seed=seed, figures=against(done.model, seconds))
