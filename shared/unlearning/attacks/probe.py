"""Linear probe: do a frozen network's features still set forgotten rows apart from others?

Outputs can be silenced by the last layer alone; what a linear classifier finds in the features is what such an edit
leaves behind.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from unlearning.attacks.membership import population_attack


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A probe's score on rows that it was not fitted on.

    Attributes:
        auc: Probability that a forgotten row scores above another; in [0, 1], 0.5 is chance. For a class, a retrained
            model's is the value to compare with, and it is often high: features tell unknown classes apart, too.
        standard_error: Of the AUC, if the features told nothing.
        rows: It was fitted on.
    """

    auc: float
    standard_error: float
    rows: int


def probe_attack(forget: Tensor, rest: Tensor, *, seed: int, most: int = 4000) -> Probe:
    """Fit a balanced logistic regression on half of the rows and score the other half.

    Args:
        forget: Features of forgotten rows, shape (M, D), M >= 4.
        rest: Features of other rows under the same model, shape (N, D), N >= 4: retain rows to ask for the class,
            rows never trained on to ask for membership.
        seed: Of the draw and the split.
        most: Rows used of either side; more are drawn down.

    Raises:
        ValueError: For fewer rows, other shapes, or features that are not finite.
    """
    from sklearn.linear_model import LogisticRegression

    if min(len(forget), len(rest)) < 4 or forget.shape[1:] != rest.shape[1:] or forget.dim() != 2:
        raise ValueError(
            f"wanted features of at least 4 rows of either side, got {list(forget.shape)} and {list(rest.shape)}"
        )
    if not (bool(forget.isfinite().all()) and bool(rest.isfinite().all())):
        raise ValueError("the features hold NaN or infinity: the model is broken")
    draws = np.random.default_rng(seed)
    sides = [side.double().numpy()[draws.permutation(len(side))[:most]] for side in (forget, rest)]
    fitted = np.concatenate([side[::2] for side in sides])
    labels = np.repeat([1, 0], [len(side[::2]) for side in sides])
    mean, spread = fitted.mean(0), fitted.std(0)
    spread[spread < 1e-12] = 1
    solver = "newton-cholesky" if fitted.shape[1] <= 1024 else "lbfgs"
    classifier = LogisticRegression(class_weight="balanced", solver=solver, max_iter=1000)
    classifier.fit((fitted - mean) / spread, labels)
    scores = [-classifier.decision_function((side[1::2] - mean) / spread) for side in sides]
    roc = population_attack(*scores)
    return Probe(auc=roc.auc, standard_error=roc.auc_standard_error, rows=len(fitted))
