"""The losses that models are trained by, of outputs and targets as every part of the code has them.

A classifier puts out (B, C) logits for class indices (B,). A regression network puts out (B, O) for float targets:
O = 1 for a scalar (B,), O = H for a forecast (B, H), O = H * Q for Q quantiles of each of its H values, which are
the outputs' fastest axis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
Name = Literal["cross_entropy", "l1", "mse", "quantile"]
LOSSES: tuple[Name, ...] = ("cross_entropy", "l1", "mse", "quantile")
"""Mean of -log p(target), of |y - y'|, of (y - y')^2, and of the pinball losses summed over the quantiles."""


def wrong_loss(name: str, quantiles: Sequence[float]) -> list[str]:
    """What is wrong with a loss and its quantiles, one sentence each; none when they fit."""
    if name not in LOSSES:
        return [f'loss must be one of {", ".join(LOSSES)}, got "{name}"']
    if name != "quantile":
        return [f"quantiles go with the quantile loss only, got {list(quantiles)} with {name}"] if quantiles else []
    inside = all(0 < quantile < 1 for quantile in quantiles)
    if not quantiles or not inside or list(quantiles) != sorted(set(quantiles)):
        return [f"the quantile loss wants rising quantiles in (0, 1), got {list(quantiles)}"]
    return []


def loss_of(name: str, quantiles: Sequence[float] = ()) -> Loss:
    """The loss of this name: of outputs (B, O) and targets (B,) or (B, H), a scalar mean over the batch.

    Args:
        name: One of `LOSSES`.
        quantiles: Of the "quantile" loss, rising, in (0, 1); of no other.

    Raises:
        ValueError: For an unknown name or quantiles that do not fit; by the loss itself, for outputs of another shape
            than the targets call for.
    """
    if wrong := wrong_loss(name, quantiles):
        raise ValueError("; ".join(wrong))
    if name == "cross_entropy":
        return F.cross_entropy
    if name == "quantile":
        levels = tuple(quantiles)
        return lambda outputs, targets: pinball_loss(by_quantile(outputs, targets, len(levels)), targets, levels)
    error = F.l1_loss if name == "l1" else F.mse_loss
    return lambda outputs, targets: error(shaped_like(outputs, targets), targets)


def shaped_like(outputs: Tensor, targets: Tensor) -> Tensor:
    """Outputs (B, O) in the shape of the targets: (B,) for O = 1, else (B, H).

    Raises:
        ValueError: When the shapes do not fit; broadcast, they would give a loss of something else.
    """
    if targets.dim() == 1 and outputs.dim() == 2 and outputs.shape[1] == 1:
        outputs = outputs.squeeze(1)
    if outputs.shape != targets.shape:
        raise ValueError(f"outputs {tuple(outputs.shape)} do not fit targets {tuple(targets.shape)}")
    return outputs


def by_quantile(outputs: Tensor, targets: Tensor, quantiles: int) -> Tensor:
    """Outputs (B, H * Q) as (B, H, Q), for targets (B, H), or (B,) where H = 1.

    Raises:
        ValueError: When the shapes do not fit.
    """
    H = 1 if targets.dim() == 1 else targets.shape[1]
    if outputs.shape != (len(targets), H * quantiles):
        raise ValueError(
            f"outputs {tuple(outputs.shape)} do not fit {quantiles} quantiles of targets {tuple(targets.shape)}"
        )
    return outputs.view(len(targets), H, quantiles)


def pinball_loss(predicted: Tensor, targets: Tensor, quantiles: Sequence[float]) -> Tensor:
    r"""Mean over samples and values of sum_q max(q e, (q - 1) e), e = y - y_q.

    Args:
        predicted: y_q, shape (B, H, Q).
        targets: y, shape (B, H), or (B,) where H = 1.
        quantiles: Q levels q in (0, 1).

    Returns:
        Scalar >= 0, in the unit of the targets.
    """
    levels = torch.tensor(quantiles, dtype=predicted.dtype, device=predicted.device)
    error = targets.reshape(len(targets), -1, 1) - predicted  # (B, H, Q)
    return torch.maximum(levels * error, (levels - 1) * error).sum(-1).mean()


def point(outputs: Tensor, quantiles: Sequence[float] = ()) -> Tensor:
    """The point prediction: the outputs themselves, or of quantiles the one nearest to the median.

    Args:
        outputs: Shape (N, O).
        quantiles: The Q levels that the outputs are; empty: none, the outputs are the predictions.

    Returns:
        Shape (N, H), or (N,) where H = 1.

    Raises:
        ValueError: When O is not a multiple of Q.

    Example:
        >>> point(torch.tensor([[1.0, 2.0, 3.0]]), (0.1, 0.5, 0.9)).tolist()
        [2.0]
    """
    if quantiles:
        if outputs.shape[1] % len(quantiles):
            raise ValueError(f"{outputs.shape[1]} outputs are no multiple of {len(quantiles)} quantiles")
        middle = min(range(len(quantiles)), key=lambda place: abs(quantiles[place] - 0.5))
        outputs = outputs.view(len(outputs), -1, len(quantiles))[:, :, middle]
    return outputs.squeeze(1) if outputs.shape[1] == 1 else outputs
