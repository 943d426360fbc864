"""NegGrad+: descend the retain rows' loss while climbing that of the forget rows, in one weighted sum.

Source: a baseline of Kurmanji et al., "Towards Unbounded Machine Unlearning", NeurIPS 2023, arXiv:2302.09880; not in
the papers that the other methods come from.

Each step takes as many retain rows as forget rows. Gradients are clipped to norm 1 (ours): the term that is climbed has
no bound.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlearning.config import About, build
from unlearning.losses import Loss
from unlearning.methods import Facts
from unlearning.methods.gradient_ascent import clipped
from unlearning.methods.record import DistillRecord
from unlearning.methods.rows import Error, Paired, error_loss, needed, paced, settled_error, wrong_error, wrong_numbers
from unlearning.methods.task import Task
from unlearning.progress import Progress, silent
from unlearning.training import optimise


@dataclass(frozen=True, slots=True, kw_only=True)
class NegativeGradientPlusConfig:
    """Settings of NegGrad+; a given value always wins over the rule."""

    alpha: Annotated[float, About("weight of the retain rows; 1 - alpha that of the forget rows")] = 0.95
    learning_rate: Annotated[float, About("of SGD; a tenth for a fine-tuned backbone", "rule")] = 3e-2
    epochs: Annotated[int, About("over the larger of the two sets of rows", "rule")] = 1
    batch_size: Annotated[int, About("retain rows, and as many forget rows, in an update", "rule")] = 64
    clip_norm: Annotated[float, About("bound of the gradient's norm")] = 1.0
    error: Annotated[Error, About("the loss; auto: the one that the model was trained by", "rule")] = "auto"
    quantiles: Annotated[tuple[float, ...], About("of the quantile loss", "rule")] = ()

    def __post_init__(self) -> None:
        """Refuse values outside their ranges, all named at once."""
        wrong = wrong_numbers(self, least={"epochs": 1, "batch_size": 2}, positive=("learning_rate", "clip_norm"))
        wrong += wrong_error(self)
        if not 0 <= self.alpha <= 1:
            wrong.append(f"alpha must be in [0, 1], got {self.alpha}")
        if wrong:
            raise ValueError("; ".join(wrong))


def configure(settings: Mapping[str, Any], facts: Facts) -> NegativeGradientPlusConfig:
    """The configuration for this model and data: an epoch paced by the number of retain rows.

    Raises:
        UsageError: For unknown settings or values out of range, all at once.
    """
    batch_size, epochs = paced(facts.retain_rows, 1)
    chosen = {"learning_rate": 3e-3 if facts.fine_tuned else 3e-2, "epochs": epochs, "batch_size": batch_size}
    return build(
        NegativeGradientPlusConfig,
        {**chosen, **settings, **settled_error(settings, facts)},
        what="negative_gradient_plus settings",
    )


def negative_gradient_plus_loss(
    outputs: Tensor, targets: Tensor, *, alpha: float, loss: Loss = F.cross_entropy
) -> Tensor:
    """Alpha * E(retain) - (1 - alpha) * E(forget), each a mean over its rows; it has no lower bound.

    Args:
        outputs: Shape (2 B, O): those of B retain rows, then those of B forget rows.
        targets: Class indices or values, shape (2 B,), or (2 B, H).
        alpha: In [0, 1].
        loss: E; of classes the cross-entropy, in nats.
    """
    B = len(outputs) // 2
    return alpha * loss(outputs[:B], targets[:B]) - (1 - alpha) * loss(outputs[B:], targets[B:])


def distill(
    original: nn.Module,
    task: Task,
    *,
    config: NegativeGradientPlusConfig,
    generator: torch.Generator,
    progress: Progress = silent,
) -> tuple[nn.Module, DistillRecord]:
    """A copy of the original that is worse on the forget rows and about as good on retain rows; and its course.

    Args:
        original: Left unchanged.
        task: With forget and retain rows.
        config: From `configure`.
        generator: Of the order.
        progress: Called after every step.

    Raises:
        UsageError: Without forget or retain rows.
        FloatingPointError: When the loss is not finite.
    """
    forget = needed(task, "forget", method="negative_gradient_plus")
    retain = needed(task, "retain", method="negative_gradient_plus")
    student, loss = copy.deepcopy(original), error_loss(config, retain)
    sgd = torch.optim.SGD(student.parameters(), lr=config.learning_rate)
    losses = optimise(
        student,
        Paired(retain, forget),
        optimiser=clipped(sgd, config.clip_norm),
        epochs=config.epochs,
        batch_size=config.batch_size,
        generator=generator,
        loss=lambda outputs, targets: negative_gradient_plus_loss(outputs, targets, alpha=config.alpha, loss=loss),
        phase="distill",
        progress=progress,
    )
    return student.eval(), DistillRecord(histories={"loss": losses})
