"""UNSIR: learn noise that a class's label least fits, impair the model with it, repair on retain data.

Source: Tarun et al., "Fast Yet Effective Machine Unlearning", arXiv:2111.08947. Never touches the forget data.

Departs from the released notebook, by default: the network is frozen and in eval mode while noise is learned (there it
trains, so that BatchNorm statistics drift); every learned image is used (there 3 of 256); noise carries the label of
its own class (there the first class's, always); the penalty does not depend on the resolution. The preset "code" puts
the notebook's choices back. Noise for all classes is learned in one batch: in eval mode classes cannot affect each
other, so the result is the same as one class at a time.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from unlearning.config import About, build
from unlearning.data.samples import Joined, Samples
from unlearning.methods import Facts
from unlearning.methods.noise import (
    Noise,
    NoiseSamples,
    finite_objective,
    learn_noise,
    noise_objective,
    resolved_penalty,
)
from unlearning.progress import Progress, silent
from unlearning.training import device_of, optimise, seeded

__all__ = [
    "PRESETS",
    "RATES",
    "Noise",
    "NoiseSamples",
    "UnsirConfig",
    "configure",
    "effective_penalty",
    "impair",
    "noise_objective",
    "repair",
    "synthesize",
]

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {"noise_images": 20 * 256, "batch_size": 256, "impair_epochs": 1, "repair_epochs": 1},
    "code": {
        "noise_images": 60,
        "distinct_images": 3,
        "noise_labels": "first",
        "noise_batchnorm": "training",
        "scale_penalty": False,
        "batch_size": 256,
        "impair_epochs": 1,
        "repair_epochs": 1,
        "impair_learning_rate": 0.02,
        "repair_learning_rate": 0.01,
    },
}
"""`paper`: 20 batches of 256 noise images per class. `code`: what the released notebook runs, its defects included."""

RATES: dict[str, tuple[float, float]] = {"scratch": (0.004, 0.0015), "pretrained": (1e-4, 1e-4)}
"""Adam's rates to impair and to repair: for a network trained from scratch, and for a fine-tuned backbone.

