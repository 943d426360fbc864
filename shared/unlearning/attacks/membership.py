"""Membership inference from outputs: does the model treat forgotten training rows unlike rows it never saw?

Two steps, as every attack here: a statistic of each sample from the model's outputs, then a score from statistics
alone. Both are pure; predictions come from `training.predict`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from unlearning.metrics.classification import Outputs
from unlearning.metrics.intervals import auc_gap_error, gap_to

Array = NDArray[np.float64]

_ASKED_AT_ONCE = 1024
"""Rows that a classifier is asked about at once: bounds memory, and changes no result."""


def entropy(logits: Tensor) -> Array:
    """Entropy of each row's class probabilities, in nats, shape (N,); in [0, ln C]. Members tend to be lower."""
    return _entropy(_log_shares(logits))


def cross_entropy(logits: Tensor, targets: Tensor) -> Array:
    """Loss of each row, in nats, shape (N,); >= 0. Members tend to be lower."""
    return _loss(_log_shares(logits), targets)


def doubt(logits: Tensor) -> Array:
    """One less the largest class probability of each row, shape (N,); in [0, 1 - 1 / C]. Members tend to be lower.

    It needs no labels. Summed over the other classes, so that it does not round to 0 while any of them has a chance.
    """
    return _doubt(_log_shares(logits))


def statistics(outputs: Outputs) -> dict[str, Array]:
    """Every statistic of the population attack, by its name in `STATISTICS`; each of shape (N,)."""
    log_p = _log_shares(outputs.logits)
    return {name: of(log_p, outputs.targets) for name, of in STATISTICS.items()}


def _log_shares(logits: Tensor) -> Tensor:
    return F.log_softmax(logits.double(), dim=1)


def _entropy(log_p: Tensor) -> Array:
    return np.asarray(-(log_p.exp() * log_p).sum(1).numpy(), dtype=np.float64)


def _loss(log_p: Tensor, targets: Tensor) -> Array:
    return np.asarray(-log_p.gather(1, targets[:, None])[:, 0].numpy(), dtype=np.float64)


def _doubt(log_p: Tensor) -> Array:
    others = log_p.exp().scatter_(1, log_p.argmax(1, keepdim=True), 0.0)
    return np.asarray(others.sum(1).numpy(), dtype=np.float64)


STATISTICS: dict[str, Callable[[Tensor, Tensor], Array]] = {
    "entropy": lambda log_p, targets: _entropy(log_p),
    "loss": _loss,
    "confidence": lambda log_p, targets: _doubt(log_p),
}
"""Statistics of the population attack, of log-probabilities and targets; low for members that a model has learned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Roc:
    """How well one statistic tells members from non-members, over all thresholds.

    Attributes:
        auc: Probability that a random member looks more like one than a random non-member; 0.5 is chance. Below 0.5
            the members stand out the other way: as telling as above.
        tpr_at_1_percent_fpr: Largest share of members found while at most 1% of the non-members are called members.
        tpr_at_tenth_percent_fpr: The same at 0.1%; with fewer than 1,000 non-members that means none of them.
        reversed_tpr_at_1_percent_fpr: As `tpr_at_1_percent_fpr`, by a threshold from above: how many members stand out
            because the statistic is high. Over-forgetting shows here.
        false_positive_rates: Of every distinct threshold, rising from 0 to 1.
        true_positive_rates: Likewise.
        thresholds: The statistic at or below which a row is called a member; the first, -inf, calls none.
        members: Rows on each side.
        non_members: Rows on each side.
    """

    auc: float
    tpr_at_1_percent_fpr: float
    tpr_at_tenth_percent_fpr: float
    reversed_tpr_at_1_percent_fpr: float
    false_positive_rates: Array
    true_positive_rates: Array
    thresholds: Array
    members: int
    non_members: int

    @property
    def auc_standard_error(self) -> float:
        """Of the AUC if the attack knew nothing: sqrt((m + n + 1) / (12 m n)), Mann and Whitney's."""
        m, n = self.members, self.non_members
        return float(np.sqrt((m + n + 1) / (12 * m * n)))

    @property
    def told(self) -> float:
        """The better of the AUC and its mirror image, in [0.5, 1]: what an attacker gets who knows which side to take.

        On few rows it lies above 0.5 even by chance alone.
        """
        return max(self.auc, 1 - self.auc)

    def thinned(self, most: int = 200) -> Roc:
        """The same curve with at most this many points, to be drawn or sent; the scores stay exact."""
        if len(self.thresholds) <= most:
            return self
        kept = np.unique(np.linspace(0, len(self.thresholds) - 1, most).round().astype(np.int64))
        return replace(
            self,
            false_positive_rates=self.false_positive_rates[kept],
            true_positive_rates=self.true_positive_rates[kept],
            thresholds=self.thresholds[kept],
        )


