"""Learned inputs: noise that a network finds as wrong, or as right, for a class as can be, and samples made of it.

Shared by the methods that unlearn with it (UNSIR, EMMN). The network is frozen and in eval mode while noise is
learned, so that images cannot affect each other: banks of all classes are learned together, with the same result.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlearning.passes import prepared, rows_at_once
from unlearning.processes import add_up, copies, put_together, share
from unlearning.progress import Progress, silent
from unlearning.training import device_of, evaluating, fitting


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """Learned noise: one bank of images per forgotten class and, without data, proxies of the retain classes.

    Attributes:
        images: Shape (K, B, ...), in the model's normalised input space; B is 0 without noise.
        classes: The forgotten class that each bank belongs to, shape (K,), int64.
        objective: Per noise step, the mean over classes of -CE + penalty; falls when noise gets worse to classify.
        buffers: BatchNorm statistics that the synthesis left behind; empty unless they were let drift.
        proxies: Images that stand in for the retain classes, shape (K', B', ...); empty for a method with data.
        proxy_classes: The retain class of each bank of proxies, shape (K',), int64.
        proxy_objective: Per proxy step, the mean over classes of CE + penalty.
        probes: Images in which the original sees a forgotten class, shape (K, P, ...); never trained on, they tell
            whether a model without data has forgotten. Empty for a method with data.
    """

    images: Tensor
    classes: Tensor
    objective: list[float] = field(default_factory=list)
    buffers: dict[str, Tensor] = field(default_factory=dict)
    proxies: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    proxy_classes: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    proxy_objective: list[float] = field(default_factory=list)
    probes: Tensor = field(default_factory=lambda: torch.empty(0, 0))


def noise_objective(
    logits: Tensor, noise: Tensor, label: int | Tensor, *, penalty: float, maximise: bool = True
) -> Tensor:
    r"""J(N) = -CE(f(N), c) + penalty * mean over images of the squared L2 norm; +CE for error-minimising noise.

    Args:
        logits: f(N), shape (B, C).
        noise: N, shape (B, ...).
        label: c, one class for the batch, or one for each image, shape (B,).
        penalty: lambda, >= 0; per unit of squared norm.
        maximise: Whether the error of the label is to grow; otherwise it is to shrink.

    Returns:
        Scalar in nats, averaged over images; lower: further from the class, or closer to it.
    """
    labels = torch.as_tensor(label, device=logits.device).expand(len(logits))
    error = F.cross_entropy(logits, labels)
    return penalty * noise.flatten(1).square().sum(1).mean() + (-error if maximise else error)


def resolved_penalty(penalty: float, input_size: int) -> float:
    """Lambda for inputs of this many values: above 3 x 32 x 32, the initial penalty stays what it is at that size.

    Smaller inputs keep lambda as it is: scaled up, the penalty outweighs the error there, and the noise stays weak.
    """
    return penalty * min(1.0, 3072 / input_size)


def learn_noise(
    original: nn.Module,
    start: Tensor,
    classes: Tensor,
    *,
    maximise: bool,
    penalty: float,
    steps: int,
    optimiser: Callable[[list[Tensor]], torch.optim.Optimizer],
    chunk: int,
    plateau: int | None = None,
    phase: str = "synthesize",
    progress: Progress = silent,
) -> tuple[Tensor, list[float]]:
    """Banks of images that the network finds as wrong (or as right) as can be for their class; the objective per step.

    Args:
        original: Left unchanged: weights, buffers and modes.
        start: The first noise, shape (K, B, ...); left unchanged.
        classes: The class of each bank, shape (K,), int64.
        maximise: As in `noise_objective`.
        penalty: lambda.
        steps: Updates of all banks together.
        optimiser: Made of the list that holds the one trainable tensor.
        chunk: Images in one forward pass; bounds memory, changes nothing else.
        plateau: Halve the rate after this many steps without a lower objective; None: keep it.
        phase: Named to `progress`.
        progress: Called after every step.

    Returns:
        Images of the shape of `start`, on the CPU; and per step the mean over banks, in nats.

    Raises:
        FloatingPointError: When the objective is not finite; the noise is then of no use.
    """
    device = device_of(original)
    network = copy.deepcopy(original).requires_grad_(False)
    K, B = start.shape[:2]
    flat = start.flatten(0, 1)  # K * B images
    every = torch.arange(K * B)
    own = share(every)[0]
    again = copies(K * B)
    objective: list[float] = []
    with evaluating(network), prepared(network) as run:
        chunk = rows_at_once(network, run, flat[:1].to(device, copy=True).requires_grad_(), fitting(chunk, device))
        parts = [flat[rows].to(device).requires_grad_() for rows in own.split(chunk)]
        labels = classes.repeat_interleave(B)[own].to(device).split(chunk)
        updates = optimiser(parts)
        schedule = (
            torch.optim.lr_scheduler.ReduceLROnPlateau(updates, factor=0.5, patience=plateau)
            if plateau is not None
            else None
        )
        for step in range(steps):
            updates.zero_grad(set_to_none=True)
            summed = torch.zeros(1, dtype=torch.float64)
            for N, label in zip(parts, labels, strict=True):
                J = noise_objective(run(N), N, label, penalty=penalty, maximise=maximise)
                (J * len(N) / B).backward()  # sum of class means
                summed += J.item() * len(N) / (K * B * again)
            updates.step()
            add_up([summed])
            total = summed.item()
            objective.append(finite_objective(total, step))
            if schedule is not None:
                schedule.step(total)
            progress(phase, step + 1, steps, total)
    learned = torch.cat([N.detach().cpu() for N in parts])
    return (learned if again > 1 else put_together(learned, own, K * B)).view(start.shape), objective


def finite_objective(objective: float, step: int) -> float:
    """The objective, if it is a number.

    Raises:
        FloatingPointError: When it is not.
    """
    if not math.isfinite(objective):
        raise FloatingPointError(
            f"synthesize: the objective became {objective} at step {step + 1}; lower noise_learning_rate"
        )
    return objective


class NoiseSamples:
    """Banks of learned images as samples: each class's bank repeated to `per_class` images; only indices are repeated.

    Args:
        noise: The banks.
        per_class: Images per class, cycling through the bank.
        distinct: How many images of each bank are used; 0: all.
        labels: "own": each bank's class; "first": the first class for all.
    """

    def __init__(self, noise: Noise, *, per_class: int, distinct: int = 0, labels: str = "own") -> None:
        K, B = noise.images.shape[:2]
        used = min(distinct or B, B)
        count = per_class if used else 0
        self._images = noise.images
        self._bank = torch.arange(K).repeat_interleave(count)
        self._image = (torch.arange(count) % max(used, 1)).repeat(K)
        self._targets = noise.classes[self._bank] if labels == "own" else noise.classes[:1].expand(K * count)

    @property
    def targets(self) -> Tensor:
        """The label that each noise image is trained with, shape (K * per_class,)."""
        return self._targets

    def __len__(self) -> int:
        """K * per_class, or 0 without noise."""
        return len(self._bank)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Noise images and their labels; already in normalised input space."""
        return self._images[self._bank[rows], self._image[rows]], self._targets[rows]


def forget_probability(model: nn.Module, images: Tensor, forget_classes: Tensor) -> float:
    """Mean over the images of the probability that the model, in eval mode, gives to the forgotten classes together.

    Args:
        model: Left as it is.
        images: Shape (N, ...), at least one.
        forget_classes: Shape (K,), int64.
    """
    device = device_of(model)
    with evaluating(model), torch.no_grad():
        probabilities = [model(part.to(device)).float().softmax(1) for part in images.split(1024)]
    return torch.cat(probabilities)[:, forget_classes.to(device)].sum(1).mean().item()


def proxy_samples(noise: Noise) -> NoiseSamples:
    """The proxies of the retain classes as samples, each with its class."""
    bank = Noise(images=noise.proxies, classes=noise.proxy_classes)
    return NoiseSamples(bank, per_class=noise.proxies.shape[1])
