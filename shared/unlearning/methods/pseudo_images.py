"""Invented images: the network that makes them, the gate that drops some, and what a student is to copy of the others.

Part of gated transfer, which says where it comes from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlearning.methods.attention import attention_map, recorded


class PseudoGenerator(nn.Module):
    """Images (or rows) from latent vectors, in normalised input space.

    Latent -> maps of at most 8 x 8 -> doublings with convolutions -> one convolution -> cropped to size; a last
    BatchNorm sets each channel's scale. At 32 x 32 and width 128 it is the paper's. Always normalises by batch, so
    that the same latents give the same images in any mode.

    Args:
        latent: Length of a latent vector.
        width: Channels of the first maps; every doubling halves them, down to 8.
        shape: Of one input: (channels, height, width), or any other for a perceptron.
    """

    def __init__(self, latent: int, width: int, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)
        size = math.prod(shape)
        if len(shape) != 3:
            self.start: nn.Module = nn.Sequential(
                nn.Linear(latent, 4 * width), _norm1(4 * width), nn.LeakyReLU(0.2), nn.Linear(4 * width, size)
            )
            self.grow: nn.Module = _norm1(size)
            return
        doublings = max(1, math.ceil(math.log2(max(shape[1:]) / 8)))
        rows, columns = (math.ceil(side / 2**doublings) for side in shape[1:])
        self.start = nn.Sequential(
            nn.Linear(latent, width * rows * columns), nn.Unflatten(1, (width, rows, columns)), _norm2(width)
        )
        layers: list[nn.Module] = []
        channels = width
        for step in range(doublings):
            fewer = max(8, width >> step)
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(channels, fewer, 3, padding=1)]
            layers += [_norm2(fewer), nn.LeakyReLU(0.2)]
            channels = fewer
        self.grow = nn.Sequential(*layers, nn.Conv2d(channels, shape[0], 3, padding=1), _norm2(shape[0]))

    def forward(self, latents: Tensor) -> Tensor:
        """Inputs (B, *shape) for latents (B, latent)."""
        images: Tensor = self.grow(self.start(latents))
        if len(self.shape) != 3:
            return images.view(-1, *self.shape)
        top, left = ((have - want) // 2 for have, want in zip(images.shape[2:], self.shape[1:], strict=True))
        return images[:, :, top : top + self.shape[1], left : left + self.shape[2]]


def _norm1(features: int) -> nn.Module:
    return nn.BatchNorm1d(features, track_running_stats=False)


def _norm2(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels, track_running_stats=False)


def gate(logits: Tensor, forget_classes: Sequence[int], threshold: float) -> Tensor:
    """Which samples show no forgotten class: softmax(logits)_c <= threshold for every c; shape (B,), bool."""
    return (logits.float().softmax(1)[:, list(forget_classes)] <= threshold).all(1)


def barrier(logits: Tensor, forget_classes: Sequence[int], level: float) -> Tensor:
    r"""Mean over samples of sum_c relu(log p_c - log level) over the forgotten classes; 0 where all are below it."""
    log_p = F.log_softmax(logits.float(), dim=1)[:, list(forget_classes)]  # (B, K)
    return F.relu(log_p - math.log(level)).sum(1).mean()


def balance(logits: Tensor, forget_classes: Sequence[int]) -> Tensor:
    r"""Log R - H(q), with q the mean over samples of the R retain classes' probabilities, scaled to sum to 1.

    Returns:
        Scalar in [0, log R], nats: 0 when the samples show every retain class equally, log R when they show only one.
    """
    p = logits.float().softmax(1).mean(0)  # (C,)
    kept = torch.ones_like(p, dtype=torch.bool)
    kept[list(forget_classes)] = False
    q = p[kept] / p[kept].sum().clamp_min(1e-12)
    return math.log(len(q)) + torch.xlogy(q, q.clamp_min(1e-12)).sum()


def without_classes(logits: Tensor, forget_classes: Sequence[int]) -> Tensor:
    """Logits whose softmax is 0 for the forgotten classes and renormalised for the others; shape (B, C)."""
    masked = logits.clone()
    masked[:, list(forget_classes)] = logits.amax(1, keepdim=True) - 1e4
    return masked


@dataclass(frozen=True, slots=True)
class PseudoBatch:
    """Images that passed the gate, and all that the student is to copy of them.

    Attributes:
        images: Shape (B', ...).
        logits: The original's, shape (B', C).
        maps: The original's attention maps, (B', J_l) per layer.
    """

    images: Tensor
    logits: Tensor
    maps: tuple[Tensor, ...]

    def __len__(self) -> int:
        """B'."""
        return len(self.images)


def gated_batch(
    teacher: nn.Module,
    images: Tensor,
    forget_classes: Sequence[int],
    *,
    threshold: float,
    layers: Sequence[str] = (),
    renorm: bool = False,
) -> PseudoBatch:
    """The images that pass, with the original's logits and attention maps: one forward pass, no gradients.

    Args:
        teacher: The original, in eval mode.
        images: Shape (B, ...); one that is no number does not pass.
        forget_classes: Class indices.
        threshold: As in `gate`.
        layers: Modules whose attention maps to keep.
        renorm: Whether the forgotten classes are taken out of the logits.
    """
    with torch.no_grad(), recorded(teacher, layers) as outputs:
        logits = teacher(images)
        keep = gate(logits, forget_classes, threshold) & images.flatten(1).isfinite().all(1)
        maps = tuple(attention_map(outputs[name][keep]) for name in layers)
    logits = logits[keep]
    if renorm:
        logits = without_classes(logits, forget_classes)
    return PseudoBatch(images[keep], logits, maps)


def joined(batches: Sequence[PseudoBatch], most: int) -> PseudoBatch:
    """Batches one after the other, cut to at most that many images."""
    return PseudoBatch(
        torch.cat([batch.images for batch in batches])[:most],
        torch.cat([batch.logits for batch in batches])[:most],
        tuple(torch.cat(maps)[:most] for maps in zip(*(batch.maps for batch in batches), strict=True)),
    )
