"""Membership inference on predicted values: are forgotten training rows predicted better than rows never seen?

The statistic is each row's absolute residual; members tend to have the smaller ones. Both attacks are pure; predictions
come from `training.predict` and `losses.point`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from unlearning.attacks.membership import (
    MODELS,
    Array,
    MembershipReport,
    Roc,
    add_gaps,
    called_by_svc,
    population_attack,
)
from unlearning.losses import point
from unlearning.metrics.classification import Outputs


def absolute_residuals(predictions: Tensor, targets: Tensor) -> Array:
    """|y - y'| of each row, the mean over a forecast's values; shape (N,), in the targets' unit, >= 0.

    Args:
        predictions: y', point predictions, shape (N,) or (N, H).
        targets: y, of the same shape.

    Raises:
        ValueError: When the shapes differ; broadcast, they would be residuals of something else. For no rows.
    """
    if predictions.shape != targets.shape:
        raise ValueError(f"predictions {tuple(predictions.shape)} and targets {tuple(targets.shape)} differ in shape")
    if not len(targets):
        raise ValueError("wanted residuals of at least one row, got none")
    residuals = (predictions.to(torch.float64) - targets.to(torch.float64)).abs()
    return np.asarray(residuals.reshape(len(residuals), -1).mean(1).numpy(), dtype=np.float64)


def residual_attack(forget: Array, unseen: Array) -> Roc:
    """The exact curve of "call it a member when its residual is small", over all thresholds; balanced by nature.

    Forgotten training rows against held-out rows of the same kind: AUC 0.5 is wanted of an unlearned model, and below
    it the forgotten rows stand out as worse. Rows of another kind (another band of targets) would be told apart
    without any memory of them.

    Args:
        forget: Absolute residuals of forgotten training rows, shape (M,).
        unseen: Of held-out rows that the same rule selects, shape (N,).

    Raises:
        ValueError: When a side is empty or holds NaN.
    """
    return population_attack(forget, unseen)


def published_residual_attack(retain: Array, holdout: Array, forget: Array, *, seed: int, most: int = 2000) -> float:
    """Share of the forget rows that a classifier of residuals calls "member"; in [0, 1].

    The attack of arXiv:2210.08196's code: a support vector classifier (C = 3, RBF kernel, gamma "auto") is fitted on
    absolute residuals of training rows (members) and held-out rows, and asked about the forget rows. What to hope for
    is the retrained model's figure. Departs from that code: members are never forget rows, both sides are of one size,
    and residuals are of inputs without augmentation.

    Args:
        retain: Absolute residuals of retain training rows, shape (R,).
        holdout: Of held-out rows, shape (H,).
        forget: Of forgotten training rows, shape (M,).
        seed: Of the draw of members, non-members and forget rows.
        most: Rows of each; fewer where a side has fewer.

    Raises:
        ValueError: When a set is empty or holds NaN.
    """
    sides = (retain, holdout, forget)
    if min(len(side) for side in sides) == 0:
        raise ValueError(f"wanted retain, holdout and forget rows, got {len(retain)}, {len(holdout)}, {len(forget)}")
    if any(np.isnan(side).any() for side in sides):
        raise ValueError("residuals hold NaN: the model's outputs are broken")
    draw = np.random.default_rng(seed)
    count = min(most, len(retain), len(holdout))
    members, others = (draw.permutation(side)[:count] for side in (retain, holdout))
    return called_by_svc(np.concatenate([members, others]), np.repeat([1, 0], count), draw.permutation(forget)[:most])


def residual_attacks(
    models: Mapping[str, Mapping[str, Outputs]], *, quantiles: Sequence[float] = (), seed: int
) -> MembershipReport:
    """Both attacks on every model, named as those on classifiers: "membership_auc.residual.forget.unlearned", ...

    The exact attack asks two questions of each model. "forget": are forgotten training rows told from held-out rows of
    the same kind? After unlearning chance is wanted, and both sides of it count. "retain": are retained training rows
    told from held-out ones? On the original this is the positive control.

    Args:
        models: "original" and "unlearned", perhaps "retrained", each with its outputs on retain.train, retain.test,
            forget.train and, when there are held-out rows of the forgotten kind, forget.test (else retain.test stands
            in). Under any other name a further retrained model, of which only the first question is asked.
        quantiles: What the outputs are quantiles of; the one nearest to the median is judged.
        seed: Of the published attack's draws: "residual_attack.forget.unlearned", ...
    """
    metrics: dict[str, float] = {}
    errors: dict[str, float] = {}
    curves: dict[str, Roc] = {}
    sides: dict[str, tuple[Array, Array]] = {}
    for model, outputs in models.items():
        residuals = {
            name: absolute_residuals(point(one.logits, quantiles), one.targets) for name, one in outputs.items()
        }
        unseen = residuals.get("forget.test", residuals["retain.test"])
        questions = [("forget", residuals["forget.train"], unseen)]
        if model in MODELS:
            questions.append(("retain", residuals["retain.train"], residuals["retain.test"]))
            metrics[f"residual_attack.forget.{model}"] = published_residual_attack(
                residuals["retain.train"], residuals["retain.test"], residuals["forget.train"], seed=seed
            )
        for asked, members, others in questions:
            key = f"residual.{asked}.{model}"
            roc = curves[key] = residual_attack(members, others)
            metrics[f"membership_auc.{key}"] = roc.auc
            metrics[f"membership_tpr_at_1_percent_fpr.{key}"] = roc.tpr_at_1_percent_fpr
            errors[f"membership_auc.{key}"] = roc.auc_standard_error
        sides[model] = (residuals["forget.train"], unseen)
    add_gaps(metrics, errors, {"residual": sides}, [model for model in models if model not in MODELS])
    return MembershipReport(metrics=metrics, standard_errors=errors, curves=curves)
