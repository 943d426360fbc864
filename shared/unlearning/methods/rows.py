"""The rows that a distilling method trains on: asked for, drawn, relabelled, paired, and how many make a step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from unlearning.data.samples import Joined, Samples
from unlearning.errors import UsageError
from unlearning.losses import Loss, loss_of, wrong_loss
from unlearning.methods import Facts
from unlearning.methods.task import Task
from unlearning.progress import Progress

STEPS = 100
"""Fewest updates that the defaults plan for: the largest batch is chosen that still takes so many."""


def needed(task: Task, part: Literal["forget", "retain"], *, method: str) -> Samples:
    """The task's forget or retain rows.

    Raises:
        UsageError: When the task has none.
    """
    rows: Samples | None = getattr(task, part)
    if rows is None or len(rows) == 0:
        raise UsageError(f"{method} needs {part} rows, the task has none: give it some or choose another method")
    return rows


def paced(rows: int, epochs: int) -> tuple[int, int]:
    """Batch size and epochs with which this many rows take `STEPS` updates or more.

    The batch is the largest power of two from 16 to 256 that allows it; with too few rows even for 16, there are more
    epochs. One update of Adam moves a weight by about the rate, so it is their product with the number of updates, not
    the rate alone, that decides how far a model can leave its old weights.

    Args:
        rows: Trained on in each epoch; >= 1.
        epochs: Wanted at least; >= 1.

    Example:
        >>> paced(50_000, 1), paced(7_000, 1), paced(160, 1)
        ((256, 1), (64, 1), (16, 10))
    """
    batch_size = next((size for size in (256, 128, 64, 32) if rows * epochs >= STEPS * size), 16)
    return batch_size, max(epochs, math.ceil(STEPS * batch_size / rows))


Error = Literal["auto", "cross_entropy", "l1", "mse", "quantile"]
"""What a method's rows are taught by; "auto" is the loss that the model was trained by."""


def settled_error(settings: Mapping[str, Any], facts: Facts) -> dict[str, Any]:
    """The settings "error" and "quantiles" as asked for, or for "auto" those of the recipe in the model's card.

    Without a recipe: "mse" for a regression, "cross_entropy" for a classification.
    """
    error, quantiles = settings.get("error", "auto"), settings.get("quantiles", ())
    if error == "auto":
        error = facts.recipe.get("loss") or ("mse" if facts.task == "regression" else "cross_entropy")
    if error == "quantile" and not quantiles:
        quantiles = facts.recipe.get("quantiles", ())
    return {"error": error, "quantiles": tuple(quantiles)}


def wrong_error(config: Any) -> list[str]:
    """What is wrong with a configuration's "error" and "quantiles", one sentence each."""
    return [] if config.error == "auto" else wrong_loss(config.error, config.quantiles)


def error_loss(config: Any, rows: Samples) -> Loss:
    """The loss of a configuration with "error" and "quantiles"; one that was not settled is chosen by the targets."""
    if config.error == "auto":
        return loss_of("mse" if rows.targets.is_floating_point() else "cross_entropy")
    return loss_of(config.error, config.quantiles)


def wrong_numbers(config: object, *, least: dict[str, int], positive: tuple[str, ...]) -> list[str]:
    """What is wrong with a configuration's numbers, one sentence each: whole ones below `least`, others not > 0."""
    wrong = [
        f"{name} must be at least {bound}, got {getattr(config, name)}"
        for name, bound in least.items()
        if getattr(config, name) < bound
    ]
    return wrong + [
        f"{name} must be a positive number, got {getattr(config, name)}"
        for name in positive
        if not 0 < getattr(config, name) < math.inf
    ]


class Deck:
    """Rows 0 .. count - 1 dealt in random order, reshuffled whenever all have been dealt.

    Args:
        count: How many rows there are; >= 1.
        generator: Of the orders.
    """

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self._count = count
        self._generator = generator
        self._left = torch.empty(0, dtype=torch.int64)

    def deal(self, wanted: int) -> Tensor:
        """The next `wanted` rows, shape (wanted,), int64."""
        while len(self._left) < wanted:
            self._left = torch.cat([self._left, torch.randperm(self._count, generator=self._generator)])
        dealt, self._left = self._left[:wanted], self._left[wanted:]
        return dealt


def derived(generator: torch.Generator) -> torch.Generator:
    """A generator of its own for one part of a training, seeded by a draw from this one.

    Dropout follows the seed of the generator that `optimise` is given: with one generator for all parts, each part
    would drop the same units.
    """
    return torch.Generator().manual_seed(int(torch.randint(2**62, (1,), generator=generator)))


def part_of(progress: Progress, before: int, steps: int) -> Progress:
    """What to call in one part of a training of so many steps, to which `before` of them are done already."""

    def onwards(phase: str, done: int, total: int, loss: float) -> None:
        progress(phase, before + done, steps, loss)

    return onwards


class Relabelled:
    """Samples with other targets, hard (N,) or soft (N, C); the inputs stay where they are.

    Args:
        samples: N samples.
        targets: One for each; shape (N,) int64, or (N, C) probabilities.
    """

    def __init__(self, samples: Samples, targets: Tensor) -> None:
        if len(samples) != len(targets):
            raise ValueError(f"wanted one target for each of {len(samples)} samples, got {len(targets)}")
        self._samples = samples
        self._targets = targets

    @property
    def targets(self) -> Tensor:
        """The new targets."""
        return self._targets

    def __len__(self) -> int:
        """N, the number of samples."""
        return len(self._samples)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The rows' inputs, and their new targets."""
        return self._samples.batch(rows)[0], self._targets[rows]


class Paired:
    """A retain row and a forget row at a time; the smaller set starts again when it is used up.

    A batch of B pairs has 2 B rows: first the retain rows, then the forget rows.

    Args:
        retain: At least one sample.
        forget: Likewise.
    """

    def __init__(self, retain: Samples, forget: Samples) -> None:
        self._counts = len(retain), len(forget)
        self._both = Joined(retain, forget)

    @property
    def targets(self) -> Tensor:
        """Of the retain row of each pair, shape (len(self),)."""
        return self._both.targets[torch.arange(len(self)) % self._counts[0]]

    def __len__(self) -> int:
        """As many pairs as the larger set has rows."""
        return max(self._counts)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets of these pairs, shape (2 B, ...) and (2 B,)."""
        retain, forget = self._counts
        return self._both.batch(torch.cat([rows % retain, retain + rows % forget]))
