"""The deeper attacks in one call: on features, on relearning, on inputs, each beside the same on a retrained model.

Membership inference asks what outputs give away. This asks what is left underneath: a model whose last layer was edited
passes the first and fails here. Nothing of it is cheap enough for every run, nor costs more than a few trainings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import torch
from torch import Tensor, nn

from unlearning.attacks.inversion import InversionConfig, inversion_score, invert
from unlearning.attacks.membership import Roc, cross_entropy, population_attack
from unlearning.attacks.probe import probe_attack
from unlearning.attacks.prototype import prototype_attack
from unlearning.attacks.relearning import RelearningAttack, few_shots, relearning_attack
from unlearning.attacks.rmia import rmia_scores
from unlearning.attacks.update import update_attack, update_attack_on_values
from unlearning.config import About
from unlearning.data.samples import Joined, Rows, Samples, TensorSamples
from unlearning.losses import point
from unlearning.metrics.accuracy import accuracy
from unlearning.metrics.features import features
from unlearning.metrics.regression import skill
from unlearning.metrics.relearning import AnamnesisIndex, RelearnConfig, RelearnCurve, anamnesis_index, relearn
from unlearning.progress import Progress, silent
from unlearning.training import generator, predict

MODELS = ("original", "unlearned", "retrained")
FEWEST = 8
"""Forget rows, and rows of every other set, that an audit needs at least."""
NOT_OF_VALUES = (
    "The audit of a model that predicts values has no prototypes, no inversion, no RMIA and no shadow models: "
    "those ask classifiers."
)
LEAST_SKILL = 0.05
"""Of the original on what was forgotten; with less nothing can be seen to come back."""
NOTHING_TO_RELEARN = (
    f"The audit relearned nothing: the original explains less than {LEAST_SKILL:.0%} of how the values to forget vary, "
    "so that nothing could be seen to come back."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditConfig:
    """How much is asked."""

    shots: Annotated[int, About("forget rows of each class that the attacker holds")] = 10
    updates: Annotated[int, About("of a relearning attack")] = 60
    every: Annotated[int, About("updates between two looks")] = 5
    cap: Annotated[int, About("updates at most until the Anamnesis Index gives bounds only")] = 200
    batch_size: Annotated[int, About("rows in an update")] = 64
    learning_rate: Annotated[float, About("of Adam, while relearning")] = 1e-3
    repeats: Annotated[int, About("relearning attacks, each with its own order")] = 3
    most: Annotated[int, About("rows of a set that are used; more are drawn down")] = 2000
    images: Annotated[int, About("inverted for each forgotten class")] = 4
    inversion_steps: Annotated[int, About("of Adam on the images")] = 200

    def __post_init__(self) -> None:
        """Refuse what asks nothing."""
        for name in ("shots", "updates", "every", "cap", "batch_size", "repeats", "images", "inversion_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.most < 20:
            raise ValueError(f"most must be at least 20, got {self.most}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One attack's score on each model; None where it was not run.

    Attributes:
        metric: Its name among the metrics, without the model.
        original: Of the model before.
        unlearned: Of the model after.
        retrained: Of the model that never saw the forgotten rows: the score to compare with.
        members: Rows that were trained on; 0 where the attack has no such sides.
        non_members: Rows that were not; likewise.
    """

    metric: str
    unlearned: float
    retrained: float | None
    original: float | None = None
    members: int = 0
    non_members: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """What the attacks found.

    Attributes:
        asked: One entry for each score.
        metrics: All of it flat: "audit.probe_auc.unlearned", "audit.probe_gap", ...
        standard_errors: Of some metrics, by the same names.
        relearning: Attack ("few_shots", "retain_only") to its curves.
        index: The Anamnesis Index of a class, or of a range or time of values; None for rows, which relearning cannot
            tell from unseen ones.
        images: Inverted images by model, (K, C, H, W), normalised; empty for rows or other inputs.
        image_classes: The class of each.
        left_out: What was not asked, a sentence each; of classifiers nothing.
    """

    asked: tuple[Asked, ...]
    metrics: dict[str, float]
    standard_errors: dict[str, float]
    relearning: dict[str, RelearningAttack]
    index: AnamnesisIndex | None = None
    images: dict[str, Tensor] = field(default_factory=dict)
    image_classes: tuple[int, ...] = ()
    left_out: tuple[str, ...] = ()


