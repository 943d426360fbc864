"""How far apart two classifiers' outputs are on the same rows, and how near to those of an untrained network.

Sources: the zero-retrain forgetting metric of arXiv:2205.08096; the activation distance of arXiv:1911.04933. The
formulas are exact: the released code of the first computes something else under its name, kept here as `legacy_zrf` for
comparison with printed tables alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def _log_probabilities(logits: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    if logits.shape != others.shape or logits.dim() != 2 or not len(logits):
        raise ValueError(f"wanted logits of the same rows and classes, got {list(logits.shape)}, {list(others.shape)}")
    log_p, log_q = (F.log_softmax(one.double(), dim=1) for one in (logits, others))
    if bool(log_p.isnan().any()) or bool(log_q.isnan().any()):
        raise ValueError("the logits hold NaN: a model is broken")
    return log_p, log_q


def jensen_shannon(logits: Tensor, others: Tensor) -> Tensor:
    r"""JS(p, q) = (KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2, for each row, in bits.

    Args:
        logits: Shape (N, C).
        others: Those of another model on the same rows, shape (N, C).

    Returns:
        Shape (N,), float64, in [0, 1]: 0 for equal probabilities, 1 for disjoint ones; symmetric.

    Raises:
        ValueError: For other shapes, no rows, or NaN.
    """
    log_p, log_q = _log_probabilities(logits, others)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    js = 0.5 * (_weighted(log_p, log_p - log_m) + _weighted(log_q, log_q - log_m))
    return (js / math.log(2)).clamp(0, 1)


def _weighted(log_p: Tensor, values: Tensor) -> Tensor:
    """sum_c p_c v_c with 0 * inf = 0; shape (N,)."""
    p = log_p.exp()
    return torch.where(p > 0, p * values, torch.zeros_like(p)).sum(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroRetrainForgetting:
    """The metric over several untrained networks.

    Attributes:
        mean: In [0, 1].
        spread: Standard deviation over the networks; 0 for a single one.
        each: One value for each network.
    """

    mean: float
    spread: float
    each: tuple[float, ...]


def zero_retrain_forgetting(logits: Tensor, incompetent: Sequence[Tensor]) -> ZeroRetrainForgetting:
    """ZRF = 1 - mean JS (in bits) between a model and untrained networks on the forget rows, arXiv:2205.08096.

    Near 1 the model knows of these rows what an untrained network does. That is not the best value: hold it against a
    retrained model's, or against the model's own on rows that it never saw. A network that served as an unlearning
    target must not serve here as well.

    Args:
        logits: Of the model on the forget rows, shape (N, C).
        incompetent: The same of one or more independent, freshly initialised networks.

    Raises:
        ValueError: As `jensen_shannon`, or without networks.
    """
    if not incompetent:
        raise ValueError("wanted the outputs of at least one untrained network, got none")
    each = torch.stack([1 - jensen_shannon(logits, others).mean() for others in incompetent])
    spread = each.std().item() if len(each) > 1 else 0.0
    return ZeroRetrainForgetting(mean=each.mean().item(), spread=spread, each=tuple(each.tolist()))


def legacy_zrf(logits: Tensor, incompetent: Tensor) -> float:
    """What the released code of arXiv:2205.08096 prints as ZRF, for comparison with its tables alone.

    One minus the mean, over rows and classes, of (m (ln m - ln p) + m (ln m - ln q)) / 2: the reversed divergence,
    unbounded, in nats, and smaller the more classes there are. Values for other class counts cannot be compared.

    Args:
        logits: Shape (N, C).
        incompetent: Of one untrained network, shape (N, C).

    Returns:
        At most 1; may be negative.
    """
    log_p, log_q = _log_probabilities(logits, incompetent)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    reversed_js = 0.5 * (_weighted(log_m, log_m - log_p) + _weighted(log_m, log_m - log_q))
    return 1 - (reversed_js.mean() / logits.shape[1]).item()


def activation_distance(logits: Tensor, others: Tensor) -> float:
    """Mean over rows of || p - q ||_2 between two models' probabilities; in [0, sqrt 2], 0 when they agree.

    Args:
        logits: Shape (N, C).
        others: Those of another model, usually a retrained one, on the same rows.

    Raises:
        ValueError: As `jensen_shannon`.
    """
    log_p, log_q = _log_probabilities(logits, others)
    apart = (log_p.exp() - log_q.exp()).square().sum(1).sqrt()  # (N,)
    return apart.mean().item()
