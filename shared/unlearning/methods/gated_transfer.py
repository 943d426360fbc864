"""Gated knowledge transfer: a new network learns from the original on invented images that show no forgotten class.

Source: Chundawat et al., "Zero-Shot Machine Unlearning", arXiv:2201.05629; the scheme without the gate: Micaelli and
Storkey, arXiv:1905.09768. Reads the original and the list of forgotten classes, and no data at all. A generator invents
images on which student and original disagree; a gate drops those in which the original sees a forgotten class; the
student, of the same architecture with fresh weights, imitates the original on the rest.

Departs from the released code: the divergence is taken in log space on both sides (there its gradient is infinite
once a probability of the original underflows); all forgotten classes are gated (there class 0); what the original says
of a pseudo-batch is computed once and used for all student steps (there ten times, on identical images); a batch that
the gate thins out is topped up; nothing real is read to schedule, stop or choose (there the test set is). By default
two terms steer the generator that `variant="paper"` leaves out: a barrier keeps it off the forgotten classes, and a
balance makes it show all others, as in "Data-Free Learning of Student Networks", arXiv:1904.01186; without it the
barrier can cost whole classes that resemble a forgotten one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import nn

from unlearning.config import About, build
from unlearning.errors import UsageError
from unlearning.methods import Facts
from unlearning.methods.gated_course import Course
from unlearning.methods.record import DistillRecord
from unlearning.methods.task import Task
from unlearning.progress import Progress, silent

PAPER: dict[str, Any] = {
    "cycles": 4000,
    "monitor_every": 50,
    "generator_width": 128,
    "schedule": "plateau",
    "attention": 250.0,
}
"""What `variant="paper"` changes besides the barrier: the published length, generator, schedule and attention."""

MNIST_SIZE = 28 * 28
"""Values of the inputs that the paper's settings are for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedTransferConfig:
    """Settings of gated knowledge transfer. Those that `configure` chooses are marked; a given value always wins."""

    variant: Annotated[
        Literal["barrier", "paper"], About("paper: the published scheme, without the two steering terms")
    ] = "barrier"
    cycles: Annotated[
        int, About("pseudo-batches: one step of the generator, then all student steps, on each", "rule")
    ] = 400
    threshold: Annotated[
        float, About("epsilon: an image passes when no forgotten class is likelier than this", "paper")
    ] = 0.01
    barrier_weight: Annotated[float, About("of what keeps the generator off the forgotten classes; 0: off")] = 0.05
    barrier_margin: Annotated[float, About("the barrier begins at threshold / margin")] = 4.0
    balance_weight: Annotated[float, About("of what makes the generator show all other classes; 0: off")] = 0.3
    batch_size: Annotated[int, About("images in a pseudo-batch", "code")] = 256
    student_steps: Annotated[int, About("updates of the student on each pseudo-batch", "paper")] = 10
    temperature: Annotated[float, About("tau, of both softmaxes in the divergence; the gate has none", "code")] = 1.0
    attention: Annotated[float, About("beta, weight of the attention maps; 0: off", "rule")] = 250.0
    generator_learning_rate: Annotated[float, About("of Adam", "paper")] = 1e-3
    student_learning_rate: Annotated[float, About("of Adam", "code")] = 1e-3
    schedule: Annotated[Literal["cosine", "plateau", "constant"], About("of both rates over the cycles")] = "cosine"
    clip_norm: Annotated[float, About("bound of the norm of each network's gradient", "code")] = 5.0
    latent: Annotated[int, About("numbers that an image is made from", "paper")] = 128
    generator_width: Annotated[int, About("channels of the generator's first maps; its time grows with the square")] = (
        32
    )
    generator_precision: Annotated[
        Literal["float32", "bfloat16"], About("bfloat16 is faster where the processor is made for it")
    ] = "float32"
    student_batchnorm: Annotated[
        Literal["train", "frozen_init"], About("frozen_init: mean 0 and variance 1 throughout")
    ] = "train"
    renorm_teacher: Annotated[bool, About("take the forgotten classes out of what the student imitates")] = False
    fill: Annotated[float, About("share of a pseudo-batch that must pass; further images are drawn until then")] = 0.5
    empty_tries: Annotated[
        int, About("pseudo-batches in a row of which too little passes, before the generator is put back", "code")
    ] = 100
    restores: Annotated[int, About("times that the generator is put back before giving up")] = 10
    monitor_every: Annotated[int, About("cycles between looks at the student; a checkpoint each")] = 25
    leak: Annotated[
        float, About("rise of a forgotten class's mean probability on data-free probes above which it counts as back")
    ] = 0.04
    patience: Annotated[int, About("looks in a row that find a leak, before stopping")] = 3

    def __post_init__(self) -> None:
        """Refuse values outside their ranges, all named at once."""
        wrong = [
            f"{name} must be at least {least}, got {getattr(self, name)}"
            for name, least in (
                ("cycles", 1),
                ("batch_size", 4),
                ("student_steps", 1),
                ("latent", 1),
                ("generator_width", 8),
                ("empty_tries", 1),
                ("restores", 0),
                ("monitor_every", 1),
                ("patience", 1),
            )
            if getattr(self, name) < least
        ]
        wrong += [
            f"{name} must be a positive number, got {getattr(self, name)}"
            for name in ("temperature", "generator_learning_rate", "student_learning_rate", "clip_norm")
            if not 0 < getattr(self, name) < math.inf
        ]
        wrong += [
            f"{name} must be >= 0, got {getattr(self, name)}"
            for name in ("attention", "barrier_weight", "balance_weight")
            if not 0 <= getattr(self, name) < math.inf
        ]
        wrong += [
            f"{name} must be above 0 and below 1, got {getattr(self, name)}"
            for name in ("threshold", "leak")
            if not 0 < getattr(self, name) < 1
        ]
        if not 0 < self.fill <= 1:
            wrong.append(f"fill must be above 0 and at most 1, got {self.fill}")
        if not 1 <= self.barrier_margin < math.inf:
            wrong.append(f"barrier_margin must be at least 1, got {self.barrier_margin}")
        if wrong:
            raise ValueError("; ".join(wrong))