def population_attack(members: Array, non_members: Array) -> Roc:
    """The exact curve of "call it a member when the statistic is low", by one sort; ties count half in the AUC.

    The AUC and the rates do not depend on how many rows each side has, so neither side is cut down.

    Args:
        members: The statistic of rows that the model was trained on, shape (M,).
        non_members: The same of rows that it never saw, drawn alike, shape (N,).

    Raises:
        ValueError: When a side is empty or holds NaN.
    """
    if len(members) == 0 or len(non_members) == 0:
        raise ValueError(f"wanted members and non-members, got {len(members)} and {len(non_members)}")
    values = np.concatenate([members, non_members])
    if np.isnan(values).any():
        raise ValueError("the attack's statistic holds NaN: the model's outputs are broken")
    is_member = np.concatenate([np.ones(len(members)), np.zeros(len(non_members))])
    order = np.argsort(values, kind="stable")
    values, is_member = values[order], is_member[order]
    last_of_tie = np.append(np.flatnonzero(values[1:] > values[:-1]), len(values) - 1)
    found = np.cumsum(is_member)[last_of_tie]
    wrong = 1 + last_of_tie - found
    tpr = np.concatenate([[0.0], found / len(members)])
    fpr = np.concatenate([[0.0], wrong / len(non_members)])
    return Roc(
        auc=float(np.trapezoid(tpr, fpr)),
        tpr_at_1_percent_fpr=float(tpr[fpr <= 0.01].max()),
        tpr_at_tenth_percent_fpr=float(tpr[fpr <= 0.001].max()),
        reversed_tpr_at_1_percent_fpr=float(1 - tpr[fpr >= 0.99].min()),
        false_positive_rates=fpr,
        true_positive_rates=tpr,
        thresholds=np.concatenate([[-np.inf], values[last_of_tie]]),
        members=len(members),
        non_members=len(non_members),
    )


def entropy_attack(retain: Array, holdout: Array, forget: Array, *, seed: int, most: int = 2000) -> float:
    """Share of the forget set that a classifier of entropies calls "member"; in [0, 1].

    The attack as its authors publish it (arXiv:2201.05629's code): a support vector classifier (C = 3, RBF kernel,
    gamma "auto") is fitted on the entropies of retain rows (members) and held-out rows, without balance, and asked
    about the forget rows. What to hope for is the value of a model that never saw them; 0 is not best by itself.

    Args:
        retain: Entropies of retain training rows, shape (R,).
        holdout: Of held-out rows, shape (H,).
        forget: Of forget training rows, shape (M,).
        seed: Of the draw when there are more than `most` rows; the draw keeps the two sides' proportion.
        most: Rows to fit on: the classifier's cost grows faster than their square.
    """
    if min(len(retain), len(holdout), len(forget)) == 0:
        raise ValueError(f"wanted retain, holdout and forget rows, got {len(retain)}, {len(holdout)}, {len(forget)}")
    values = np.concatenate([retain, holdout])
    member = np.concatenate([np.ones(len(retain), dtype=np.int64), np.zeros(len(holdout), dtype=np.int64)])
    if len(values) > most:
        drawn = np.random.default_rng(seed).permutation(len(values))[:most]
        values, member = values[drawn], member[drawn]
        if member.min() == member.max():
            raise ValueError(f"{most} rows drawn for the entropy attack are all of one kind; raise `most`")
    return called_by_svc(values, member, forget)


