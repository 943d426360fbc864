"""Whether a model treats forget rows like rows that it never saw: what a method may watch while it forgets."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unlearning.attacks.membership import Array, cross_entropy, entropy
from unlearning.data.samples import Rows, Samples
from unlearning.training import predict


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness:
    """How the forget rows compare with the calibration rows.

    Attributes:
        loss_auc: Probability that a forget row has a lower loss than a calibration row; 0.5: alike.
        entropy_auc: The same of the entropy.
        standard_error: Of either, if chance alone were at work.
    """

    loss_auc: float
    entropy_auc: float
    standard_error: float

    @property
    def familiarity(self) -> float:
        """Mean of both, less 0.5: > 0 when the forget rows look as if trained on, < 0 when they stand out as worse."""
        return (self.loss_auc + self.entropy_auc) / 2 - 0.5


def likeness(forget: Tensor, forget_targets: Tensor, unseen: Tensor, unseen_targets: Tensor) -> Likeness | None:
    """The comparison over all rows of classes that both sets have; None when there is no such class.

    The calibration rows are weighted so that their classes are as frequent as among the forget rows: a person's rows
    may be of a few classes, and a class that is harder than others must not pass for being forgotten.

    Args:
        forget: Logits, shape (N, C).
        forget_targets: Shape (N,).
        unseen: Logits of rows never trained on, shape (M, C).
        unseen_targets: Shape (M,).
    """
    C = forget.shape[1]
    wanted, there = (torch.bincount(targets, minlength=C).double() for targets in (forget_targets, unseen_targets))
    shared = (wanted > 0) & (there > 0)
    mine, theirs = shared[forget_targets], shared[unseen_targets]
    n = int(mine.sum())
    if n == 0:
        return None
    weights = (wanted / there.clamp(min=1) / n)[unseen_targets[theirs]]  # sums to 1
    m = 1 / weights.square().sum().item()  # as many rows as equal weights would need to be as precise

    def auc(members: Array, others: Array) -> float:
        high, order = torch.from_numpy(others).sort()
        passed = torch.cat([torch.zeros(1, dtype=torch.float64), weights[order].cumsum(0)])  # (M + 1,)
        below, upto = (torch.searchsorted(high, torch.from_numpy(members), right=right) for right in (False, True))
        return (1 - (passed[below] + passed[upto]) / 2).mean().item()  # of equal values half

    return Likeness(
        loss_auc=auc(
            cross_entropy(forget[mine], forget_targets[mine]), cross_entropy(unseen[theirs], unseen_targets[theirs])
        ),
        entropy_auc=auc(entropy(forget[mine]), entropy(unseen[theirs])),
        standard_error=math.sqrt((n + m + 1) / (12 * n * m)),
    )


class Watch:
    """Compares a model's outputs on forget rows with those on calibration rows, always the same ones.

    Args:
        forget: The rows to forget.
        unseen: Rows never trained on.
        most: Of either; more are drawn down to this number.
        generator: Of that draw.
    """

    def __init__(self, forget: Samples, unseen: Samples, most: int, generator: torch.Generator) -> None:
        self._forget, self._unseen = (
            Rows(rows, torch.randperm(len(rows), generator=generator)[:most]) for rows in (forget, unseen)
        )

    def __call__(self, model: nn.Module) -> Likeness | None:
        """The likeness under this model; None when the two sets have no class in common."""
        return likeness(
            predict(model, self._forget),
            self._forget.targets,
            predict(model, self._unseen),
            self._unseen.targets,
        )