def configure(settings: Mapping[str, Any], facts: Facts) -> GatedTransferConfig:
    """The configuration for this model: rule, then variant, then what was asked for; it looks at no data.

    The rule. Cycles: 400 for inputs of up to 28 x 28 values and in proportion beyond, at most the paper's 4,000.
    Attention: the paper's weight, in proportion below 28 x 28, because a map's mean square grows as its positions get
    fewer and would drown the divergence.

    Raises:
        UsageError: For unknown settings or values out of range, all at once.
    """
    asked = build(GatedTransferConfig, settings, what="gated_transfer settings")
    chosen: dict[str, Any] = {
        "cycles": min(4000, max(400, 400 * facts.input_size // MNIST_SIZE)),
        "attention": 250.0 * min(1.0, facts.input_size / MNIST_SIZE),
    }
    if asked.variant == "paper":
        chosen |= PAPER
    return build(GatedTransferConfig, {**chosen, **settings}, what="gated_transfer settings")


def distill(
    original: nn.Module,
    task: Task,
    *,
    config: GatedTransferConfig,
    generator: torch.Generator,
    progress: Progress = silent,
    resume: Mapping[str, Any] | None = None,
    checkpoint: Callable[[Mapping[str, Any]], None] | None = None,
) -> tuple[nn.Module, DistillRecord]:
    """A fresh network that imitates the original but for the forgotten classes; and what happened on the way.

    The student is looked at every `monitor_every` cycles, by data-free means alone: the probability that it gives a
    forgotten class on four kinds of images, each against its lowest so far, or one part in all classes if that is
    less. The last student whose highest rise is at most `leak` is returned; after `patience` looks in a row above that,
    it stops.

    Histories of the record, one value per look: "cycle"; "student loss" and "generator loss", means since the look
    before; "pass rate" of the gate; "agreement" of the classes that student and original see in gated images;
    "classes", how many the original sees in at least 1% of the images, after the gate; and the mean probability that
    the student gives the likeliest forgotten class on "gated" and "ungated" pseudo-images, on "noise", and on "probes",
    images in which the original sees a forgotten class. Notes: "stopped" (done; leak: the class came back; collapse:
    of the generator), "cycles", "chosen_cycle", "leak" (the chosen student's highest rise), "restores" of the
    generator, "attention" (how many maps are copied, or why none).

    Args:
        original: Left unchanged: weights, buffers and modes.
        task: Shapes, forgotten classes and `blank`; its samples are never touched.
        config: From `configure`.
        generator: Of latents, initial weights and dropout; on the CPU.
        progress: Called after every cycle.
        resume: What `checkpoint` was last given: goes on from there, to the same bytes as without a break.
        checkpoint: Called after a look with everything needed to go on, as tensors and numbers by name.

    Raises:
        UsageError: Without a class to forget or two to keep, or for a checkpoint of another distillation.
        FloatingPointError: When the generator collapsed for good before the first look at the student.
    """
    kept = set(range(task.outputs)) - set(task.forget_classes)
    if not task.forget_classes or len(kept) < 2:
        raise UsageError(
            f"gated transfer needs classes to forget and at least two to keep, got {len(task.forget_classes)} of "
            f"{task.outputs} to forget: it serves requests by class"
        )
    run = Course(original, task, config, generator)
    if resume is not None:
        run.load(resume)
    run.good = run.state()
    stopped: Literal["done", "leak", "collapse"] = "done"
    while run.cycle < config.cycles:
        if not run.advance():
            run.restore()
            if run.restores > config.restores:
                stopped = "collapse"
                break
        progress("distill", run.cycle, config.cycles, run.losses[-1] if run.losses else math.nan)
        if run.cycle % config.monitor_every == 0 or run.cycle == config.cycles:
            run.look()
            if run.empty == 0:
                run.good = run.state()
                if checkpoint is not None:
                    checkpoint(run.good)
            if run.leaks >= config.patience:
                stopped = "leak"
                break
    if run.chosen == 0:
        raise FloatingPointError(
            f"distill: the generator collapsed {run.restores} times by cycle {run.cycle}; lower "
            "generator_learning_rate, or raise threshold if the gate passes too little"
        )
    return run.result(stopped)
