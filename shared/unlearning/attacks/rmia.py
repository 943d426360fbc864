"""RMIA: is a row more likely under the model than rows of the population are, each held against reference models?

Source: "Low-Cost High-Power Membership Inference Attacks", arXiv:2312.03262. Neither the paper's text nor its code was
at hand while this was written: the score, the offline correction and the two defaults follow the formula as it is
commonly cited, and wait to be checked against the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from unlearning.attacks.membership import Array
from unlearning.config import About


@dataclass(frozen=True, slots=True, kw_only=True)
class RmiaConfig:
    """Settings of the attack."""

    gamma: Annotated[float, About("how many times likelier than a population row a row must be")] = 2.0
    offline: Annotated[
        float, About("how far models that never saw a row stand in for ones that did; 1: as they are")
    ] = 1 / 3

    def __post_init__(self) -> None:
        """Refuse what is no test."""
        if not 1 <= self.gamma < np.inf:
            raise ValueError(f"gamma must be at least 1, got {self.gamma}")
        if not 0 <= self.offline <= 1:
            raise ValueError(f"offline must be between 0 and 1, got {self.offline}")


def rmia_scores(
    losses: Array, population: Array, references: Array, population_references: Array, config: RmiaConfig | None = None
) -> Array:
    r"""Share of population rows that the row beats by gamma; shape (N,), in [0, 1], higher looks more like a member.

    r(x) = p(x | model) / p(x), with p the probability of the row's own class, and p(x) = ((1 + a) m(x) + 1 - a) / 2
    where m(x) is the mean over reference models that never saw x: the offline form. The score of x is the share of
    population rows z with r(x) >= gamma r(z). Without reference models p(x) = 1: what is left ranks bare confidence.

    One sort of the population and a binary search for each row: O((N + Z) log Z), nothing of size N x Z is built.

    Args:
        losses: Cross-entropy in nats of the rows in question under the model attacked, shape (N,).
        population: The same of rows that neither it nor the reference models saw, shape (Z,).
        references: Cross-entropy of the rows in question under K reference models never trained on them, shape (K, N);
            K = 0 is allowed. Models retrained without the forget rows are such models.
        population_references: Of the population under the same models, shape (K, Z).
        config: Settings of the attack.

    Raises:
        ValueError: For no population, other shapes, or NaN.
    """
    config = config or RmiaConfig()
    if len(population) == 0:
        raise ValueError("wanted population rows, got none")
    K = len(references)
    wanted = (K, len(losses)), (K, len(population))
    if (references.shape, population_references.shape) != wanted and not (K == len(population_references) == 0):
        raise ValueError(
            f"wanted the losses of every row under the same reference models, shapes {wanted[0]} and {wanted[1]}, got "
            f"{references.shape} and {population_references.shape}"
        )
    if any(np.isnan(values).any() for values in (losses, population, references, population_references)):
        raise ValueError("the losses hold NaN: a model's outputs are broken")
    ours = _log_ratio(losses, references, config.offline)
    theirs = np.sort(_log_ratio(population, population_references, config.offline))
    beaten = np.searchsorted(theirs, ours - np.log(config.gamma), side="right")
    return np.asarray(beaten / len(theirs), dtype=np.float64)


def _log_ratio(losses: Array, references: Array, offline: float) -> Array:
    """Ln r(x), shape (N,); a loss of infinity is taken as the smallest probability there is."""
    log_p = -np.minimum(losses, _MOST_NATS)
    if len(references) == 0:
        return log_p
    mean = np.exp(-np.minimum(references, _MOST_NATS)).mean(0)
    return np.asarray(log_p - np.log(((1 + offline) * mean + 1 - offline) / 2), dtype=np.float64)


_MOST_NATS = 700.0
"""exp(-700) is still above 0."""
