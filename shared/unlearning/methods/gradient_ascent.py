"""Gradient ascent, "NegGrad": climb the loss of the forget rows in small steps, and stop before the rest breaks.

Source: a baseline of arXiv:2111.08947 and many others. The papers give no settings: plain SGD, at most an epoch, and
gradients clipped to norm 1 are ours, as is the bound on the retain rows' loss. The loss climbed has no upper bound, so
without a bound elsewhere the method only ends in ruin. A regression's loss has the unit of its targets: there the bound
is a share of the loss that answering the mean of the retain targets would have.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlearning.config import About, build
from unlearning.data.samples import Rows, Samples
from unlearning.losses import Loss
from unlearning.methods import Facts
from unlearning.methods.record import DistillRecord
from unlearning.methods.rows import (
    Deck,
    Error,
    derived,
    error_loss,
    needed,
    part_of,
    settled_error,
    wrong_error,
    wrong_numbers,
)
from unlearning.methods.task import Task
from unlearning.progress import Progress, silent
from unlearning.training import optimise, predict


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientAscentConfig:
    """Settings of gradient ascent."""

    learning_rate: Annotated[float, About("of SGD; a tenth for a fine-tuned backbone", "rule")] = 0.05
    batch_size: Annotated[int, About("forget rows in an update")] = 16
    share_of_epoch: Annotated[float, About("share of the forget rows that is climbed, at most 1")] = 1.0
    clip_norm: Annotated[float, About("bound of the gradient's norm")] = 1.0
    retain_loss_rise: Annotated[
        float,
        About("nats that the mean retain loss may rise before it stops; for values, shares of a constant answer's"),
    ] = 0.2
    look_every: Annotated[int, About("updates between looks at the retain loss")] = 1
    watched_rows: Annotated[int, About("most retain rows in a look")] = 1000
    error: Annotated[Error, About("the loss; auto: the one that the model was trained by", "rule")] = "auto"
    quantiles: Annotated[tuple[float, ...], About("of the quantile loss", "rule")] = ()

    def __post_init__(self) -> None:
        """Refuse values outside their ranges, all named at once."""
        wrong = wrong_numbers(
            self,
            least={"batch_size": 2, "look_every": 1, "watched_rows": 1},
            positive=("learning_rate", "clip_norm", "retain_loss_rise"),
        )
        wrong += wrong_error(self)
        if not 0 < self.share_of_epoch <= 1:
            wrong.append(f"share_of_epoch must be in (0, 1], got {self.share_of_epoch}")
        if wrong:
            raise ValueError("; ".join(wrong))


def configure(settings: Mapping[str, Any], facts: Facts) -> GradientAscentConfig:
    """The configuration: the defaults whatever the facts, but a tenth of the rate for a fine-tuned backbone.

    Raises:
        UsageError: For unknown settings or values out of range, all at once.
    """
    chosen = {"learning_rate": 5e-3 if facts.fine_tuned else 0.05}
    return build(
        GradientAscentConfig,
        {**chosen, **settings, **settled_error(settings, facts)},
        what="gradient_ascent settings",
    )


def ascent_loss(outputs: Tensor, targets: Tensor, *, loss: Loss = F.cross_entropy) -> Tensor:
    """Minus the loss, <= 0; minimised, it makes the model wrong about these rows.

    Args:
        outputs: Shape (N, O).
        targets: Class indices or values, shape (N,), or (N, H).
        loss: Mean over the rows; of classes the cross-entropy, in nats.
    """
    return -loss(outputs, targets)


def clipped(optimiser: torch.optim.Optimizer, norm: float) -> torch.optim.Optimizer:
    """The optimiser, which from now on clips the gradient of all its parameters to this norm before each step."""
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    optimiser.register_step_pre_hook(lambda *_: (nn.utils.clip_grad_norm_(parameters, norm), None)[1])
    return optimiser


def distill(
    original: nn.Module,
    task: Task,
    *,
    config: GradientAscentConfig,
    generator: torch.Generator,
    progress: Progress = silent,
) -> tuple[nn.Module, DistillRecord]:
    """A copy of the original that has climbed the forget rows' loss; and its course.

    Args:
        original: Left unchanged.
        task: With forget rows; retain rows, if there are any, say when to stop.
        config: From `configure`.
        generator: Of the order.
        progress: Called after every step.

    Raises:
        UsageError: Without forget rows.
        FloatingPointError: When the loss is not finite.
    """
    forget = needed(task, "forget", method="gradient_ascent")
    student, loss = copy.deepcopy(original), error_loss(config, forget)
    optimiser = clipped(torch.optim.SGD(student.parameters(), lr=config.learning_rate), config.clip_norm)
    kept: Samples | None = None
    retain_losses: list[float] = []
    bound = math.inf
    if task.retain is not None and len(task.retain):
        kept = Rows(task.retain, torch.randperm(len(task.retain), generator=generator)[: config.watched_rows])
        retain_losses.append(loss(predict(original, kept), kept.targets).item())
        bound = retain_losses[0] + config.retain_loss_rise * _unit(loss, kept.targets, task.outputs)
    steps = max(1, round(config.share_of_epoch * len(forget) / config.batch_size))
    deck = Deck(len(forget), generator)
    losses: list[float] = []
    stopped = "all steps taken"
    while len(losses) < steps:
        done = len(losses)
        before = {} if kept is None else {name: value.clone() for name, value in student.state_dict().items()}
        losses += optimise(
            student,
            Rows(forget, deck.deal(min(config.look_every, steps - done) * config.batch_size)),
            optimiser=optimiser,
            epochs=1,
            batch_size=config.batch_size,
            generator=derived(generator),
            loss=lambda outputs, targets: ascent_loss(outputs, targets, loss=loss),
            phase="distill",
            progress=part_of(progress, done, steps),
        )
        if kept is not None:
            retain_losses.append(loss(predict(student, kept), kept.targets).item())
            if not retain_losses[-1] <= bound:  # NaN counts as risen
                student.load_state_dict(before)
                stopped = "the retain loss rose too far"
                break
    histories = {"loss": losses} | ({"retain_loss": retain_losses} if retain_losses else {})
    return student.eval(), DistillRecord(histories=histories, notes={"stopped": stopped, "steps": len(losses)})


def _unit(loss: Loss, targets: Tensor, outputs: int) -> float:
    """A nat for classes; for values, the loss of answering their mean."""
    if not targets.is_floating_point():
        return 1.0
    values = targets.reshape(len(targets), -1)
    mean = values.mean(0).repeat_interleave(outputs // values.shape[1])
    return loss(mean.expand(len(targets), outputs), targets).item()