def called_by_svc(values: Array, member: NDArray[np.int64], asked: Array) -> float:
    """Share of values that a support vector classifier of one value (C = 3, RBF, gamma "auto") calls members.

    It answers as scikit-learn's `predict` does, for many values at once: that goes through them one by one.

    Args:
        values: What it is fitted on, shape (N,).
        member: 1 for members, 0 for others, shape (N,).
        asked: What it is asked about, shape (M,).

    Raises:
        ValueError: For no rows, for one kind alone, or NaN.
    """
    from sklearn.svm import SVC

    if np.isnan(values).any() or np.isnan(asked).any():
        raise ValueError("the attack's statistic holds NaN: the model's outputs are broken")
    if not len(asked):
        raise ValueError("wanted rows to ask about, got none")

    classifier = SVC(C=3, gamma="auto", kernel="rbf", random_state=0).fit(values[:, None], member)
    support, weights, offset = classifier.support_vectors_[:, 0], classifier.dual_coef_[0], classifier.intercept_[0]
    parts = np.array_split(asked, -(-len(asked) // _ASKED_AT_ONCE))
    margins = [np.exp(-np.square(part[:, None] - support)) @ weights + offset for part in parts]  # gamma is 1
    return float(np.mean(np.concatenate(margins) >= 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyAttack:
    """The entropy attack by a balanced logistic regression.

    Attributes:
        called: Share of the forget rows called "member", in [0, 1].
        accuracy: Balanced accuracy on the halves of retain and held-out rows that it was not fitted on, in [0, 1]; near
            0.5 the attack sees nothing of training in this model, and `called` means nothing.
    """

    called: float
    accuracy: float


def balanced_entropy_attack(retain: Array, holdout: Array, forget: Array, *, seed: int) -> EntropyAttack:
    """The entropy attack, members and non-members counting alike however many rows each side has.

    A logistic regression of one value is a threshold, found by Newton's method in linear time on all rows: nothing is
    drawn down, as the published form must. Each side is split at random into a half to fit on and a half to test on.

    Args:
        retain: Entropies of retain training rows, shape (R,), R >= 2.
        holdout: Of held-out rows, shape (H,), H >= 2.
        forget: Of forget training rows, shape (M,), M >= 1.
        seed: Of the split.

    Raises:
        ValueError: For too few rows, or NaN.
    """
    if min(len(retain), len(holdout)) < 2 or len(forget) == 0:
        raise ValueError(
            f"wanted 2 retain rows, 2 holdout rows and a forget row, got {len(retain)}, {len(holdout)}, {len(forget)}"
        )
    if any(np.isnan(side).any() for side in (retain, holdout, forget)):
        raise ValueError("the entropies hold NaN: the model's outputs are broken")
    draws = np.random.default_rng(seed)
    members, others = (draws.permutation(side) for side in (retain, holdout))
    slope, offset = _logistic(members[::2], others[::2])

    def called(values: Array) -> float:
        return float(np.mean(slope * values + offset > 0))

    accuracy = (called(members[1::2]) + 1 - called(others[1::2])) / 2
    return EntropyAttack(called=called(forget), accuracy=accuracy)


def _logistic(members: Array, others: Array) -> tuple[float, float]:
    """Slope and offset of the balanced logistic regression with an L2 penalty of 1/2 on the slope, by Newton's method.

    Each side's rows weigh (M + N) / 2 together.
    """
    values = np.concatenate([members, others])
    label = np.concatenate([np.ones(len(members)), np.zeros(len(others))])
    weights = np.concatenate([np.full(len(side), len(values) / 2 / len(side)) for side in (members, others)])

    def objective(slope: float, offset: float) -> float:
        margin = slope * values + offset
        return float(weights @ (np.logaddexp(0, margin) - label * margin) + slope**2 / 2)

    slope = offset = 0.0
    for _ in range(100):
        p = 1 / (1 + np.exp(-np.clip(slope * values + offset, -700, 700)))
        error, curved = weights * (p - label), weights * p * (1 - p)
        gradient = np.array([error @ values + slope, error.sum()])
        cross = curved @ values
        hessian = np.array([[curved @ values**2 + 1, cross], [cross, curved.sum() + 1e-12]])
        step = np.linalg.solve(hessian, gradient)
        size, before = 1.0, objective(slope, offset)
        while size > 1e-10 and objective(slope - size * step[0], offset - size * step[1]) > before:
            size /= 2
        slope, offset = slope - size * float(step[0]), offset - size * float(step[1])
        if size * np.abs(step).max() < 1e-10:
            break
    return slope, offset


MODELS = ("original", "unlearned", "retrained")


@dataclass(frozen=True, slots=True, kw_only=True)
class MembershipReport:
    """Membership inference on the original and the unlearned model.

    Attributes:
        metrics: Flat names: "entropy_attack.forget.unlearned", "membership_auc.entropy.forget.unlearned", ...
        standard_errors: Of the AUCs, by the same names.
        curves: For "<statistic>.<set>.<model>", the curve.
    """

    metrics: dict[str, float]
    standard_errors: dict[str, float]
    curves: dict[str, Roc]


Sides = Mapping[str, Mapping[str, tuple[Array, Array]]]
"""Statistic to model to its values on forget and on unseen rows."""


def add_gaps(metrics: dict[str, float], errors: dict[str, float], sides: Sides, references: Sequence[str] = ()) -> None:
    """Add how much more the attack finds in the unlearned model than in the retrained one, where that was attacked.

    Both are attacked on the same rows, so what makes a row easy for both is no part of the error. The original's gap
    stands beside it as "control.membership_gap.loss.forget". Where further retrained models were attacked, the gap is
    to the mean of all, and what they differ by adds to the error.

    Args:
        metrics: With "membership_auc.loss.forget.unlearned" and so on of every statistic and model; added to.
        errors: Added to.
        sides: What the attacks had.
        references: Names of further retrained models among them.
    """
    for name, models in sides.items():
        if "retrained" not in models:
            continue
        known = [one for one in ("retrained", *references) if one in models]
        aucs = [metrics[f"membership_auc.{name}.forget.{one}"] for one in known]
        for model, prefix in (("unlearned", ""), ("original", "control.")):
            key = f"{prefix}membership_gap.{name}.forget"
            metrics[key], errors[key] = gap_to(
                metrics[f"membership_auc.{name}.forget.{model}"],
                aucs,
                auc_gap_error(models[model], models["retrained"]),
            )


def membership_attacks(models: Mapping[str, Mapping[str, Outputs]], *, seed: int) -> MembershipReport:
    """The published entropy attack, and the exact population attack with every statistic.

    The population attack asks two questions of each model. "forget": are forgotten training rows told from held-out
    rows under the same rule? After unlearning, chance (0.5) is wanted, and both sides of it count. "retain": are
    retained training rows told from held-out ones? On the original this is the positive control: where it is at
    chance, the attack cannot see training in this model at all, and its silence about forget rows says little.

    Args:
        models: "original" and "unlearned", perhaps "retrained", each with its outputs on retain.train, retain.test,
            forget.train and, when the request has held-out rows of its own, forget.test (else retain.test stands in).
            Under any other name a further retrained model, of which only the question about forgotten rows is asked.
        seed: Of the published attack's draw.
    """
    metrics: dict[str, float] = {}
    errors: dict[str, float] = {}
    curves: dict[str, Roc] = {}
    sides: dict[str, dict[str, tuple[Array, Array]]] = {name: {} for name in STATISTICS}
    for model, outputs in models.items():
        found = {key: statistics(one) for key, one in outputs.items()}
        unseen = "forget.test" if "forget.test" in outputs else "retain.test"
        questions = [("forget", "forget.train", unseen)]
        if model in MODELS:
            questions.append(("retain", "retain.train", "retain.test"))
            metrics[f"entropy_attack.forget.{model}"] = entropy_attack(
                *(found[key]["entropy"] for key in ("retain.train", "retain.test", "forget.train")), seed=seed
            )
        for asked, members, others in questions:
            for name in STATISTICS:
                values, unseen_values = found[members][name], found[others][name]
                roc = population_attack(values, unseen_values)
                key = f"{name}.{asked}.{model}"
                curves[key] = roc
                metrics[f"membership_auc.{key}"] = roc.auc
                metrics[f"membership_tpr_at_1_percent_fpr.{key}"] = roc.tpr_at_1_percent_fpr
                metrics[f"membership_tpr_at_tenth_percent_fpr.{key}"] = roc.tpr_at_tenth_percent_fpr
                errors[f"membership_auc.{key}"] = roc.auc_standard_error
                if asked == "forget":
                    sides[name][model] = (values, unseen_values)
    add_gaps(metrics, errors, sides, [model for model in models if model not in MODELS])
    return MembershipReport(metrics=metrics, standard_errors=errors, curves=curves)