def audit(
    models: Mapping[str, nn.Module],
    sets: Mapping[str, Samples],
    *,
    classes: int,
    forget_classes: Sequence[int],
    input_shape: Sequence[int],
    config: AuditConfig,
    seed: int,
    references: Sequence[nn.Module] = (),
    levels: Sequence[float] | None = None,
    progress: Progress = silent,
) -> AuditReport:
    """Every attack that the request and the task allow; no model is changed.

    Args:
        models: "original", "unlearned" and "retrained": classifiers of the same classes, or models of the same values.
        sets: "forget.train", "retain.train", "retain.test", and "forget.test" where classes, or ranges or times of
            values, are forgotten.
        classes: C; of no use for values.
        forget_classes: Indices; empty when rows are forgotten.
        input_shape: Of one input.
        config: How much is asked.
        seed: Of every random choice.
        references: Further retrained models, for RMIA.
        levels: Of models that predict values, what their outputs are quantiles of, empty for plain predictions; their
            skill stands for the accuracy. None: classifiers.
        progress: Called after every look of a relearning and every step of an inversion.

    Raises:
        ValueError: For too few rows, or a model whose outputs are not finite.
        FloatingPointError: When relearning or inversion broke down.
    """
    for name, rows in sets.items():
        if len(rows) < FEWEST:
            raise ValueError(f"wanted at least {FEWEST} rows of {name}, got {len(rows)}: too few to tell anything by")
    drawn = {name: _drawn(rows, config.most, generator(seed, f"audit {name}")) for name, rows in sets.items()}
    asked: list[Asked] = []
    errors: dict[str, float] = {}
    whole = bool(forget_classes) if levels is None else "forget.test" in sets
    watched = drawn["forget.test" if whole else "forget.train"]
    knew = levels is None or _known(models["original"], watched, levels) >= LEAST_SKILL
    relearning = _relearning(models, drawn, whole, config, seed, levels, progress) if knew else {}
    for name, attack in relearning.items():
        asked.append(
            Asked(metric=f"relearned_{name}", unlearned=_last(attack.unlearned), retrained=_last(attack.reference))
        )
    seen = {name: _features(model, drawn) for name, model in models.items()}
    other = "retain.train" if whole else "retain.test"
    probes = {name: probe_attack(read["forget.train"], read[other], seed=seed) for name, read in seen.items()}
    sizes = {"members": len(drawn["forget.train"]), "non_members": len(drawn[other])}
    asked.append(
        Asked(
            metric="probe_auc",
            original=probes["original"].auc,
            unlearned=probes["unlearned"].auc,
            retrained=probes["retrained"].auc,
            **sizes,
        )
    )
    if levels is None:
        asked += _of_outputs(models, references, drawn, whole, seed)
    else:
        asked += _of_values(models, drawn, whole, levels)
    index = _index(models, drawn, config, seed, levels, progress) if whole and knew else None
    images: dict[str, Tensor] = {}
    labels: tuple[int, ...] = ()
    if forget_classes:
        asked.append(_prototypes(seen, drawn, classes, forget_classes, config, seed))
        if len(input_shape) == 3:
            labels = tuple(c for c in forget_classes for _ in range(config.images))
            images = {
                name: invert(
                    model,
                    labels,
                    input_shape,
                    InversionConfig(steps=config.inversion_steps),
                    generator=generator(seed, "audit inversion"),
                    progress=progress,
                )
                for name, model in models.items()
            }
            asked += _inversions(models["original"], images, labels, drawn["forget.train"])
    metrics = _flat(asked)
    for name, attack in relearning.items():
        metrics[f"audit.relearning_area.{name}"] = attack.area
        errors[f"audit.relearning_area.{name}"] = attack.area_spread / len(attack.unlearned) ** 0.5
    errors["audit.probe_gap"] = 2**0.5 * probes["unlearned"].standard_error
    if index is not None and index.value is not None:
        metrics["audit.anamnesis_index"] = index.value
    return AuditReport(
        asked=tuple(asked),
        metrics=metrics,
        standard_errors=errors,
        relearning=relearning,
        index=index,
        images=images,
        image_classes=labels,
        left_out=() if levels is None else (NOT_OF_VALUES, *(() if knew else (NOTHING_TO_RELEARN,))),
    )


