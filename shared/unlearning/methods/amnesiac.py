"""Amnesiac unlearning: train on with a wrong label for every forget row, drawn once at random.

Source: the relabelling variant of Graves et al., "Amnesiac Machine Unlearning", AAAI 2021, arXiv:2010.10981, as the
experiments of arXiv:2205.08096 run it: all retain rows, three epochs, Adam.

Departs from it for whole classes: no forgotten class is drawn as a label, also when several are forgotten. The rate is
the published one (1e-4) for a fine-tuned backbone only; a network trained from scratch hardly moves at that rate.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from unlearning.config import About, build
from unlearning.data.samples import Joined
from unlearning.errors import UsageError
from unlearning.methods import Facts
from unlearning.methods.record import DistillRecord
from unlearning.methods.rows import Relabelled, needed, paced, wrong_numbers
from unlearning.methods.task import Task
from unlearning.progress import Progress, silent
from unlearning.training import optimise

EPOCHS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class AmnesiacConfig:
    """Settings of relabelling; a given value always wins over the rule."""

    learning_rate: Annotated[float, About("of Adam; a tenth for a fine-tuned backbone", "rule")] = 1e-3
    epochs: Annotated[int, About("over the retain rows and the relabelled ones", "rule")] = EPOCHS
    batch_size: Annotated[int, About("rows in an update", "rule")] = 256

    def __post_init__(self) -> None:
        """Refuse values outside their ranges, all named at once."""
        wrong = wrong_numbers(self, least={"epochs": 1, "batch_size": 2}, positive=("learning_rate",))
        if wrong:
            raise ValueError("; ".join(wrong))


def configure(settings: Mapping[str, Any], facts: Facts) -> AmnesiacConfig:
    """The configuration for this model and data: three epochs paced by the number of rows.

    Raises:
        UsageError: For unknown settings or values out of range, all at once.
    """
    batch_size, epochs = paced(facts.retain_rows + facts.forget_classes * facts.retain_per_class, EPOCHS)
    chosen = {"learning_rate": 1e-4 if facts.fine_tuned else 1e-3, "epochs": epochs, "batch_size": batch_size}
    return build(AmnesiacConfig, {**chosen, **settings}, what="amnesiac settings")


def wrong_labels(
    targets: Tensor, *, classes: int, forget_classes: tuple[int, ...] = (), generator: torch.Generator
) -> Tensor:
    """For each row a class that is not its own, each of the others equally likely, shape (N,), int64.

    Args:
        targets: Class indices, shape (N,).
        classes: C.
        forget_classes: Never drawn.
        generator: Of the draw.

    Raises:
        UsageError: When a row has no class left to draw.
    """
    allowed = torch.tensor([c for c in range(classes) if c not in forget_classes], dtype=torch.int64)
    place = torch.full((classes,), -1, dtype=torch.int64)
    place[allowed] = torch.arange(len(allowed))
    own = place[targets]  # among those allowed; -1 when it is not
    choices = len(allowed) - (own >= 0).long()
    if len(targets) and int(choices.min()) < 1:
        raise UsageError(f"a wrong label needs a class besides the row's own, {classes} classes leave none")
    drawn = (torch.rand(len(targets), generator=generator, dtype=torch.float64) * choices).long()
    return allowed[(drawn + own + 1) % len(allowed)]  # own + 1, own + 2, ..., around to own - 1


def distill(
    original: nn.Module,
    task: Task,
    *,
    config: AmnesiacConfig,
    generator: torch.Generator,
    progress: Progress = silent,
) -> tuple[nn.Module, DistillRecord]:
    """A copy of the original trained further on the retain rows and on relabelled forget rows; and its course.

    Args:
        original: Left unchanged.
        task: With forget and retain rows.
        config: From `configure`.
        generator: Of the labels, then of the order.
        progress: Called after every step.

    Raises:
        UsageError: Without forget or retain rows.
        FloatingPointError: When the loss is not finite.
    """
    forget = needed(task, "forget", method="amnesiac")
    retain = needed(task, "retain", method="amnesiac")
    labels = wrong_labels(forget.targets, classes=task.outputs, forget_classes=task.forget_classes, generator=generator)
    student = copy.deepcopy(original)
    losses = optimise(
        student,
        Joined(retain, Relabelled(forget, labels)),
        optimiser=torch.optim.Adam(student.parameters(), lr=config.learning_rate),
        epochs=config.epochs,
        batch_size=config.batch_size,
        generator=generator,
        phase="distill",
        progress=progress,
    )
    return student.eval(), DistillRecord(histories={"loss": losses})
