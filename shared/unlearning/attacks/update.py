"""Before/after attack: who holds the original and the unlearned model may see from the difference what was forgotten.

After the old-and-new-output attack of arXiv:2005.02205, here by thresholds on single statistics instead of a trained
attack model. It asks what keeping, or having published, the original costs: unlearning that moves nothing but the
forgotten rows gives them away by that very precision.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from unlearning.attacks.membership import Roc, cross_entropy, population_attack
from unlearning.attacks.residual import absolute_residuals
from unlearning.metrics.divergence import jensen_shannon

ROUNDING = 1e-12
"""Divergence in bits below which two outputs are the same."""


def update_attack(
    before_forget: Tensor,
    after_forget: Tensor,
    forget_targets: Tensor,
    before_unseen: Tensor,
    after_unseen: Tensor,
    unseen_targets: Tensor,
) -> dict[str, Roc]:
    """Curves of telling forgotten rows from held-out ones by how far a row's outputs moved; AUC 0.5 is chance.

    "loss_rise" looks at the rise of the row's cross-entropy, "divergence" at the Jensen-Shannon divergence of its
    class probabilities, which needs no label. The value to compare with is that of original and retrained model: even
    there the forgotten rows move more than others, since they alone are no longer learned.

    Args:
        before_forget: The original's logits of forgotten rows, shape (M, C).
        after_forget: The unlearned model's, shape (M, C).
        forget_targets: Shape (M,).
        before_unseen: The original's logits of rows never trained on, drawn alike, shape (N, C).
        after_unseen: The unlearned model's, shape (N, C).
        unseen_targets: Shape (N,).

    Raises:
        ValueError: For no rows, other shapes, or NaN.
    """
    pairs = ((before_forget, after_forget, forget_targets), (before_unseen, after_unseen, unseen_targets))
    moved = [-np.where((js := jensen_shannon(before, after).numpy()) > ROUNDING, js, 0) for before, after, _ in pairs]
    rises = [cross_entropy(before, targets) - cross_entropy(after, targets) for before, after, targets in pairs]
    return {
        "loss_rise": population_attack(*(np.asarray(side, dtype=np.float64) for side in rises)),
        "divergence": population_attack(*(np.asarray(side, dtype=np.float64) for side in moved)),
    }


def update_attack_on_values(
    before_forget: Tensor,
    after_forget: Tensor,
    forget_targets: Tensor,
    before_unseen: Tensor,
    after_unseen: Tensor,
    unseen_targets: Tensor,
) -> dict[str, Roc]:
    """The same of models that predict values: AUC 0.5 is chance, and original and retrained model the comparison.

    "residual_rise" looks at the rise of the row's absolute residual, "shift" at how far its prediction moved, which
    needs no target.

    Args:
        before_forget: The original's predictions of forgotten rows, shape (M,) or (M, H).
        after_forget: The unlearned model's, of the same shape.
        forget_targets: Likewise.
        before_unseen: The original's predictions of rows never trained on, drawn alike, shape (N,) or (N, H).
        after_unseen: The unlearned model's, of the same shape.
        unseen_targets: Likewise.

    Raises:
        ValueError: For no rows, other shapes, or NaN.
    """
    pairs = ((before_forget, after_forget, forget_targets), (before_unseen, after_unseen, unseen_targets))
    rises = [absolute_residuals(before, true) - absolute_residuals(after, true) for before, after, true in pairs]
    moved = [-absolute_residuals(before, after) for before, after, _ in pairs]
    return {"residual_rise": population_attack(*rises), "shift": population_attack(*moved)}
