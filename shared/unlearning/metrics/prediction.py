"""Where a model now puts the rows it forgot, and how far that is from where a retrained model puts them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from unlearning.metrics.accuracy import checked, prediction_distribution


@dataclass(frozen=True, slots=True, kw_only=True)
class NeighbourShift:
    """The classes that forget rows moved to, held against a reference's.

    Attributes:
        unlearned: Share of the rows that each class draws, C values, sum 1.
        reference: Likewise under the reference.
        total_variation: Half the sum of | differences | of the two; in [0, 1], 0 when every class draws as many rows
            under both models.
        divergence: Jensen-Shannon divergence of the two in bits; in [0, 1], 0 likewise.
        disagreement: Share of rows that the two predict differently, in [0, 1]; never below `total_variation`.
        top_class: The class that draws most rows of the unlearned model; the lowest index among equals.
        top_share: Its share, in (0, 1]. Near 1 while the reference spreads: a class has been made the dump.
        entropy: Of the unlearned model's shares in bits, in [0, log2 C].
    """

    unlearned: tuple[float, ...]
    reference: tuple[float, ...]
    total_variation: float
    divergence: float
    disagreement: float
    top_class: int
    top_share: float
    entropy: float


def neighbour_shift(unlearned: Tensor, reference: Tensor) -> NeighbourShift:
    """Which classes the forget rows fall to; 0 for every distance is what a retrained model would give on average.

    Two retrained models of different seeds already differ: take their distance from each other as the yardstick.

    Args:
        unlearned: Logits of the forget rows, shape (N, C).
        reference: A retrained model's logits of the same rows, shape (N, C).

    Raises:
        ValueError: For no rows, other shapes, or outputs that are not finite.
    """
    if unlearned.shape != reference.shape or unlearned.dim() != 2:
        raise ValueError(
            f"wanted logits of the same rows and classes, got {list(unlearned.shape)}, {list(reference.shape)}"
        )
    checked(unlearned)
    checked(reference)
    C = unlearned.shape[1]
    p, q = (prediction_distribution(one, classes=C) for one in (unlearned, reference))
    middle = (p + q) / 2
    return NeighbourShift(
        unlearned=tuple(p.tolist()),
        reference=tuple(q.tolist()),
        total_variation=(p - q).abs().sum().item() / 2,
        divergence=min(1.0, max(0.0, (_bits(middle) - (_bits(p) + _bits(q)) / 2))),
        disagreement=(unlearned.argmax(1) != reference.argmax(1)).double().mean().item(),
        top_class=int(p.argmax()),
        top_share=p.max().item(),
        entropy=_bits(p),
    )


def _bits(shares: Tensor) -> float:
    """Entropy of a distribution over classes, in bits."""
    nats: float = -torch.special.xlogy(shares, shares).sum().item()
    return max(0.0, nats / math.log(2))
