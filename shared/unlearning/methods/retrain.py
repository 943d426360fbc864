"""Retrain: a new network, every layer initialised afresh, trained on the retain rows by the original's recipe.

Source: the reference of every paper, often called "gold". It forgets by construction what it never reads.

Departs from a popular benchmark, which starts from the original and initialises only the direct children of the network
that can initialise themselves, so that blocks of layers keep what they knew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

from unlearning.config import build
from unlearning.errors import UsageError
from unlearning.methods import Facts
from unlearning.methods.record import DistillRecord
from unlearning.methods.rows import needed
from unlearning.methods.task import Task
from unlearning.progress import Progress, silent
from unlearning.training import Recipe, device_of, train


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrainConfig(Recipe):
    """The recipe that the original was trained by, as its card keeps it; a given value always wins."""


def configure(settings: Mapping[str, Any], facts: Facts) -> RetrainConfig:
    """The recipe of the model's card, with these fields replaced; those that neither names are as `Recipe` has them.

    Raises:
        UsageError: When the card has no recipe and no settings are given; for unknown settings or values out of range,
            all at once.
    """
    known = {field.name: facts.recipe[field.name] for field in fields(RetrainConfig) if field.name in facts.recipe}
    if not known and not settings:
        names = ", ".join(field.name for field in fields(RetrainConfig))
        raise UsageError(
            f"retrain needs the recipe that the model was trained by, its card has none: give it as settings ({names})"
        )
    return build(RetrainConfig, {**known, **settings}, what="retrain settings")


def distill(
    original: nn.Module,
    task: Task,
    *,
    config: RetrainConfig,
    generator: torch.Generator,
    progress: Progress = silent,
) -> tuple[nn.Module, DistillRecord]:
    """A network trained from scratch on the retain rows; and its course.

    Args:
        original: Says the device; its weights are not read.
        task: With retain rows.
        config: From `configure`.
        generator: Of the first weights, the order and the augmentation.
        progress: Called after every step.

    Raises:
        UsageError: Without retain rows.
        FloatingPointError: When the loss is not finite.
    """
    retain = needed(task, "retain", method="retrain")
    seed = int(torch.randint(2**31, (1,), generator=generator))
    retrained = task.blank(seed).to(device_of(original))
    losses = train(retrained, retain, config, generator=generator, progress=progress)
    return retrained, DistillRecord(histories={"loss": losses}, notes={"first_weights_seed": seed})
