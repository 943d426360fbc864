"""A whole method in one call, for notebooks, comparisons and benchmarks: the stages as a pipeline runs them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from unlearning.config import as_plain
from unlearning.methods import Facts, method
from unlearning.methods.noise import Noise
from unlearning.methods.record import DistillRecord
from unlearning.methods.task import Task
from unlearning.progress import Progress, silent
from unlearning.training import generator


@dataclass(frozen=True, slots=True, kw_only=True)
class Unlearned:
    """What came out of a method, and how it went.

    Attributes:
        model: In eval mode.
        settings: All that were in force, as JSON types.
        histories: Stage or stage and series to its values: "impair", "distill.loss", ...
        record: Of the distilling stage; empty for methods without.
        noise: What the method synthesized, if it does.
        seconds: Stage to wall seconds.
    """

    model: nn.Module
    settings: dict[str, Any]
    histories: dict[str, list[float]] = field(default_factory=dict)
    record: DistillRecord = field(default_factory=DistillRecord)
    noise: Noise | None = None
    seconds: dict[str, float] = field(default_factory=dict)


def facts_of(task: Task, recipe: Mapping[str, Any] | None = None) -> Facts:
    """What the methods' defaults may look at.

    Args:
        task: Its retain rows are counted, when it has any.
        recipe: How the model was trained: fields of `unlearning.training.Recipe`, and "fine_tuned".
    """
    if task.targets == "values":
        rows = 0 if task.retain is None else len(task.retain)
        return Facts.of(rows=rows, input_shape=task.input_shape, recipe=recipe)
    counts = torch.bincount(task.retain.targets) if task.retain is not None else torch.zeros(0, dtype=torch.int64)
    return Facts.of(
        counts.tolist(), input_shape=task.input_shape, forget_classes=len(task.forget_classes), recipe=recipe
    )


def unlearn(
    original: nn.Module,
    task: Task,
    *,
    name: str,
    settings: Mapping[str, Any] | None = None,
    recipe: Mapping[str, Any] | None = None,
    seed: int,
    progress: Progress = silent,
) -> Unlearned:
    """The model that a method makes of the original; the same seed gives the same as the pipelines.

    Args:
        original: Left unchanged.
        task: What is forgotten, and the rows at hand; the method is given those only that it reads.
        name: Of the method.
        settings: Of the method; what is left out follows its rule.
        recipe: How the original was trained, as far as known; `retrain` needs it.
        seed: Of every random choice.
        progress: Called after every step.

    Raises:
        UsageError: When the method is unknown, cannot serve the task or has no such settings.
        FloatingPointError: When it broke down.
    """
    request = "class" if task.forget_classes else "sample"
    facts = facts_of(task, recipe)
    row = method(name, request=request, task=facts.task)
    config = row.configure(settings or {}, facts)
    given = task.restricted(row.reads)
    model, noise, record = original, None, DistillRecord()
    histories: dict[str, list[float]] = {}
    seconds: dict[str, float] = {}
    for stage in row.stages:
        began = time.perf_counter()
        run = row.stage(stage)
        how: dict[str, Any] = {"config": config, "generator": generator(seed, stage), "progress": progress}
        if stage == "synthesize":
            noise = run(model, input_shape=task.input_shape, forget_classes=list(task.forget_classes), **how)
            histories[stage] = noise.objective
        elif stage == "impair":
            model, histories[stage] = run(model, noise, given.retain, **how)
        elif stage == "repair":
            model, histories[stage] = run(model, given.retain, noise=noise, **how)
        else:
            model, record = run(model, given, **how)
            histories |= {f"{stage}.{series}": values for series, values in record.histories.items()}
        seconds[stage] = time.perf_counter() - began
    return Unlearned(
        model=model, settings=as_plain(config), histories=histories, record=record, noise=noise, seconds=seconds
    )
