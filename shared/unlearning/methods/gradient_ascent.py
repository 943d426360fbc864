"""Gradient ascent, "NegGrad": climb the loss of the forget rows in small steps, and stop before the rest breaks.

Source: a baseline of arXiv:2111.08947 and many others. The papers give no settings: plain SGD, at most an epoch, and
gradients clipped to norm 1 are ours, as is the bound on the retain rows' loss. The loss climbed has no upper bound, so
without a bound elsewhere the method only ends in ruin.
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
from unlearning.data.samples import Rows, Samples
from unlearning.methods import Facts
from unlearning.methods.record import DistillRecord
from unlearning.methods.rows import Deck, derived, needed, part_of, wrong_numbers
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
    retain_loss_rise: Annotated[float, About("nats that the mean retain loss may rise before it stops")] = 0.2
    look_every: Annotated[int, About("updates between looks at the retain loss")] = 1
    watched_rows: Annotated[int, About("most retain rows in a look")] = 1000

    def __post_init__(self) -> None:
        """Refuse values outside their ranges, all named at once."""
        wrong = wrong_numbers(
            self,
            least={"batch_size": 2, "look_every": 1, "watched_rows": 1},
            positive=("learning_rate", "clip_norm", "retain_loss_rise"),
        )
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
    return build(GradientAscentConfig, {**chosen, **settings}, what="gradient_ascent settings")


def ascent_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Minus the cross-entropy: -mean CE, in nats, <= 0; minimised, it makes the model wrong about these rows.

    Args:
        logits: Shape (N, C).
        targets: Class indices, shape (N,).
    """
    return -F.cross_entropy(logits, targets)


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
    student = copy.deepcopy(original)
    optimiser = clipped(torch.optim.SGD(student.parameters(), lr=config.learning_rate), config.clip_norm)
    kept: Samples | None = None
    retain_losses: list[float] = []
    if task.retain is not None and len(task.retain):
        kept = Rows(task.retain, torch.randperm(len(task.retain), generator=generator)[: config.watched_rows])
        retain_losses.append(_mean_loss(original, kept))
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
            loss=ascent_loss,
            phase="distill",
            progress=part_of(progress, done, steps),
        )
        if kept is not None:
            retain_losses.append(_mean_loss(student, kept))
            if not retain_losses[-1] <= retain_losses[0] + config.retain_loss_rise:  # NaN counts as risen
                student.load_state_dict(before)
                stopped = "the retain loss rose too far"
                break
    histories = {"loss": losses} | ({"retain_loss": retain_losses} if retain_losses else {})
    return student.eval(), DistillRecord(histories=histories, notes={"stopped": stopped, "steps": len(losses)})


def _mean_loss(model: nn.Module, rows: Samples) -> float:
    return F.cross_entropy(predict(model, rows), rows.targets).item()
