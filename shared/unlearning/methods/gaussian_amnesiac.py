"""Gaussian amnesiac: a random value for every forget row, drawn like the targets of all, then train on.

Source: a baseline of Tarun et al., "Deep Regression Unlearning", ICML 2023, arXiv:2210.08196: the random labels of
arXiv:2010.10981 for a regression.

Departs from the authors' code, by default: a drawn value lies in the range of the observed targets (theirs may be a
negative age), and the rate falls to zero. The preset "paper" does neither.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from unlearning.config import About, build
from unlearning.data.samples import Joined
from unlearning.methods import Facts
from unlearning.methods.incompetent_teacher import adam
from unlearning.methods.record import DistillRecord
from unlearning.methods.rows import (
    Error,
    Relabelled,
    error_loss,
    needed,
    paced,
    settled_error,
    wrong_error,
    wrong_numbers,
)
from unlearning.methods.task import Task
from unlearning.progress import Progress, silent
from unlearning.training import optimise, steps_per_epoch

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {"clip": "none", "learning_rate": 1e-3, "schedule": "constant", "epochs": 1, "batch_size": 256},
}
"""`paper`: what the released notebook of face ages runs; that of sentence pairs runs 5 epochs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GaussianAmnesiacConfig:
    """Settings of Gaussian amnesiac unlearning; a given value always wins over the rule."""

    preset: Annotated[Literal["default", "paper"], About("a set of values; given ones win")] = "default"
    clip: Annotated[
        Literal["observed", "none"], About("observed: drawn values stay in the range of the training targets")
    ] = "observed"
    learning_rate: Annotated[float, About("of Adam; a tenth for a fine-tuned backbone", "rule")] = 1e-3
    schedule: Annotated[Literal["linear", "constant"], About("of the rate; linear: falls to zero")] = "linear"
    epochs: Annotated[int, About("over all training rows", "rule")] = 3
    batch_size: Annotated[int, About("rows in an update", "rule")] = 256
    error: Annotated[Error, About("the loss; auto: the one that the model was trained by", "rule")] = "auto"
    quantiles: Annotated[tuple[float, ...], About("of the quantile loss", "rule")] = ()

    def __post_init__(self) -> None:
        """Refuse values outside their ranges, all named at once."""
        wrong = wrong_numbers(self, least={"epochs": 1, "batch_size": 2}, positive=("learning_rate",))
        wrong += wrong_error(self)
        if self.error == "cross_entropy":
            wrong.append("error must be of values, cross_entropy is of classes")
        if wrong:
            raise ValueError("; ".join(wrong))


def configure(settings: Mapping[str, Any], facts: Facts) -> GaussianAmnesiacConfig:
    """The configuration for this model and data: rule, then preset, then what was asked for.

    The rule: three epochs, paced by the number of retain rows, with the loss that the model was trained by.

    Raises:
        UsageError: For unknown settings or values out of range, all at once.
    """
    asked = build(GaussianAmnesiacConfig, settings, what="gaussian_amnesiac settings")
    batch_size, epochs = paced(facts.retain_rows, 3)
    chosen: dict[str, Any] = {
        "learning_rate": 1e-4 if facts.fine_tuned else 1e-3,
        "epochs": epochs,
        "batch_size": batch_size,
        **PRESETS[asked.preset],
    }
    return build(
        GaussianAmnesiacConfig,
        {**chosen, **settings, **settled_error(settings, facts)},
        what="gaussian_amnesiac settings",
    )


def gaussian_targets(observed: Tensor, count: int, *, clip: bool, generator: torch.Generator) -> Tensor:
    """Values drawn from N(mu, sigma^2) of the observed targets, each step of a forecast by itself.

    Args:
        observed: Targets of all training rows, forget and retain, shape (N,) or (N, H); sigma is the sample deviation.
        count: How many to draw, M.
        clip: Whether what lies outside the observed range is moved to its nearer end.
        generator: Of the draw, on the CPU.

    Returns:
        Shape (M,) or (M, H).

    Raises:
        ValueError: For fewer than two targets: they have no deviation.
    """
    if len(observed) < 2:
        raise ValueError(f"wanted two or more targets, got {len(observed)}: one has no deviation")
    noise = torch.randn((count, *observed.shape[1:]), generator=generator, dtype=observed.dtype)
    drawn = observed.mean(0) + observed.std(0) * noise
    return torch.minimum(torch.maximum(drawn, observed.amin(0)), observed.amax(0)) if clip else drawn


def distill(
    original: nn.Module,
    task: Task,
    *,
    config: GaussianAmnesiacConfig,
    generator: torch.Generator,
    progress: Progress = silent,
) -> tuple[nn.Module, DistillRecord]:
    """A copy of the original trained further on retain rows and on forget rows with random values; and its course.

    Args:
        original: Left unchanged.
        task: With forget and retain rows.
        config: From `configure`.
        generator: Of the values and the order.
        progress: Called after every step.

    Raises:
        UsageError: Without forget or retain rows.
        FloatingPointError: When the loss is not finite.
    """
    forget = needed(task, "forget", method="gaussian_amnesiac")
    retain = needed(task, "retain", method="gaussian_amnesiac")
    observed = torch.cat([forget.targets, retain.targets]).float()
    drawn = gaussian_targets(observed, len(forget), clip=config.clip == "observed", generator=generator)
    student = copy.deepcopy(original)
    taught = Joined(Relabelled(forget, drawn), retain)
    steps = config.epochs * steps_per_epoch(len(taught), config.batch_size)
    optimiser, scheduler = adam(student, steps, config.learning_rate, config.schedule)
    losses = optimise(
        student,
        taught,
        optimiser=optimiser,
        scheduler=scheduler,
        epochs=config.epochs,
        batch_size=config.batch_size,
        generator=generator,
        loss=error_loss(config, retain),
        phase="distill",
        progress=progress,
    )
    notes: dict[str, str | float | int] = {
        "target_mean": observed.mean().item(),
        "target_deviation": observed.std(0).mean().item(),
    }
    return student.eval(), DistillRecord(histories={"loss": losses}, notes=notes)
