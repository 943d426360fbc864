r"""U-LiRA: an audit of an unlearning method, row by row, with many shadow models; resumable, one shadow at a time.

Every shadow k trains on a random half of the candidate rows (and on all rows that are no candidates), then unlearns
just that half by the method under audit. A row thus has shadows that were taught and then unlearned it, and shadows
that never saw it. The attack fits a normal distribution of phi = ln(p / (1 - p)), p the probability of the row's class,
to each side, and asks which one a model's phi fits better. A method that forgets leaves nothing to tell: AUC 0.5.

Source: the likelihood-ratio attack in the form that arXiv:2403.01218 gives it for unlearning. Its text was not at hand
while this was written: it follows the description of the attack in the literature that cites it. A departure: shadows
come in pairs of a half and its complement, so that every row has equally many on both sides.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from unlearning.attacks.membership import Array, Roc, population_attack

Mask = NDArray[np.bool_]

FEWEST_FOR_OWN_SPREAD = 16
"""Shadows a side from which a row's own standard deviation is used; below, one that all rows share."""


def phi(losses: Array) -> Array:
    """ln(p / (1 - p)) of each row's own class from its cross-entropy in nats, any shape; rises with confidence.

    Kept within about +-36, where float64 still tells p from 0 and 1.
    """
    kept = np.clip(np.asarray(losses, dtype=np.float64), 2.0**-53, 36.7)
    return -kept - np.log(-np.expm1(-kept))


