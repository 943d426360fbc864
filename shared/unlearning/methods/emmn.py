"""EMMN: error-maximising noise for what is forgotten, error-minimising noise in place of all retain data.

Source: Chundawat et al., "Zero-Shot Machine Unlearning", arXiv:2201.05629. The authors released no code for this method
and printed few of its settings: what follows is built from the paper's description. It reads the model and the list of
forgotten classes, and no data at all.

Two variants. "unsir" (default): impair on error-maximising noise under the forgotten labels together with proxies of
the retain classes, then repair on the proxies alone. "ascent", as an independent implementation has it: climb the
error on forget noise while descending it on proxies, without repair. BatchNorm keeps the original's statistics
throughout: batches of noise would replace them by their own.

How far the repair has to go differs from model to model, and no data say so. Here further images, which the original
takes for a forgotten class and which are never trained on, do: the repair is tried at rising rates until the model
gives those classes next to no probability on them, so that the other classes lose no more than forgetting takes. With
`attempts` 1 it is tried once.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlearning.config import About, build
from unlearning.data.samples import Joined, Samples
from unlearning.errors import UsageError
from unlearning.methods import Facts
from unlearning.methods.noise import (
    Noise,
    NoiseSamples,
    forget_probability,
    learn_noise,
    proxy_samples,
    resolved_penalty,
)
from unlearning.progress import Progress, silent
from unlearning.training import device_of, evaluating, optimise

RATES: dict[str, tuple[float, float]] = {"scratch": (0.0005, 0.00075), "pretrained": (1e-4, 1e-4)}
"""Adam's rates to impair and to repair at first: for a network trained from scratch, and for a fine-tuned backbone."""

ASCENT: dict[str, Any] = {
    "noise_steps": 400,
    "penalty": 0.01,
    "proxy_penalty": 0.01,
    "impair_learning_rate": 0.01,
    "impair_epochs": 2,
}
"""What `variant="ascent"` changes, besides the optimisers."""