def _relearning(
    models: Mapping[str, nn.Module],
    sets: Mapping[str, Rows],
    whole: bool,
    config: AuditConfig,
    seed: int,
    levels: Sequence[float] | None,
    progress: Progress,
) -> dict[str, RelearningAttack]:
    forget, draws = sets["forget.train"], generator(seed, "audit shots")
    if levels is None:
        most = max(1, len(forget) // (2 * len(forget.targets.unique())))  # half of the rows: the rest is watched
        shots = few_shots(forget, min(config.shots, most), draws)
    else:
        shots = Rows(forget, torch.randperm(len(forget), generator=draws)[: min(config.shots, len(forget) // 2)])
    watched = sets["forget.test"] if whole else _without(forget, shots)
    how = RelearnConfig(
        updates=config.updates, every=config.every, batch_size=config.batch_size, learning_rate=config.learning_rate
    )
    seeds = range(seed, seed + config.repeats)
    return {
        name: relearning_attack(
            models["unlearned"],
            models["retrained"],
            learned,
            watched,
            how,
            seeds=seeds,
            quantiles=levels,
            progress=progress,
        )
        for name, learned in (("few_shots", shots), ("retain_only", sets["retain.train"]))
    }


def _known(model: nn.Module, watched: Rows, levels: Sequence[float] | None) -> float:
    """The accuracy of a classifier, the skill of a model of values; in [0, 1]."""
    outputs = predict(model, watched)
    return accuracy(outputs, watched.targets) if levels is None else skill(point(outputs, levels), watched.targets)


def _index(
    models: Mapping[str, nn.Module],
    sets: Mapping[str, Rows],
    config: AuditConfig,
    seed: int,
    levels: Sequence[float] | None,
    progress: Progress,
) -> AnamnesisIndex:
    """Of relearning the forget rows among as many retain rows: two relearnings, the original sets the target."""
    forget, retain, watched = sets["forget.train"], sets["retain.train"], sets["forget.test"]
    known = _known(models["original"], watched, levels)
    learned = Joined(forget, Rows(retain, torch.arange(min(len(forget), len(retain)))))
    how = RelearnConfig(updates=config.cap, batch_size=config.batch_size, learning_rate=config.learning_rate)
    ours, theirs = (
        relearn(models[name], learned, watched, how, seed=seed, until=0.95 * known, quantiles=levels, progress=progress)
        for name in ("unlearned", "retrained")
    )
    return anamnesis_index(ours, theirs, original_accuracy=known)


def _of_outputs(
    models: Mapping[str, nn.Module],
    references: Sequence[nn.Module],
    sets: Mapping[str, Rows],
    whole_classes: bool,
    seed: int,
) -> list[Asked]:
    """The before/after pair, and RMIA with the retrained models as its references."""
    unseen_set = sets["forget.test"] if whole_classes else sets["retain.test"]
    forget, unseen = sets["forget.train"].targets, unseen_set.targets
    logits = {
        name: (predict(model, sets["forget.train"]), predict(model, unseen_set)) for name, model in models.items()
    }
    pairs = {
        name: update_attack(logits["original"][0], after[0], forget, logits["original"][1], after[1], unseen)
        for name, after in logits.items()
        if name != "original"
    }
    sizes = {"members": len(forget), "non_members": len(unseen)}
    asked = [
        Asked(
            metric=f"{metric}_auc",
            unlearned=pairs["unlearned"][key].auc,
            retrained=pairs["retrained"][key].auc,
            **sizes,
        )
        for metric, key in (("update_loss", "loss_rise"), ("update_divergence", "divergence"))
    ]
    losses = {name: tuple(map(cross_entropy, both, (forget, unseen))) for name, both in logits.items()}
    order = torch.randperm(len(unseen), generator=generator(seed, "audit population")).numpy()
    population, strangers = order[::2], order[1::2]
    asked_of = (sets["forget.train"], unseen_set)
    more = [[cross_entropy(predict(model, rows), rows.targets) for rows in asked_of] for model in references]
    known, ground = (np.stack([side, *(one[at] for one in more)]) for at, side in enumerate(losses["retrained"]))
    if len(strangers):
        curves: dict[str, Roc] = {}
        for name in ("original", "unlearned"):
            ours, theirs = losses[name]
            scored = [
                rmia_scores(values, theirs[population], reference, ground[:, population])
                for values, reference in ((ours, known), (theirs[strangers], ground[:, strangers]))
            ]
            curves[name] = population_attack(*(-scores for scores in scored))
        asked.append(
            Asked(
                metric="rmia_auc",
                original=curves["original"].auc,
                unlearned=curves["unlearned"].auc,
                retrained=None,
                members=len(forget),
                non_members=len(strangers),
            )
        )
    return asked


def _of_values(
    models: Mapping[str, nn.Module], sets: Mapping[str, Rows], whole: bool, levels: Sequence[float]
) -> list[Asked]:
    """The before/after pair on values."""
    seen, unseen = sets["forget.train"], sets["forget.test" if whole else "retain.test"]
    answers = {name: [point(predict(model, rows), levels) for rows in (seen, unseen)] for name, model in models.items()}
    before = answers.pop("original")
    pairs = {
        name: update_attack_on_values(before[0], after[0], seen.targets, before[1], after[1], unseen.targets)
        for name, after in answers.items()
    }
    return [
        Asked(
            metric=f"update_{metric}_auc",
            unlearned=pairs["unlearned"][key].auc,
            retrained=pairs["retrained"][key].auc,
            members=len(seen),
            non_members=len(unseen),
        )
        for metric, key in (("residual", "residual_rise"), ("shift", "shift"))
    ]


def _prototypes(
    seen: Mapping[str, Mapping[str, Tensor]],
    sets: Mapping[str, Rows],
    classes: int,
    forget_classes: Sequence[int],
    config: AuditConfig,
    seed: int,
) -> Asked:
    learned = torch.cat([sets[name].targets for name in ("forget.train", "retain.train")])
    tested = torch.cat([sets[name].targets for name in ("forget.test", "retain.test")])
    order = torch.randperm(len(learned), generator=generator(seed, "audit prototypes"))
    shots = torch.cat([order[learned[order] == c][: config.shots] for c in range(classes)])
    found = {
        name: prototype_attack(
            torch.cat([read["forget.train"], read["retain.train"]])[shots],
            learned[shots],
            torch.cat([read["forget.test"], read["retain.test"]]),
            tested,
            classes=classes,
            forget_classes=tuple(forget_classes),
        ).forget_accuracy
        for name, read in seen.items()
    }
    return Asked(
        metric="prototype_accuracy",
        original=found["original"],
        unlearned=found["unlearned"],
        retrained=found["retrained"],
    )


def _inversions(original: nn.Module, images: Mapping[str, Tensor], labels: Sequence[int], forget: Rows) -> list[Asked]:
    inputs, targets = forget.batch(torch.arange(len(forget)))
    means = torch.stack([inputs[targets == label].mean(0) for label in labels])
    scores = {
        name: inversion_score(
            made, labels, predict(original, TensorSamples(made, torch.tensor(labels), mean=(0.0,), std=(1.0,))), means
        )
        for name, made in images.items()
    }
    means_of = {
        what: {name: sum(getattr(score, what)) / len(labels) for name, score in scores.items()}
        for what in ("confidence", "similarity")
    }
    return [Asked(metric=f"inversion_{what}", **found) for what, found in means_of.items()]


def _features(model: nn.Module, sets: Mapping[str, Rows]) -> dict[str, Tensor]:
    return {name: features(model, rows) for name, rows in sets.items()}


def _flat(asked: Sequence[Asked]) -> dict[str, float]:
    """Scores by model, and the unlearned model's distance from the retrained one's."""
    metrics: dict[str, float] = {}
    for one in asked:
        for name in MODELS:
            if (value := getattr(one, name)) is not None:
                metrics[f"audit.{one.metric}.{name}"] = value
        if one.retrained is not None:
            stem = one.metric.removesuffix("_auc").removesuffix("_accuracy")
            metrics[f"audit.{stem}_gap"] = one.unlearned - one.retrained
    return metrics


def _last(curves: Sequence[RelearnCurve]) -> float:
    return sum(curve.accuracies[-1] for curve in curves) / len(curves)


def _drawn(rows: Samples, most: int, draws: torch.Generator) -> Rows:
    picked = torch.randperm(len(rows), generator=draws)[:most].sort().values
    return Rows(rows, picked)


def _without(rows: Rows, gone: Rows) -> Rows:
    """The rows that are not among `gone`, which were picked from them."""
    kept = torch.ones(len(rows), dtype=torch.bool)
    kept[gone.rows] = False
    return Rows(rows, kept.nonzero()[:, 0])
