"""How fast a model learns again what it was made to forget: whole curves, relearn times, and the Anamnesis Index.

Source of the index: arXiv:2201.05629. Departs from its authors' code: every model is copied and gets the same rows in
the same order and a fresh optimiser; a time beyond the cap is a bound and no number, and so is an index made of one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlearning.config import About
from unlearning.data.samples import Samples
from unlearning.losses import loss_of, point
from unlearning.metrics.accuracy import accuracy
from unlearning.metrics.regression import mae, skill
from unlearning.progress import Progress, silent
from unlearning.training import device_of, evaluating, fitting, generator, permuted, seeded


@dataclass(frozen=True, slots=True, kw_only=True)
class RelearnConfig:
    """How a model is trained again, always by Adam from its first step."""

    updates: Annotated[int, About("optimiser steps at most: the cap")] = 200
    batch_size: Annotated[int, About("rows in an update", "code")] = 256
    learning_rate: Annotated[float, About("of Adam", "code")] = 1e-3
    every: Annotated[int, About("updates between two looks; above 1, times are ranges of so many updates")] = 1

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        for name in ("updates", "batch_size", "every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be a positive number, got {self.learning_rate}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RelearnCurve:
    """What a model knew of the watched rows as it was trained again.

    Attributes:
        updates: Optimiser steps done at each look, rising from 0.
        accuracies: On the watched rows, in [0, 1]; of a model that predicts values its `regression.skill`.
        losses: Mean cross-entropy on them in nats, >= 0; of values the mean absolute error, in their unit.
    """

    updates: tuple[int, ...]
    accuracies: tuple[float, ...]
    losses: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse a curve that does not begin before training, or that runs back."""
        rising = all(one < other for one, other in zip(self.updates, self.updates[1:], strict=False))
        if not self.updates or self.updates[0] != 0 or not rising:
            raise ValueError(f"a curve's updates must rise from 0, got {self.updates[:8]}")
        if not len(self.updates) == len(self.accuracies) == len(self.losses):
            raise ValueError("a curve needs an accuracy and a loss at every look")


def relearn(
    model: nn.Module,
    samples: Samples,
    watched: Samples,
    config: RelearnConfig,
    *,
    seed: int,
    until: float = math.inf,
    quantiles: Sequence[float] | None = None,
    progress: Progress = silent,
) -> RelearnCurve:
    """The curve of a copy of the model, trained on `samples` and asked about `watched`; the model stays as it is.

    The same seed gives every model the same rows in the same order, so curves of several models may be compared.

    Args:
        model: Copied; the copy trains all its weights, in train mode.
        samples: What is learned: the whole training set, some forget rows, or retain rows alone.
        watched: Rows of what was forgotten, not among `samples`; put on the device once.
        config: Settings.
        seed: Of the order.
        until: Accuracy at which to stop, once trained; infinite: go on to the cap.
        quantiles: For models that predict values: the levels that their outputs are, empty for plain predictions. None:
            a classifier.
        progress: Called after every look.

    Raises:
        ValueError: For no rows, or a model whose outputs are not finite to begin with.
        FloatingPointError: When a loss or an output is not finite.
    """
    if len(samples) == 0 or len(watched) == 0:
        raise ValueError(f"wanted rows to learn and rows to watch, got {len(samples)} and {len(watched)}")
    device = device_of(model)
    learner = copy.deepcopy(model).requires_grad_(True)
    optimiser = torch.optim.Adam(learner.parameters(), lr=config.learning_rate)
    inputs, targets = watched.batch(torch.arange(len(watched)))
    inputs = inputs.to(device)
    looks: list[tuple[int, float, float]] = []

    objective: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    if quantiles is not None:
        objective = loss_of("quantile", quantiles) if quantiles else loss_of("mse")

    def look(done: int) -> float:
        outputs = _logits(learner, inputs)
        if done and not bool(outputs.isfinite().all()):
            raise FloatingPointError(f"relearning: outputs are not finite after {done} updates; lower the rate")
        if quantiles is None:
            known = accuracy(outputs, targets), F.cross_entropy(outputs.double(), targets).item()
        else:
            answers = point(outputs, quantiles)
            known = skill(answers, targets), mae(answers, targets)
        looks.append((done, *known))
        progress("relearn", done, config.updates, looks[-1][2])
        return looks[-1][1]

    look(0)
    draws = generator(seed, "relearn")
    with seeded(draws.initial_seed(), device):
        learner.train()
        for done, rows in zip(
            range(1, config.updates + 1), _batches(len(samples), config.batch_size, draws), strict=False
        ):
            batch, labels = samples.batch(rows)
            optimiser.zero_grad(set_to_none=True)
            loss = objective(learner(batch.to(device)), labels.to(device))
            loss.backward()
            optimiser.step()
            if not math.isfinite(loss.item()):
                raise FloatingPointError(f"relearning: the loss became {loss.item()} at update {done}; lower the rate")
            if (done % config.every == 0 or done == config.updates) and look(done) >= until:
                break
    updates, accuracies, losses = zip(*looks, strict=True)
    return RelearnCurve(updates=updates, accuracies=accuracies, losses=losses)