UPDATES = 40
"""About how many updates an epoch takes when the batch size is left to the rule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmmnConfig:
    """Settings of EMMN. Those that `configure` chooses are marked; a given value always wins."""

    variant: Annotated[Literal["unsir", "ascent"], About("ascent: climb the error on forget noise, without repair")] = (
        "unsir"
    )
    rates: Annotated[Literal["auto", "scratch", "pretrained"], About("which rates; auto: by how it was trained")] = (
        "auto"
    )
    noise_batch: Annotated[int, About("images in one batch of noise, per class")] = 64
    proxy_batches: Annotated[int, About("independent batches for each class")] = 4
    noise_steps: Annotated[int, About("updates of the noise")] = 50
    noise_learning_rate: Annotated[float, About("on the noise, of Adam; ascent: of SGD, halved on a plateau")] = 0.1
    penalty: Annotated[float, About("lambda of error-maximising noise, at 3 x 32 x 32 values")] = 0.1
    proxy_penalty: Annotated[float, About("lambda of error-minimising noise, likewise")] = 0.01
    scale_penalty: Annotated[bool, About("lambda * 3072 / values above that size")] = True
    noise_chunk: Annotated[int, About("images in one forward pass; bounds memory, changes nothing else")] = 1024
    impair_learning_rate: Annotated[float, About("of Adam; ascent: of SGD with momentum", "rule")] = 0.0005
    repair_learning_rate: Annotated[float, About("of Adam, in the first attempt", "rule")] = 0.00075
    impair_epochs: Annotated[int, About("over all noise")] = 1
    repair_epochs: Annotated[int, About("over the proxies")] = 2
    forgotten: Annotated[
        float, About("mean probability of the forgotten classes on the probes, at which a repair will do")
    ] = 0.01
    attempts: Annotated[int, About("repairs at most, each at sqrt(2) times the rate of the one before")] = 9
    batch_size: Annotated[int, About("of both training stages; 0: for about 40 updates an epoch, but 16 at least")] = 0

    def __post_init__(self) -> None:
        """Refuse values outside their ranges, all named at once."""
        wrong = [
            f"{name} must be at least {least}, got {getattr(self, name)}"
            for name, least in (
                ("noise_batch", 1),
                ("proxy_batches", 1),
                ("noise_steps", 1),
                ("noise_chunk", 1),
                ("impair_epochs", 1),
                ("repair_epochs", 1),
                ("attempts", 1),
                ("batch_size", 0),
            )
            if getattr(self, name) < least
        ]
        wrong += [
            f"{name} must be a positive number, got {getattr(self, name)}"
            for name in ("noise_learning_rate", "impair_learning_rate", "repair_learning_rate")
            if not 0 < getattr(self, name) < math.inf
        ]
        wrong += [
            f"{name} must be >= 0, got {getattr(self, name)}"
            for name in ("penalty", "proxy_penalty")
            if not 0 <= getattr(self, name) < math.inf
        ]
        if not 0 < self.forgotten <= 1:
            wrong.append(f"forgotten must be above 0 and at most 1, got {self.forgotten}")
        if self.batch_size == 1:
            wrong.append("batch_size must be 0 or at least 2, got 1")
        if wrong:
            raise ValueError("; ".join(wrong))


def configure(settings: Mapping[str, Any], facts: Facts) -> EmmnConfig:
    """The configuration for this model: rates for how it was trained, then variant, then what was asked for.

    Nothing is looked at but whether the model was fine-tuned. The number of updates, which with the rate decides how
    far a model leaves its weights, is held still by the batch size: see `UPDATES`.

    Raises:
        UsageError: For unknown settings or values out of range, all at once.
    """
    asked = build(EmmnConfig, settings, what="emmn settings")
    kind = asked.rates if asked.rates != "auto" else "pretrained" if facts.fine_tuned else "scratch"
    chosen: dict[str, Any] = {"impair_learning_rate": RATES[kind][0], "repair_learning_rate": RATES[kind][1]}
    if asked.variant == "ascent":
        chosen |= ASCENT
    return build(EmmnConfig, {**chosen, **settings}, what="emmn settings")


def synthesize(
    original: nn.Module,
    *,
    input_shape: Sequence[int],
    forget_classes: Sequence[int],
    config: EmmnConfig,
    generator: torch.Generator,
    progress: Progress = silent,
) -> Noise:
    """Error-maximising noise for each forgotten class, error-minimising proxies of every other class, and probes.

    Args:
        original: Left unchanged: weights, buffers and modes.
        input_shape: Of one input, without the batch.
        forget_classes: K class indices; all other outputs of the model are retain classes.
        config: `noise_steps` steps on `proxy_batches * noise_batch` images per class.
        generator: Of the first, Gaussian noise; on the CPU.
        progress: Called after every step.

    Raises:
        UsageError: When no class is left to keep.
        FloatingPointError: When an objective is not finite; the noise is then of no use.
    """
    with evaluating(original), torch.no_grad():
        outputs = original(torch.zeros((1, *input_shape), device=device_of(original))).shape[1]
    forgotten = torch.tensor(list(forget_classes), dtype=torch.int64)
    retained = torch.tensor([c for c in range(outputs) if c not in set(forget_classes)], dtype=torch.int64)
    if not len(forgotten) or not len(retained):
        raise UsageError(
            f"emmn needs classes to forget and classes to keep, got {len(forgotten)} of {outputs} to forget"
        )
    count = config.proxy_batches * config.noise_batch
    learned = [
        _learned(original, input_shape, classes, bank, images, config, generator, progress)
        for bank, classes, images in (
            ("forget noise", forgotten, count),
            ("proxies", retained, count),
            ("probes", forgotten, config.noise_batch),
        )
    ]
    (images, objective), (proxies, proxy_objective), (probes, _) = learned
    return Noise(
        images=images,
        classes=forgotten,
        objective=objective,
        proxies=proxies,
        proxy_classes=retained,
        proxy_objective=proxy_objective,
        probes=probes,
    )


def _learned(
    original: nn.Module,
    input_shape: Sequence[int],
    classes: Tensor,
    bank: str,
    images: int,
    config: EmmnConfig,
    generator: torch.Generator,
    progress: Progress,
) -> tuple[Tensor, list[float]]:
    """That many images for each of these classes: independent images are as good as independent batches."""
    maximise, ascent, rate = bank == "forget noise", config.variant == "ascent", config.noise_learning_rate
    penalty = config.penalty if maximise else config.proxy_penalty
    return learn_noise(
        original,
        torch.randn((len(classes), images, *input_shape), generator=generator),
        classes,
        maximise=maximise,
        penalty=resolved_penalty(penalty, math.prod(input_shape)) if config.scale_penalty else penalty,
        steps=config.noise_steps,
        optimiser=lambda N: torch.optim.SGD(N, lr=rate, momentum=0.9) if ascent else torch.optim.Adam(N, lr=rate),
        chunk=config.noise_chunk,
        plateau=10 if ascent else None,
        phase=f"synthesize {bank}",
        progress=progress,
    )


class FixedStatistics(nn.Module):
    """A model whose BatchNorm layers use their running statistics, and leave them be, in train mode too.

    Args:
        model: Wrapped, not copied; its weights, those of BatchNorm among them, still train.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        """What the model says."""
        outputs: Tensor = self.model(inputs)
        return outputs

    def train(self, mode: bool = True) -> FixedStatistics:
        """Set the mode of everything but BatchNorm, which stays in eval mode."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm):
                module.eval()
        return self


def ascent_loss(logits: Tensor, targets: Tensor, forget_classes: Tensor) -> Tensor:
    """Mean over the batch of +CE for retain classes and -CE for forgotten ones; in nats, unbounded below.

    Args:
        logits: Shape (B, C).
        targets: Shape (B,).
        forget_classes: Shape (K,).
    """
    error = F.cross_entropy(logits, targets, reduction="none")  # (B,)
    return torch.where(torch.isin(targets, forget_classes), -error, error).mean()


def impair(
    model: nn.Module,
    noise: Noise,
    retain: Samples | None = None,
    *,
    config: EmmnConfig,
    generator: torch.Generator,
    progress: Progress = silent,
) -> tuple[nn.Module, list[float]]:
    """A copy of the model trained on forget noise together with the proxies; and the loss of each step.

    Args:
        model: The original; left unchanged.
        noise: As `synthesize` made it.
        retain: Never touched; the place that methods with data have for it.
        config: From `configure`.
        generator: Of the order.
        progress: Called after every step.
    """
    impaired = copy.deepcopy(model)
    weights, rate = impaired.parameters(), config.impair_learning_rate
    ascent, forgotten = config.variant == "ascent", noise.classes.to(device_of(model))
    samples = Joined(NoiseSamples(noise, per_class=noise.images.shape[1]), proxy_samples(noise))
    losses = optimise(
        FixedStatistics(impaired),
        samples,
        optimiser=torch.optim.SGD(weights, lr=rate, momentum=0.9) if ascent else torch.optim.Adam(weights, lr=rate),
        epochs=config.impair_epochs,
        batch_size=_batch_size(config, samples),
        generator=generator,
        loss=(lambda logits, targets: ascent_loss(logits, targets, forgotten)) if ascent else F.cross_entropy,
        phase="impair",
        progress=progress,
    )
    return impaired.eval(), losses


def repair(
    model: nn.Module,
    retain: Samples | None = None,
    *,
    noise: Noise | None = None,
    config: EmmnConfig,
    generator: torch.Generator,
    progress: Progress = silent,
) -> tuple[nn.Module, list[float]]:
    """A copy of the impaired model trained on the proxies alone, with a fresh Adam; and the loss of each step.

    Args:
        model: The impaired model; left unchanged.
        retain: Never touched.
        noise: As `synthesize` made it; its proxies stand in for retain data, its probes tell when a repair will do.
        config: From `configure`; variant ascent leaves the model as it is.
        generator: Of the order.
        progress: Called after every step.

    Returns:
        The first attempt that has forgotten by the probes, else the last one; and the losses of that attempt.

    Raises:
        UsageError: Without noise.
    """
    if noise is None or not noise.proxies.numel():
        raise UsageError("emmn repairs on the proxies that synthesize learned: pass its noise to repair")
    if config.variant == "ascent":
        return copy.deepcopy(model).eval(), []
    samples, probes = proxy_samples(noise), noise.probes.flatten(0, 1)
    for attempt in range(config.attempts):
        repaired = copy.deepcopy(model)
        losses = optimise(
            FixedStatistics(repaired),
            samples,
            optimiser=torch.optim.Adam(repaired.parameters(), lr=config.repair_learning_rate * 2 ** (attempt / 2)),
            epochs=config.repair_epochs,
            batch_size=_batch_size(config, samples),
            generator=generator,
            phase="repair" if attempt == 0 else f"repair, attempt {attempt + 1}",
            progress=progress,
        )
        if not len(probes) or forget_probability(repaired, probes, noise.classes) <= config.forgotten:
            break
    return repaired.eval(), losses


def _batch_size(config: EmmnConfig, samples: Samples) -> int:
    return config.batch_size or max(16, round(len(samples) / UPDATES))
