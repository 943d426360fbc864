"""Fine-tune: go on training the original on the retain rows alone, and hope that it forgets the others.

Source: a baseline of most papers; five epochs of Adam at 1e-3 in the experiments of arXiv:2210.08196.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import nn

from unlearning.config import About, build
from unlearning.methods import Facts
from unlearning.methods.record import DistillRecord
from unlearning.methods.rows import Error, error_loss, needed, paced, settled_error, wrong_error, wrong_numbers
from unlearning.methods.task import Task
from unlearning.progress import Progress, silent
from unlearning.training import optimise

EPOCHS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuneConfig:
    """Settings of fine-tuning; a given value always wins over the rule."""

    learning_rate: Annotated[float, About("of Adam; a tenth for a fine-tuned backbone", "rule")] = 1e-3
    epochs: Annotated[int, About("over the retain rows", "rule")] = EPOCHS
    batch_size: Annotated[int, About("rows in an update", "rule")] = 256
    error: Annotated[Error, About("the loss; auto: the one that the model was trained by", "rule")] = "auto"
    quantiles: Annotated[tuple[float, ...], About("of the quantile loss", "rule")] = ()

    def __post_init__(self) -> None:
        """Refuse values outside their ranges, all named at once."""
        wrong = wrong_numbers(self, least={"epochs": 1, "batch_size": 2}, positive=("learning_rate",))
        wrong += wrong_error(self)
        if wrong:
            raise ValueError("; ".join(wrong))


def configure(settings: Mapping[str, Any], facts: Facts) -> FineTuneConfig:
    """The configuration for this model and data: five epochs paced by the number of retain rows.

    Raises:
        UsageError: For unknown settings or values out of range, all at once.
    """
    batch_size, epochs = paced(facts.retain_rows, EPOCHS)
    chosen = {"learning_rate": 1e-4 if facts.fine_tuned else 1e-3, "epochs": epochs, "batch_size": batch_size}
    return build(FineTuneConfig, {**chosen, **settings, **settled_error(settings, facts)}, what="fine_tune settings")


def distill(
    original: nn.Module,
    task: Task,
    *,
    config: FineTuneConfig,
    generator: torch.Generator,
    progress: Progress = silent,
) -> tuple[nn.Module, DistillRecord]:
    """A copy of the original trained further on the retain rows; and its course.

    Args:
        original: Left unchanged.
        task: With retain rows.
        config: From `configure`.
        generator: Of the order.
        progress: Called after every step.

    Raises:
        UsageError: Without retain rows.
        FloatingPointError: When the loss is not finite.
    """
    retain = needed(task, "retain", method="fine_tune")
    student = copy.deepcopy(original)
    losses = optimise(
        student,
        retain,
        optimiser=torch.optim.Adam(student.parameters(), lr=config.learning_rate),
        epochs=config.epochs,
        batch_size=config.batch_size,
        generator=generator,
        loss=error_loss(config, retain),
        phase="distill",
        progress=progress,
    )
    return student.eval(), DistillRecord(histories={"loss": losses})