def _batches(count: int, batch_size: int, draws: torch.Generator) -> Iterator[Tensor]:
    while True:
        yield from permuted(count, batch_size, draws)


def _logits(model: nn.Module, inputs: Tensor) -> Tensor:
    with evaluating(model), torch.inference_mode():
        return torch.cat([model(part).float().cpu() for part in inputs.split(fitting(1024, inputs.device))])


@dataclass(frozen=True, slots=True, kw_only=True)
class RelearnTime:
    """Updates until a target was reached: a whole number from `low` to `high`.

    Attributes:
        low: At least so many; >= 1.
        high: At most so many; infinite when the cap came first.
        already: The target was met before any update: nothing of it was forgotten.
    """

    low: int
    high: float
    already: bool = False

    @property
    def exact(self) -> bool:
        """Whether the number is known."""
        return self.low == self.high

    def __str__(self) -> str:
        return f"{self.low}" if self.exact else f"> {self.low - 1}" if math.isinf(self.high) else _range(self)


def _range(between: RelearnTime) -> str:
    return f"{between.low} to {between.high:.0f}"


def relearn_time(curve: RelearnCurve, target: float) -> RelearnTime:
    """When the accuracy first was seen at or above the target, at update 1 at the earliest.

    Args:
        curve: With a look after every update for an exact time.
        target: Accuracy, in [0, 1].

    Raises:
        ValueError: For a target that is no accuracy.
    """
    if not 0 <= target <= 1:
        raise ValueError(f"wanted a target between 0 and 1, got {target}")
    already = curve.accuracies[0] >= target
    for before, update, value in zip(curve.updates, curve.updates[1:], curve.accuracies[1:], strict=False):
        if value >= target:
            return RelearnTime(low=before + 1, high=update, already=already)
    return RelearnTime(low=curve.updates[-1] + 1, high=math.inf, already=already)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnamnesisIndex:
    """Relearn time of the unlearned model over that of the retrained one; 1 is ideal.

    Well below 1, what was forgotten comes back faster than it is learned for the first time. Well above 1, the model
    has been pushed away from it.

    Attributes:
        low: At least; 0 when nothing is known.
        high: At most; infinite when nothing is known.
        unlearned: The numerator.
        retrained: The denominator.
        target: Accuracy that both were to reach.
    """

    low: float
    high: float
    unlearned: RelearnTime
    retrained: RelearnTime
    target: float

    @property
    def value(self) -> float | None:
        """The index when both times are known exactly, else None."""
        return self.low if self.low == self.high else None

    @property
    def forgotten(self) -> bool:
        """False when the unlearned model met the target without relearning."""
        return not self.unlearned.already

    def __str__(self) -> str:
        if self.value is not None:
            return f"{self.value:.3g}"
        if self.low == 0 and math.isinf(self.high):
            return "undefined"
        if math.isinf(self.high):
            return f">= {self.low:.3g}"
        return f"<= {self.high:.3g}" if self.low == 0 else f"{self.low:.3g} to {self.high:.3g}"


def anamnesis_index(
    unlearned: RelearnCurve, retrained: RelearnCurve, *, original_accuracy: float, alpha: float = 0.05
) -> AnamnesisIndex:
    """The index of two curves of the same relearning; identical curves that reach the target give exactly 1.

    Two relearnings are all it needs: the original's accuracy sets the target, its curve is not used.

    Args:
        unlearned: From `relearn`.
        retrained: From `relearn` with the same rows, settings and seed.
        original_accuracy: Of the original model on the watched rows, in [0, 1].
        alpha: The target is 1 - alpha of it; in [0, 1).

    Raises:
        ValueError: For values out of range.
    """
    if not 0 <= alpha < 1:
        raise ValueError(f"wanted alpha in [0, 1), got {alpha}")
    target = (1 - alpha) * original_accuracy
    ours, theirs = relearn_time(unlearned, target), relearn_time(retrained, target)
    return AnamnesisIndex(
        low=ours.low / theirs.high, high=ours.high / theirs.low, unlearned=ours, retrained=theirs, target=target
    )


def area_between(curve: RelearnCurve, reference: RelearnCurve) -> float:
    """Mean over the updates of the curve's accuracy less the reference's; in [-1, 1], 0 is ideal.

    Above 0 the model comes back faster than the reference learns. Opposite parts of crossing curves cancel.

    Raises:
        ValueError: For looks at other updates, or at one only.
    """
    if curve.updates != reference.updates or len(curve.updates) < 2:
        raise ValueError("wanted two curves with looks at the same updates, two or more: run both to the cap")
    apart = [one - other for one, other in zip(curve.accuracies, reference.accuracies, strict=True)]
    area = 0.0
    for place in range(1, len(apart)):
        area += (curve.updates[place] - curve.updates[place - 1]) * (apart[place] + apart[place - 1]) / 2
    return area / curve.updates[-1]
