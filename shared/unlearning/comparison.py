"""Methods side by side: each run on the same model and rows, measured alike, held against a retrained model."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from unlearning.attacks.membership import cross_entropy, population_attack
from unlearning.data.samples import Samples
from unlearning.methods.apply import unlearn
from unlearning.methods.task import Task
from unlearning.metrics.accuracy import accuracy
from unlearning.metrics.divergence import jensen_shannon
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
"""What is measured of every candidate: shares, AUCs, bits, seconds; forget_accuracy.test only where it has rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One run of one method, or one of the two models that all are held against.

    Attributes:
        name: Of the method; "original" or "retrained".
        seed: Of the run.
        figures: Those of `COLUMNS` that could be measured; empty when it failed.
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
        progress: Called after every step of every method.
    """
    reference, theirs = measured(retrained, sets)

    def against(model: nn.Module, seconds: float) -> dict[str, float]:
        figures, logits = measured(model, sets)
        return {
            **figures,
            "forgetting_gap": abs(figures["forget_accuracy.train"] - reference["forget_accuracy.train"]),
            "utility_gap": figures["retain_accuracy.test"] - reference["retain_accuracy.test"],
            "membership_gap": abs(figures["membership_auc.loss.forget"] - reference["membership_auc.loss.forget"]),
            "divergence": jensen_shannon(logits, theirs).mean().item(),
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