A network that was itself trained by Adam at more than the first "scratch" rate is impaired at that rate instead, and
repaired at `REPAIR_SHARE` of it: weights that were learned in large steps take large steps to overwrite.
"""

REPAIR_SHARE = 0.4


@dataclass(frozen=True, slots=True, kw_only=True)
class UnsirConfig:
    """Settings of UNSIR. Those that `configure` chooses by the data are marked; a given value always wins."""

    preset: Annotated[Literal["default", "paper", "code"], About("a set of values; given ones win")] = "default"
    rates: Annotated[Literal["auto", "scratch", "pretrained"], About("which rates; auto: by how it was trained")] = (
        "auto"
    )
    noise: Annotated[
        Literal["error_maximising", "none"], About("none: a control, impaired on retain data alone", "paper")
    ] = "error_maximising"
    noise_batch: Annotated[int, About("images learned per class", "code")] = 256
    noise_steps: Annotated[int, About("updates of the noise", "code")] = 40
    noise_learning_rate: Annotated[float, About("of Adam, on the noise", "code")] = 0.1
    penalty: Annotated[float, About("lambda of the noise, at 3 x 32 x 32 values", "code")] = 0.1
    scale_penalty: Annotated[bool, About("lambda * 3072 / values above that size")] = True
    noise_batchnorm: Annotated[Literal["frozen", "training"], About("BatchNorm while noise is learned")] = "frozen"
    noise_chunk: Annotated[int, About("images in one forward pass; bounds memory, changes nothing else")] = 1024
    noise_images: Annotated[int, About("per class in the impair set: as many as a retain class has rows", "rule")] = (
        1000
    )
    distinct_images: Annotated[int, About("learned images used per class; 0: all")] = 0
    noise_labels: Annotated[Literal["own", "first"], About("class that noise is labelled with", "paper")] = "own"
    impair_learning_rate: Annotated[float, About("of Adam", "rule")] = 0.004
    repair_learning_rate: Annotated[float, About("of Adam", "rule")] = 0.0015
    impair_epochs: Annotated[int, About("over noise and retain rows", "rule")] = 1
    repair_epochs: Annotated[int, About("over retain rows", "paper")] = 1
    batch_size: Annotated[int, About("of both training stages", "rule")] = 256

    def __post_init__(self) -> None:
        """Refuse values outside their ranges, all named at once."""
        wrong = [
            f"{name} must be at least {least}, got {getattr(self, name)}"
            for name, least in (
                ("noise_batch", 1),
                ("noise_steps", 1),
                ("noise_chunk", 1),
                ("noise_images", 1),
                ("distinct_images", 0),
                ("impair_epochs", 1),
                ("repair_epochs", 1),
                ("batch_size", 2),
            )
            if getattr(self, name) < least
        ]
        wrong += [
            f"{name} must be a positive number, got {getattr(self, name)}"
            for name in ("noise_learning_rate", "impair_learning_rate", "repair_learning_rate")
            if not 0 < getattr(self, name) < math.inf
        ]
        if not 0 <= self.penalty < math.inf:
            wrong.append(f"penalty must be >= 0, got {self.penalty}")
        if wrong:
            raise ValueError("; ".join(wrong))


STEPS = 100
"""Fewest updates of the impair stage that the defaults plan for."""


def configure(settings: Mapping[str, Any], facts: Facts) -> UnsirConfig:
    """The configuration for this model and data: rule, then preset, then what was asked for.

    The rule. Rates: `RATES["pretrained"]` for a fine-tuned model; else `RATES["scratch"]`, or the model's own Adam rate
    where that is higher. Noise: as many images of a forgotten class as a retain class has rows, so that the impair set
    is balanced. Batch: the largest power of two from 16 to 256 with which the impair stage takes at least `STEPS`
    updates; with too few rows even for 16, more epochs of impairing instead. One Adam update moves a weight by about
    the rate, so it is their product with the number of updates, not the rate alone, that decides how far a model can
    leave its old weights.

    Raises:
        UsageError: For unknown settings or values out of range, all at once.
    """
    asked = build(UnsirConfig, settings, what="unsir settings")
    noise_images = settings.get("noise_images", max(1, facts.retain_per_class))
    rows = facts.retain_rows + facts.forget_classes * int(noise_images)
    fitting = next((size for size in (256, 128, 64, 32) if rows >= STEPS * size), 16)
    batch_size = int(settings.get("batch_size", fitting))
    kind = "pretrained" if facts.fine_tuned else "scratch"
    chosen: dict[str, Any] = {
        "noise_images": noise_images,
        "batch_size": batch_size,
        "impair_epochs": max(1, math.ceil(STEPS * batch_size / rows)),
        **_rates(kind if asked.rates == "auto" else asked.rates, facts.learning_rate),
        **PRESETS[asked.preset],
    }
    if asked.rates != "auto":  # asked for by name: wins over the preset's
        chosen |= _rates(asked.rates, facts.learning_rate)
    return build(UnsirConfig, {**chosen, **settings}, what="unsir settings")


def _rates(kind: str, learned_at: float) -> dict[str, float]:
    impair, repair = RATES[kind]
    if kind == "scratch" and learned_at > impair:
        impair, repair = learned_at, REPAIR_SHARE * learned_at
    return {"impair_learning_rate": impair, "repair_learning_rate": repair}


def effective_penalty(config: UnsirConfig, input_size: int) -> float:
    """Lambda for inputs of this many values, resolved unless `scale_penalty` is off."""
    return resolved_penalty(config.penalty, input_size) if config.scale_penalty else config.penalty


def synthesize(
    original: nn.Module,
    *,
    input_shape: Sequence[int],
    forget_classes: Sequence[int],
    config: UnsirConfig,
    generator: torch.Generator,
    progress: Progress = silent,
) -> Noise:
    """Noise on which the original model is as wrong as it can be about each forgotten class.

    Args:
        original: Left unchanged: weights, buffers and modes.
        input_shape: Of one input, without the batch.
        forget_classes: K class indices.
        config: `noise_steps` steps of Adam at `noise_learning_rate` on `noise_batch` images per class.
        generator: Of the first, Gaussian noise; on the CPU.
        progress: Called after every step.

    Raises:
        FloatingPointError: When the objective is not finite; the noise is then of no use.
    """
    device = device_of(original)
    K = len(forget_classes)
    classes = torch.tensor(list(forget_classes), dtype=torch.int64)
    if config.noise == "none":
        return Noise(images=torch.empty((K, 0, *input_shape)), classes=classes)
    start = torch.randn((K, config.noise_batch, *input_shape), generator=generator)
    if config.noise_batchnorm == "training":
        network = copy.deepcopy(original).requires_grad_(False)
        with seeded(generator.initial_seed(), device):  # for dropout
            return _synthesize_in_training_mode(network, start.to(device), classes, config, progress)
    images, objective = learn_noise(
        original,
        start,
        classes,
        maximise=True,
        penalty=effective_penalty(config, math.prod(input_shape)),
        steps=config.noise_steps,
        optimiser=lambda noise: torch.optim.Adam(noise, lr=config.noise_learning_rate),
        chunk=config.noise_chunk,
        progress=progress,
    )
    return Noise(images=images, classes=classes, objective=objective)


def _synthesize_in_training_mode(
    network: nn.Module, start: Tensor, classes: Tensor, config: UnsirConfig, progress: Progress
) -> Noise:
    """The notebook's way: train mode, one class after the other, so that BatchNorm statistics drift to the noise's."""
    network.train()
    penalty = effective_penalty(config, math.prod(start.shape[2:]))
    banks: list[Tensor] = []
    objective = [0.0] * config.noise_steps
    for k, c in enumerate(classes.tolist()):
        N = start[k].clone().requires_grad_()
        optimiser = torch.optim.Adam([N], lr=config.noise_learning_rate)
        for step in range(config.noise_steps):
            optimiser.zero_grad(set_to_none=True)
            J = noise_objective(network(N), N, c, penalty=penalty)
            J.backward()
            optimiser.step()
            objective[step] += finite_objective(J.item(), step) / len(classes)
            progress("synthesize", k * config.noise_steps + step + 1, len(classes) * config.noise_steps, J.item())
        banks.append(N.detach().cpu())
    buffers = {name: buffer.detach().cpu().clone() for name, buffer in network.named_buffers()}
    return Noise(images=torch.stack(banks), classes=classes, objective=objective, buffers=buffers)


def impair(
    model: nn.Module,
    noise: Noise,
    retain: Samples,
    *,
    config: UnsirConfig,
    generator: torch.Generator,
    progress: Progress = silent,
) -> tuple[nn.Module, list[float]]:
    """A copy of the model trained on noise with the forget labels, mixed with retain data; and the loss of each step.

    Args:
        model: The original; left unchanged.
        noise: As `synthesize` made it.
        retain: The retain samples at hand, with their true labels.
        config: From `configure`.
        generator: Of the order.
        progress: Called after every step.
    """
    impaired = copy.deepcopy(model)
    if noise.buffers:
        impaired.load_state_dict(noise.buffers, strict=False)
    bank = NoiseSamples(
        noise, per_class=config.noise_images, distinct=config.distinct_images, labels=config.noise_labels
    )
    losses = optimise(
        impaired,
        Joined(retain, bank) if len(bank) else retain,
        optimiser=torch.optim.Adam(impaired.parameters(), lr=config.impair_learning_rate),
        epochs=config.impair_epochs,
        batch_size=config.batch_size,
        generator=generator,
        phase="impair",
        progress=progress,
    )
    return impaired.eval(), losses


def repair(
    model: nn.Module,
    retain: Samples,
    *,
    noise: Noise | None = None,
    config: UnsirConfig,
    generator: torch.Generator,
    progress: Progress = silent,
) -> tuple[nn.Module, list[float]]:
    """A copy of the impaired model trained on retain data alone, with a fresh Adam; and the loss of each step.

    Args:
        model: The impaired model; left unchanged.
        retain: The retain samples at hand, with their true labels.
        noise: Not used; for methods whose proxies stand in for retain data.
        config: From `configure`.
        generator: Of the order.
        progress: Called after every step.
    """
    repaired = copy.deepcopy(model)
    losses = optimise(
        repaired,
        retain,
        optimiser=torch.optim.Adam(repaired.parameters(), lr=config.repair_learning_rate),
        epochs=config.repair_epochs,
        batch_size=config.batch_size,
        generator=generator,
        phase="repair",
        progress=progress,
    )
    return repaired.eval(), losses