def taught(rows: int, shadow: int, *, seed: int) -> Mask:
    """The candidates that a shadow learns and then unlearns, shape (rows,); the others it never sees.

    Shadows 2 j and 2 j + 1 take complementary halves. The answer depends on these three numbers alone, so shadows may
    be made in any order, on any machine.

    Args:
        rows: Candidates; at least 2.
        shadow: Number of the shadow, from 0.
        seed: Of the audit.
    """
    if rows < 2 or shadow < 0:
        raise ValueError(f"wanted at least 2 rows and a shadow from 0 on, got {rows} rows and shadow {shadow}")
    half = np.zeros(rows, dtype=np.bool_)
    half[np.random.default_rng([seed, shadow // 2]).permutation(rows)[: rows // 2]] = True
    return ~half if shadow % 2 else half


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What an audit has gathered so far; a value, to be kept as JSON between runs.

    Attributes:
        seed: Of the splits.
        rows: How many candidates there are.
        planned: How many shadows are wanted; even.
        confidences: Shadow number to phi of every candidate under it after it unlearned, each shape (rows,).
    """

    seed: int
    rows: int
    planned: int
    confidences: dict[int, Array]

    def __post_init__(self) -> None:
        """Refuse a plan that cannot be carried out."""
        if self.rows < 2 or self.planned < 4 or self.planned % 2:
            raise ValueError(
                f"an audit needs 2 rows and an even number of shadows from 4 on, got {self.rows} and {self.planned}"
            )

    @property
    def missing(self) -> tuple[int, ...]:
        """Shadows still to be made."""
        return tuple(shadow for shadow in range(self.planned) if shadow not in self.confidences)

    def with_shadow(self, shadow: int, losses: Array) -> Audit:
        """The audit with one more shadow; the same again changes nothing.

        Args:
            shadow: One of those planned.
            losses: Cross-entropy in nats of every candidate under it, shape (rows,).

        Raises:
            ValueError: For a shadow that is not planned or is there with other values, other shapes, or NaN.
        """
        values = phi(losses)
        if not 0 <= shadow < self.planned or values.shape != (self.rows,):
            raise ValueError(
                f"wanted {self.rows} losses of a shadow below {self.planned}, got {values.shape} of shadow {shadow}"
            )
        if np.isnan(values).any():
            raise ValueError(f"the losses of shadow {shadow} hold NaN: the model is broken")
        if shadow in self.confidences and not np.array_equal(self.confidences[shadow], values):
            raise ValueError(f"shadow {shadow} is there with other values: one of the two was made with another seed")
        return replace(self, confidences={**self.confidences, shadow: values})

    def to_json(self) -> str:
        """The audit as JSON; equal audits give equal text."""
        return json.dumps(
            {
                "seed": self.seed,
                "rows": self.rows,
                "planned": self.planned,
                "confidences": {str(shadow): self.confidences[shadow].tolist() for shadow in sorted(self.confidences)},
            },
            allow_nan=False,
        )

    @classmethod
    def from_json(cls, text: str) -> Audit:
        """The audit that `to_json` wrote.

        Raises:
            ValueError: For anything else.
        """
        values = json.loads(text)
        if not isinstance(values, dict) or values.keys() != {"seed", "rows", "planned", "confidences"}:
            raise ValueError("wanted an audit's seed, rows, planned and confidences, got something else")
        confidences = {int(key): np.asarray(one, dtype=np.float64) for key, one in values.pop("confidences").items()}
        audit = cls(**values, confidences=confidences)
        if any(one.shape != (audit.rows,) or not 0 <= key < audit.planned for key, one in confidences.items()):
            raise ValueError(f"wanted shadows below {audit.planned} of {audit.rows} rows each, got others")
        return audit


def lira_scores(audit: Audit, losses: Array) -> Array:
    """Log likelihood ratio of "was taught and then unlearned" to "never seen"; (rows,), in nats, any sign.

    Above 0 the row looks like one that was once trained on.

    Args:
        audit: With at least two shadows of either side for every row.
        losses: Cross-entropy in nats of every candidate under the model in question, shape (rows,).

    Raises:
        ValueError: For too few shadows, other shapes, or NaN.
    """
    values = phi(losses)
    if values.shape != (audit.rows,) or np.isnan(values).any():
        raise ValueError(f"wanted {audit.rows} losses without NaN, got shape {values.shape}")
    return _scores(*_stacked(audit), values)


def leave_one_out(audit: Audit) -> tuple[Array, Mask]:
    """Every shadow in turn as the model in question, judged by all others: scores and truth, both (shadows, rows).

    Raises:
        ValueError: For fewer than three shadows of either side of a row.
    """
    confidences, sides = _stacked(audit)
    others = ~np.eye(len(sides), dtype=np.bool_)
    scores = [_scores(confidences[rest], sides[rest], confidences[one]) for one, rest in enumerate(others)]
    return np.stack(scores), sides


def audit_curve(audit: Audit) -> Roc:
    """How well the attack tells unlearned rows from never seen ones, over all rows and shadows; AUC 0.5 is wanted.

    Rows of one shadow are not independent, so the curve's own standard error is too small: take the spread of
    `audit_by_shadow` instead.
    """
    scores, sides = leave_one_out(audit)
    return population_attack(-scores[sides], -scores[~sides])


def audit_by_shadow(audit: Audit) -> Array:
    """The AUC within each shadow, shape (shadows,): independent values for `metrics.intervals.seed_interval`."""
    scores, sides = leave_one_out(audit)
    return np.array([population_attack(-one[side], -one[~side]).auc for one, side in zip(scores, sides, strict=True)])


def _stacked(audit: Audit) -> tuple[Array, Mask]:
    made = sorted(audit.confidences)
    if not made:
        raise ValueError("wanted shadows, the audit has none yet")
    sides = np.stack([taught(audit.rows, shadow, seed=audit.seed) for shadow in made])
    confidences = np.stack([audit.confidences[shadow] for shadow in made])
    if np.isnan(confidences).any():
        raise ValueError("the audit holds NaN: one of its shadows is broken")
    return confidences, sides


def _scores(confidences: Array, sides: Mask, values: Array) -> Array:
    """Log ratio of two normal densities for every row; confidences and sides (K, rows), values (rows,)."""
    (mean_in, spread_in), (mean_out, spread_out) = (_normal(confidences, side) for side in (sides, ~sides))
    return _log_density(values, mean_in, spread_in) - _log_density(values, mean_out, spread_out)


def _normal(confidences: Array, side: Mask) -> tuple[Array, Array]:
    """Mean and standard deviation of each row over the shadows of one side."""
    count = side.sum(0)
    if count.min() < 2:
        raise ValueError(f"wanted at least 2 shadows on either side of every row, one has {count.min()}: add shadows")
    mean = np.where(side, confidences, 0).sum(0) / count
    squares = np.where(side, (confidences - mean) ** 2, 0).sum(0)
    if count.min() < FEWEST_FOR_OWN_SPREAD:
        variance = np.full(len(mean), squares.sum() / (count - 1).sum())
    else:
        variance = squares / (count - 1)
    return mean, np.sqrt(np.maximum(variance, 1e-6))


def _log_density(values: Array, mean: Array, spread: Array) -> Array:
    return np.asarray(-np.log(spread) - 0.5 * ((values - mean) / spread) ** 2, dtype=np.float64)
