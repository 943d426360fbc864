"""Every public function of metrics and attacks: inputs for it, and which laws its result obeys."""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from unlearning.attacks.inversion import InversionConfig, inversion_score, invert, total_variation
from unlearning.attacks.lira import Audit, audit_by_shadow, audit_curve, leave_one_out, lira_scores, phi, taught
from unlearning.attacks.membership import (
    add_gaps,
    balanced_entropy_attack,
    called_by_svc,
    cross_entropy,
    doubt,
    entropy,
    entropy_attack,
    membership_attacks,
    population_attack,
    statistics,
)
from unlearning.attacks.probe import probe_attack
from unlearning.attacks.prototype import prototype_attack, prototypes
from unlearning.attacks.relearning import few_shots, relearning_attack
from unlearning.attacks.residual import (
    absolute_residuals,
    published_residual_attack,
    residual_attack,
    residual_attacks,
)
from unlearning.attacks.rmia import rmia_scores
from unlearning.attacks.update import update_attack, update_attack_on_values
from unlearning.data.samples import TensorSamples
from unlearning.metrics.accuracy import (
    accuracy,
    balanced_accuracy,
    checked,
    confusion,
    per_class_accuracy,
    prediction_distribution,
)
from unlearning.metrics.calibration import (
    brier_score,
    confidence_histogram,
    expected_calibration_error,
    negative_log_likelihood,
)
from unlearning.metrics.change import diagnose
from unlearning.metrics.classification import Outputs, check_sets, compare_classifiers, weights_changed
from unlearning.metrics.distance import layer_distances
from unlearning.metrics.divergence import activation_distance, jensen_shannon, legacy_zrf, zero_retrain_forgetting
from unlearning.metrics.features import features, output_layer
from unlearning.metrics.intervals import (
    auc_difference_interval,
    auc_gap_error,
    auc_interval,
    gap_to,
    mean_difference_interval,
    paired_interval,
    seed_interval,
)
from unlearning.metrics.prediction import neighbour_shift
from unlearning.metrics.regression import (
    coverage,
    crossing_share,
    error_by_bin,
    ks_residuals,
    mae,
    mse,
    pinball,
    relative_difference,
    rmse,
    skill,
    wasserstein,
)
from unlearning.metrics.regressors import compare_regressors
from unlearning.metrics.relearning import (
    RelearnConfig,
    RelearnCurve,
    anamnesis_index,
    area_between,
    relearn,
    relearn_time,
)

Inputs = dict[str, Any]
Random = np.random.Generator


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One function under test.

    Attributes:
        function: It.
        make: Keyword arguments from a generator, a number of rows and a number of classes.
        rows: Arguments whose rows belong together, group by group.
        order: What another order of the rows of a group does: nothing ("same"), it moves the values with the rows
            ("moves"), or, by a seed's draw or a name, something else (None).
        classes: Arguments that hold logits and arguments that hold class indices, where the names of the classes do
            not matter to `named`.
        named: The part of the result that depends neither on the names of the classes nor on the order of rows.
        mirror: Two arguments that may change places, and what that does: nothing, the sign turns, 1 less the value.
        bounds: Values of a result with the bounds that each must keep.
        empty: What no rows are: an error or an empty result.
        broken: What NaN in a value is: an error, or handed on to whoever counts it.
    """

    function: Callable[..., Any]
    make: Callable[[Random, int, int], Inputs]
    rows: tuple[tuple[str, ...], ...] = ()
    order: Literal["same", "moves"] | None = None
    classes: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    named: Callable[[Any], Any] = lambda found: found
    mirror: tuple[str, str, Literal["same", "sign", "one"]] | None = None
    bounds: Callable[[Any, Inputs], list[tuple[float, float, float]]] = lambda found, given: []
    empty: Literal["refused", "empty"] | None = "refused"
    broken: Literal["refused", "passes"] | None = "refused"

    @property
    def name(self) -> str:
        """Where it is and what it is called."""
        return f"{self.function.__module__.removeprefix('unlearning.')}.{self.function.__name__}"


def logits(rng: Random, rows: int, classes: int) -> Tensor:
    """Of all sizes, with ties now and then."""
    values = rng.normal(size=(rows, classes)) * 10 ** rng.uniform(-1, 1.5)
    return torch.from_numpy(values.round(int(rng.integers(0, 4)))).float()


def targets(rng: Random, rows: int, classes: int) -> Tensor:
    return torch.from_numpy(rng.integers(0, classes, rows))


def values(rng: Random, rows: int) -> np.ndarray[Any, Any]:
    """As of losses: >= 0, with ties now and then."""
    return np.abs(rng.normal(size=rows)).round(int(rng.integers(1, 8)))


def labelled(rng: Random, rows: int, classes: int) -> Inputs:
    return {"logits": logits(rng, rows, classes), "targets": targets(rng, rows, classes)}


def two_logits(one: str, other: str) -> Callable[[Random, int, int], Inputs]:
    return lambda rng, rows, classes: {one: logits(rng, rows, classes), other: logits(rng, rows, classes)}


def two_sides(one: str, other: str, **more: Any) -> Callable[[Random, int, int], Inputs]:
    return lambda rng, rows, classes: {one: values(rng, rows), other: values(rng, rows + 1), **more}


def two_values(one: str, other: str) -> Callable[[Random, int, int], Inputs]:
    return lambda rng, rows, classes: {one: values(rng, rows), other: values(rng, rows)}


def three_sides(one: str, two: str, three: str) -> Callable[[Random, int, int], Inputs]:
    return lambda rng, rows, classes: {
        one: values(rng, rows + 2),
        two: values(rng, rows + 1),
        three: values(rng, rows),
        "seed": 3,
    }


def counts(rng: Random, rows: int, classes: int) -> Inputs:
    return {"counts": confusion(**labelled(rng, rows, classes), classes=classes)}


def outputs(rng: Random, rows: int, classes: int, *, values_of: bool = False) -> dict[str, dict[str, Outputs]]:
    """Three models on all sets; a regressor's are single values."""
    found: dict[str, dict[str, Outputs]] = {"original": {}, "unlearned": {}, "retrained": {}}
    for place, name in enumerate(("forget.train", "retain.train", "forget.test", "retain.test")):
        wanted = torch.from_numpy(values(rng, rows + place)) if values_of else targets(rng, rows + place, classes)
        for sets in found.values():
            single = torch.from_numpy(values(rng, rows + place))[:, None]
            answers = single if values_of else logits(rng, rows + place, classes)
            sets[name] = Outputs(logits=answers.float(), targets=wanted.float() if values_of else wanted)
    return found


def network(classes: int) -> nn.Module:
    """Small, with everything that a careless caller could change: BatchNorm's buffers, dropout, a frozen layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(classes)
        model = nn.Sequential(
            nn.Conv2d(1, 3, 3, bias=False),
            nn.BatchNorm2d(3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(3 * 9, classes),
        )
    model[0].requires_grad_(False)
    model[4].eval()  # the others train
    return model


def images(rng: Random, rows: int, classes: int) -> TensorSamples:
    inputs = torch.from_numpy(rng.normal(size=(rows, 1, 5, 5))).float()
    return TensorSamples(inputs, targets(rng, rows, classes), mean=(0.0,), std=(1.0,))


def states(rng: Random) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    shapes = {"conv.weight": (3, 2), "conv.bias": (3,), "head.weight": (4, 3)}
    one, other = ({k: torch.from_numpy(rng.normal(size=s)) for k, s in shapes.items()} for _ in range(2))
    return one, other


def curve(rng: Random, looks: int) -> RelearnCurve:
    known = tuple(np.sort(rng.uniform(0, 1, looks)).round(2).tolist())
    return RelearnCurve(updates=tuple(range(looks)), accuracies=known, losses=tuple(1 - one for one in known))


def audit(rng: Random, rows: int) -> Audit:
    found = Audit(seed=2, rows=max(rows, 2), planned=8, confidences={})
    for shadow in range(8):
        found = found.with_shadow(shadow, values(rng, max(rows, 2)))
    return found


def gaps(rng: Random, rows: int) -> Inputs:
    sides = {
        "loss": {model: (values(rng, rows), values(rng, rows)) for model in ("original", "unlearned", "retrained")}
    }
    metrics = {
        f"membership_auc.loss.forget.{model}": population_attack(*sides["loss"][model]).auc for model in sides["loss"]
    }
    return {"metrics": metrics, "sides": sides}


def gapped(metrics: dict[str, float], sides: Any) -> dict[str, float]:
    """`add_gaps` adds to what it is given; that is its result."""
    errors: dict[str, float] = {}
    metrics = dict(metrics)
    add_gaps(metrics, errors, sides)
    return metrics | errors


gapped.__module__, gapped.__name__ = add_gaps.__module__, add_gaps.__name__


def whole(low: float, high: float) -> Callable[[Any, Inputs], list[tuple[float, float, float]]]:
    """Bounds of every number of a result."""
    return lambda found, given: [(value, low, high) for value in np.asarray(found, dtype=float).ravel()]


def named(**ends: tuple[float, float]) -> Callable[[Any, Inputs], list[tuple[float, float, float]]]:
    """Bounds of attributes, for single values and for tuples of them."""
    return lambda found, given: [
        (float(value), *limits)
        for name, limits in ends.items()
        for value in np.atleast_1d(np.array(getattr(found, name), dtype=float))
    ]


INF = float("inf")
UNIT = whole(0, 1)
ROC = named(
    auc=(0, 1),
    tpr_at_1_percent_fpr=(0, 1),
    tpr_at_tenth_percent_fpr=(0, 1),
    reversed_tpr_at_1_percent_fpr=(0, 1),
    told=(0.5, 1),
    auc_standard_error=(0, 1),
    false_positive_rates=(0, 1),
    true_positive_rates=(0, 1),
)
BOTH = (("logits",), ("targets",))
LABELLED = (("logits", "targets"),)
DRAWS = {"seed": 1, "draws": 20}
RELEARN = RelearnConfig(updates=3, batch_size=4)


def report_bounds(found: Any, given: Inputs) -> list[tuple[float, float, float]]:
    shares = ("accuracy.", "share", "divergence.", "auc.", "tpr_", "_attack.", "residual_ks")
    signed = ("drop", "gap", "seen_gap")
    ends = [(value, -1.0, 1.0) for name, value in found.metrics.items() if any(part in name for part in signed)]
    ends += [
        (value, 0.0, 1.0)
        for name, value in found.metrics.items()
        if any(part in name for part in shares) and not any(part in name for part in signed)
    ]
    return ends + [(value, 0.0, INF) for value in found.standard_errors.values()]


MEASURES = (
    Measure(function=accuracy, make=labelled, rows=LABELLED, order="same", classes=BOTH, bounds=UNIT),
    Measure(
        function=confusion,
        make=lambda rng, rows, classes: {**labelled(rng, rows, classes), "classes": classes},
        rows=LABELLED,
        order="same",
        bounds=lambda found, given: [(float(found.sum()), len(given["logits"]), len(given["logits"]))],
    ),
    Measure(function=per_class_accuracy, make=counts, bounds=lambda f, _: [(v, 0, 1) for v in f if v is not None]),
    Measure(
        function=prediction_distribution,
        make=lambda rng, rows, classes: {"logits": logits(rng, rows, classes), "classes": classes},
        rows=(("logits",),),
        order="same",
        bounds=lambda found, given: [(float(found.sum()), 1 - 1e-9, 1 + 1e-9), *UNIT(found, given)],
    ),
    Measure(function=balanced_accuracy, make=counts, bounds=UNIT),
    Measure(function=checked, make=labelled, rows=LABELLED, order="same"),
    Measure(function=expected_calibration_error, make=labelled, rows=LABELLED, order="same", classes=BOTH, bounds=UNIT),
    Measure(function=brier_score, make=labelled, rows=LABELLED, order="same", classes=BOTH, bounds=whole(0, 2)),
    Measure(
        function=negative_log_likelihood, make=labelled, rows=LABELLED, order="same", classes=BOTH, bounds=whole(0, INF)
    ),
    Measure(
        function=confidence_histogram,
        make=labelled,
        rows=LABELLED,
        order="same",
        classes=BOTH,
        bounds=lambda found, given: [(sum(found.rows), len(given["logits"]), len(given["logits"]))],
    ),
    Measure(
        function=diagnose,
        make=lambda rng, rows, classes: {
            **dict(zip(("original", "unlearned"), states(rng), strict=True)),
            "head": "head",
            **dict(zip(("before", "after", "reference"), outputs(rng, rows, classes).values(), strict=True)),
        },
        rows=(("before", "after", "reference"),),
        order="same",
        broken=None,
        empty=None,
    ),
    Measure(
        function=compare_classifiers,
        make=lambda rng, rows, classes: {
            "models": outputs(rng, rows, classes),
            "classes": [f"class {c}" for c in range(classes)],
            "forget_classes": [],
        },
        rows=(("models",),),
        order="same",
        classes=(("models",), ("models",)),
        named=lambda found: (found.metrics, found.standard_errors),
        bounds=report_bounds,
    ),
    Measure(
        function=check_sets,
        make=lambda rng, rows, classes: {"models": outputs(rng, rows, classes)},
        empty=None,
        broken=None,
    ),
    Measure(
        function=weights_changed,
        make=lambda rng, rows, classes: dict(zip(("original", "unlearned"), states(rng), strict=True)),
        bounds=whole(0, INF),
        broken=None,
    ),
    Measure(
        function=layer_distances,
        make=lambda rng, rows, classes: dict(zip(("reference", "other"), states(rng), strict=True)),
        bounds=lambda found, given: (
            [(one.distance, 0, INF) for one in found] + [(one.relative, 0, INF) for one in found]
        ),
    ),
    Measure(
        function=jensen_shannon,
        make=two_logits("logits", "others"),
        rows=(("logits", "others"),),
        order="moves",
        classes=(("logits", "others"), ()),
        mirror=("logits", "others", "same"),
        bounds=UNIT,
    ),
    Measure(
        function=zero_retrain_forgetting,
        make=lambda rng, rows, classes: {
            "logits": logits(rng, rows, classes),
            "incompetent": [logits(rng, rows, classes), logits(rng, rows, classes)],
        },
        rows=(("logits", "incompetent"),),
        order="same",
        classes=(("logits", "incompetent"), ()),
        bounds=named(mean=(0, 1), spread=(0, 1), each=(0, 1)),
    ),
    Measure(
        function=legacy_zrf,
        make=two_logits("logits", "incompetent"),
        rows=(("logits", "incompetent"),),
        order="same",
        classes=(("logits", "incompetent"), ()),
        mirror=("logits", "incompetent", "same"),
        bounds=whole(-INF, 1),
    ),
    Measure(
        function=activation_distance,
        make=two_logits("logits", "others"),
        rows=(("logits", "others"),),
        order="same",
        classes=(("logits", "others"), ()),
        mirror=("logits", "others", "same"),
        bounds=whole(0, 2**0.5),
    ),
    Measure(
        function=output_layer,
        make=lambda rng, rows, classes: {
            "model": network(classes),
            "example": torch.from_numpy(rng.normal(size=(rows, 1, 5, 5))).float(),
        },
        empty=None,
        broken=None,
    ),
    Measure(
        function=features,
        make=lambda rng, rows, classes: {"model": network(classes), "samples": images(rng, rows, classes)},
        rows=(("samples",),),
        order="moves",
        broken="passes",
    ),
    Measure(
        function=auc_interval,
        make=two_sides("members", "non_members", **DRAWS),
        rows=(("members",), ("non_members",)),
        bounds=named(value=(0, 1), low=(0, 1), high=(0, 1)),
    ),
    Measure(
        function=auc_difference_interval,
        make=lambda rng, rows, classes: {
            "one": (values(rng, rows), values(rng, rows + 1)),
            "other": (values(rng, rows), values(rng, rows + 1)),
            **DRAWS,
        },
        mirror=("one", "other", "sign"),
        bounds=named(value=(-1, 1), low=(-1, 1), high=(-1, 1)),
    ),
    Measure(
        function=auc_gap_error,
        make=lambda rng, rows, classes: {
            "one": (values(rng, rows), values(rng, rows + 1)),
            "other": (values(rng, rows), values(rng, rows + 1)),
        },
        mirror=("one", "other", "same"),
        bounds=whole(0, INF),
    ),
    Measure(
        function=mean_difference_interval,
        make=two_sides("one", "other", **DRAWS),
        rows=(("one",), ("other",)),
    ),
    Measure(
        function=paired_interval,
        make=lambda rng, rows, classes: {"differences": values(rng, rows), **DRAWS},
        rows=(("differences",),),
    ),
    Measure(
        function=seed_interval,
        make=lambda rng, rows, classes: {"values": values(rng, rows + 1)},
        rows=(("values",),),
        order="same",
    ),
    Measure(
        function=gap_to,
        make=lambda rng, rows, classes: {"value": 0.3, "references": values(rng, rows), "rows_error": 0.1},
        rows=(("references",),),
        order="same",
        bounds=lambda found, given: [(found[1], 0.1, INF)],
    ),
    Measure(
        function=neighbour_shift,
        make=two_logits("unlearned", "reference"),
        rows=(("unlearned", "reference"),),
        order="same",
        classes=(("unlearned", "reference"), ()),
        named=lambda found: (
            found.total_variation,
            found.divergence,
            found.disagreement,
            found.top_share,
            found.entropy,
        ),
        bounds=lambda found, given: [
            (found.total_variation, 0, found.disagreement + 1e-12),
            (found.divergence, 0, 1),
            (found.disagreement, 0, 1),
            (found.top_share, 1e-12, 1),
            (found.entropy, 0, float(np.log2(given["unlearned"].shape[1])) + 1e-9),
            (sum(found.unlearned), 1 - 1e-9, 1 + 1e-9),
        ],
    ),
    *(
        Measure(
            function=function,
            make=two_values("predictions", "targets"),
            rows=(("predictions", "targets"),),
            order="same",
            mirror=("predictions", "targets", "same"),
            bounds=whole(0, INF),
        )
        for function in (mae, mse, rmse)
    ),
    Measure(
        function=skill,
        make=two_values("predictions", "targets"),
        rows=(("predictions", "targets"),),
        order="same",
        bounds=UNIT,
    ),
    Measure(
        function=wasserstein,
        make=two_sides("first", "second"),
        rows=(("first",), ("second",)),
        order="same",
        mirror=("first", "second", "same"),
        bounds=whole(0, INF),
    ),
    Measure(
        function=ks_residuals,
        make=two_sides("first", "second"),
        rows=(("first",), ("second",)),
        order="same",
        mirror=("first", "second", "same"),
        bounds=named(statistic=(0, 1), p=(0, 1)),
    ),
    Measure(
        function=error_by_bin,
        make=lambda rng, rows, classes: {
            **two_values("targets", "predictions")(rng, rows, classes),
            "edges": [0.0, 1.0, 9.0],
        },
        rows=(("targets", "predictions"),),
        order="same",
        bounds=lambda found, given: [(sum(one.count for one in found), len(given["targets"]), len(given["targets"]))],
    ),
    Measure(
        function=pinball,
        make=lambda rng, rows, classes: {
            "predictions": rng.normal(size=(rows, 2)),
            "targets": values(rng, rows),
            "quantiles": (0.1, 0.5),
        },
        rows=(("predictions", "targets"),),
        order="same",
        bounds=lambda found, given: [(value, 0, INF) for value in found.values()],
    ),
    Measure(
        function=coverage,
        make=lambda rng, rows, classes: {
            "predictions": rng.normal(size=(rows, 2)),
            "targets": values(rng, rows),
            "quantiles": (0.1, 0.5),
        },
        rows=(("predictions", "targets"),),
        order="same",
        bounds=lambda found, given: [(value, 0, 1) for value in found.values()],
    ),
    Measure(
        function=crossing_share,
        make=lambda rng, rows, classes: {"predictions": rng.normal(size=(rows, 3))},
        rows=(("predictions",),),
        order="same",
        bounds=UNIT,
    ),
    Measure(
        function=relative_difference,
        make=lambda rng, rows, classes: {
            **two_values("predictions", "reference")(rng, rows, classes),
            "targets": 1 + values(rng, rows),
        },
        rows=(("predictions", "reference", "targets"),),
        order="moves",
        mirror=("predictions", "reference", "same"),
        bounds=whole(0, INF),
    ),
    Measure(
        function=compare_regressors,
        make=lambda rng, rows, classes: {"models": outputs(rng, rows, classes, values_of=True)},
        rows=(("models",),),
        order="same",
        named=lambda found: (found.metrics, found.standard_errors),
        bounds=lambda found, given: [
            (value, 0, INF) for name, value in found.metrics.items() if "_mae" in name or "_rmse" in name
        ],
    ),
    Measure(
        function=relearn,
        make=lambda rng, rows, classes: {
            "model": network(classes),
            "samples": images(rng, rows + 1, classes),
            "watched": images(rng, rows, classes),
            "config": RELEARN,
            "seed": 1,
        },
        rows=(("watched",),),
        order="same",
        bounds=named(accuracies=(0, 1), losses=(0, INF)),
    ),
    Measure(
        function=relearn_time,
        make=lambda rng, rows, classes: {"curve": curve(rng, rows), "target": 0.5},
        bounds=named(low=(1, INF), high=(1, INF)),
        empty=None,
        broken=None,
    ),
    Measure(
        function=anamnesis_index,
        make=lambda rng, rows, classes: {
            "unlearned": curve(rng, rows),
            "retrained": curve(rng, rows),
            "original_accuracy": 0.8,
        },
        bounds=named(low=(0, INF), high=(0, INF), target=(0, 1)),
        empty=None,
        broken=None,
    ),
    Measure(
        function=area_between,
        make=lambda rng, rows, classes: {"curve": curve(rng, rows + 1), "reference": curve(rng, rows + 1)},
        mirror=("curve", "reference", "sign"),
        bounds=whole(-1, 1),
        empty=None,
        broken=None,
    ),
    Measure(
        function=total_variation,
        make=lambda rng, rows, classes: {"images": torch.from_numpy(rng.normal(size=(rows, 2, 3, 4)))},
        rows=(("images",),),
        order="moves",
        bounds=whole(0, INF),
        empty="empty",
        broken="passes",
    ),
    Measure(
        function=invert,
        make=lambda rng, rows, classes: {
            "model": network(classes),
            "classes": list(range(min(rows, classes))),
            "input_shape": (1, 5, 5),
            "config": InversionConfig(steps=2),
            "generator": 7,
        },
        broken=None,
    ),
    Measure(
        function=inversion_score,
        make=lambda rng, rows, classes: {
            "images": torch.from_numpy(rng.normal(size=(rows, 1, 3, 3))),
            "classes": targets(rng, rows, classes).tolist(),
            "logits": logits(rng, rows, classes),
            "class_means": torch.from_numpy(rng.normal(size=(rows, 1, 3, 3))),
        },
        rows=(("images", "classes", "logits", "class_means"),),
        order="moves",
        classes=(("logits",), ("classes",)),
        bounds=named(confidence=(0, 1), similarity=(-1, 1)),
    ),
    Measure(
        function=phi,
        make=lambda rng, rows, classes: {"losses": values(rng, rows)},
        rows=(("losses",),),
        order="moves",
        bounds=whole(-37, 37),
        empty="empty",
        broken="passes",
    ),
    Measure(function=taught, make=lambda rng, rows, classes: {"rows": rows + 1, "shadow": 3, "seed": 5}, empty=None),
    Measure(
        function=lira_scores,
        make=lambda rng, rows, classes: {"audit": audit(rng, rows), "losses": values(rng, max(rows, 2))},
        empty=None,
    ),
    Measure(
        function=leave_one_out, make=lambda rng, rows, classes: {"audit": audit(rng, rows)}, empty=None, broken=None
    ),
    Measure(
        function=audit_curve,
        make=lambda rng, rows, classes: {"audit": audit(rng, rows)},
        bounds=ROC,
        empty=None,
        broken=None,
    ),
    Measure(
        function=audit_by_shadow,
        make=lambda rng, rows, classes: {"audit": audit(rng, rows)},
        bounds=UNIT,
        empty=None,
        broken=None,
    ),
    Measure(
        function=entropy,
        make=lambda rng, rows, classes: {"logits": logits(rng, rows, classes)},
        rows=(("logits",),),
        order="moves",
        classes=(("logits",), ()),
        bounds=lambda found, given: [
            (value, -1e-12, float(np.log(given["logits"].shape[1])) + 1e-9) for value in found
        ],
        empty="empty",
        broken="passes",
    ),
    Measure(
        function=cross_entropy,
        make=labelled,
        rows=LABELLED,
        order="moves",
        classes=BOTH,
        bounds=whole(0, INF),
        empty="empty",
        broken="passes",
    ),
    Measure(
        function=doubt,
        make=lambda rng, rows, classes: {"logits": logits(rng, rows, classes)},
        rows=(("logits",),),
        order="moves",
        classes=(("logits",), ()),
        bounds=lambda found, given: [(value, 0, 1 - 1 / given["logits"].shape[1] + 1e-9) for value in found],
        empty="empty",
        broken="passes",
    ),
    Measure(
        function=population_attack,
        make=two_sides("members", "non_members"),
        rows=(("members",), ("non_members",)),
        order="same",
        bounds=ROC,
    ),
    Measure(
        function=entropy_attack,
        make=three_sides("retain", "holdout", "forget"),
        rows=(("retain",), ("holdout",), ("forget",)),
        bounds=UNIT,
    ),
    Measure(
        function=balanced_entropy_attack,
        make=three_sides("retain", "holdout", "forget"),
        rows=(("retain",), ("holdout",), ("forget",)),
        bounds=named(called=(0, 1), accuracy=(0, 1)),
    ),
    Measure(
        function=gapped,
        make=lambda rng, rows, classes: gaps(rng, rows),
        bounds=lambda found, given: [(value, -1, 1) for name, value in found.items() if "_gap" in name],
        empty=None,
        broken=None,
    ),
    Measure(
        function=membership_attacks,
        make=lambda rng, rows, classes: {"models": outputs(rng, rows, classes), "seed": 1},
        rows=(("models",),),
        classes=(("models",), ("models",)),
        named=lambda found: {name: value for name, value in found.metrics.items() if "membership" in name},
        bounds=report_bounds,
    ),
    Measure(
        function=probe_attack,
        make=lambda rng, rows, classes: {
            "forget": torch.from_numpy(rng.normal(size=(rows + 3, 2))),
            "rest": torch.from_numpy(rng.normal(size=(rows + 4, 2))),
            "seed": 1,
        },
        rows=(("forget",), ("rest",)),
        bounds=named(auc=(0, 1), standard_error=(0, 1)),
    ),
    Measure(
        function=prototypes,
        make=lambda rng, rows, classes: {
            "features": torch.from_numpy(rng.normal(size=(rows, 3))),
            "targets": targets(rng, rows, classes),
            "classes": classes,
        },
        rows=(("features", "targets"),),
        order="same",
    ),
    Measure(
        function=prototype_attack,
        make=lambda rng, rows, classes: {
            "shots": torch.from_numpy(rng.normal(size=(classes, 3))),
            "shot_targets": torch.arange(classes),
            "features": torch.from_numpy(rng.normal(size=(rows + classes, 3))),
            "targets": torch.cat([torch.arange(classes), targets(rng, rows, classes)]),
            "classes": classes,
            "forget_classes": (0,),
        },
        rows=(("shots", "shot_targets"), ("features", "targets")),
        order="same",
        bounds=named(forget_accuracy=(0, 1)),
    ),
    Measure(
        function=relearning_attack,
        make=lambda rng, rows, classes: {
            "unlearned": network(classes),
            "reference": network(classes + 0),
            "samples": images(rng, rows + 1, classes),
            "watched": images(rng, rows, classes),
            "config": RELEARN,
            "seeds": (1, 2),
        },
        rows=(("watched",),),
        order="same",
        mirror=("unlearned", "reference", "sign"),
        named=lambda found: (found.area, found.final),
        bounds=named(area=(-1, 1), final=(-1, 1), area_spread=(0, 2)),
    ),
    Measure(
        function=few_shots,
        make=lambda rng, rows, classes: {"samples": images(rng, rows, classes), "shots": 1, "draws": 7},
        rows=(("samples",),),
        broken=None,
    ),
    Measure(
        function=absolute_residuals,
        make=lambda rng, rows, classes: {
            "predictions": torch.from_numpy(values(rng, rows)),
            "targets": torch.from_numpy(values(rng, rows)),
        },
        rows=(("predictions", "targets"),),
        order="moves",
        mirror=("predictions", "targets", "same"),
        bounds=whole(0, INF),
        broken="passes",
    ),
    Measure(
        function=residual_attack,
        make=two_sides("forget", "unseen"),
        rows=(("forget",), ("unseen",)),
        order="same",
        bounds=ROC,
    ),
    Measure(
        function=published_residual_attack,
        make=three_sides("retain", "holdout", "forget"),
        rows=(("retain",), ("holdout",), ("forget",)),
        bounds=UNIT,
    ),
    Measure(
        function=residual_attacks,
        make=lambda rng, rows, classes: {"models": outputs(rng, rows, classes, values_of=True), "seed": 1},
        rows=(("models",),),
        bounds=report_bounds,
    ),
    Measure(
        function=rmia_scores,
        make=lambda rng, rows, classes: {
            "losses": values(rng, rows),
            "population": values(rng, rows + 1),
            "references": np.abs(rng.normal(size=(2, rows))),
            "population_references": np.abs(rng.normal(size=(2, rows + 1))),
        },
        bounds=UNIT,
        empty=None,
    ),
    Measure(
        function=update_attack,
        make=lambda rng, rows, classes: {
            "before_forget": logits(rng, rows, classes),
            "after_forget": logits(rng, rows, classes),
            "forget_targets": targets(rng, rows, classes),
            "before_unseen": logits(rng, rows + 1, classes),
            "after_unseen": logits(rng, rows + 1, classes),
            "unseen_targets": targets(rng, rows + 1, classes),
        },
        rows=(
            ("before_forget", "after_forget", "forget_targets"),
            ("before_unseen", "after_unseen", "unseen_targets"),
        ),
        order="same",  # but not by other names of classes: sums in another order make or break ties
        bounds=lambda found, given: [end for roc in found.values() for end in ROC(roc, given)],
    ),
    Measure(
        function=update_attack_on_values,
        make=lambda rng, rows, classes: (
            {
                f"{when}_{which}": torch.from_numpy(rng.normal(size=rows + more))
                for which, more in (("forget", 0), ("unseen", 1))
                for when in ("before", "after")
            }
            | {
                "forget_targets": torch.from_numpy(rng.normal(size=rows)),
                "unseen_targets": torch.from_numpy(rng.normal(size=rows + 1)),
            }
        ),
        rows=(
            ("before_forget", "after_forget", "forget_targets"),
            ("before_unseen", "after_unseen", "unseen_targets"),
        ),
        order="same",
        bounds=lambda found, given: [end for roc in found.values() for end in ROC(roc, given)],
    ),
    Measure(
        function=called_by_svc,
        make=lambda rng, rows, classes: {
            "values": values(rng, 2 * rows + 2),
            "member": np.arange(2 * rows + 2) % 2,
            "asked": values(rng, rows),
        },
        rows=(("asked",),),
        order="same",
        bounds=UNIT,
    ),
    Measure(
        function=statistics,
        make=lambda rng, rows, classes: {
            "outputs": Outputs(logits=logits(rng, rows, classes), targets=targets(rng, rows, classes))
        },
        bounds=lambda found, given: [(one, 0, INF) for side in found.values() for one in side],
        empty=None,
        broken=None,
    ),
)


def called(measure: Measure, given: Inputs) -> Any:
    """The result on inputs as they are; a number in place of a generator seeds a fresh one."""
    fresh = {
        name: torch.Generator().manual_seed(one)
        if name in ("generator", "draws") and measure.function in (invert, few_shots)
        else one
        for name, one in given.items()
    }
    return measure.function(**fresh)


def plain(found: Any) -> Any:
    """A result as nested lists, numbers and words, for comparison."""
    if isinstance(found, TensorSamples) or type(found).__name__ == "Rows":
        return plain(found.batch(torch.arange(len(found))))
    if is_dataclass(found) and not isinstance(found, type):
        return {one.name: plain(getattr(found, one.name)) for one in fields(found)}
    if isinstance(found, Tensor):
        return found.detach().tolist()
    if isinstance(found, np.ndarray | np.generic):
        return found.tolist()
    if isinstance(found, Mapping):
        return {str(name): plain(one) for name, one in found.items()}
    if isinstance(found, list | tuple):
        return [plain(one) for one in found]
    return found


def reordered(value: Any, order: Callable[[int], Any]) -> Any:
    """A value with its rows in another order; `order` gives the one for so many rows, always the same."""
    if isinstance(value, TensorSamples):
        rows = torch.as_tensor(order(len(value)))
        return TensorSamples(value.inputs[rows], value.targets[rows], mean=(0.0,), std=(1.0,))
    if isinstance(value, Outputs):
        return Outputs(logits=reordered(value.logits, order), targets=reordered(value.targets, order))
    if isinstance(value, Mapping):
        return {name: reordered(one, order) for name, one in value.items()}
    if isinstance(value, list | tuple):
        if value and isinstance(value[0], Tensor):
            return [reordered(one, order) for one in value]
        return [value[place] for place in order(len(value))]
    return value[order(len(value))]


def renamed(value: Any, names: Tensor, *, logits: bool) -> Any:
    """Logits with their columns, or targets with their classes, under other names."""
    if isinstance(value, Outputs):
        return Outputs(
            logits=renamed(value.logits, names, logits=True), targets=renamed(value.targets, names, logits=False)
        )
    if isinstance(value, Mapping):
        return {name: renamed(one, names, logits=logits) for name, one in value.items()}
    if isinstance(value, list | tuple):
        if value and not isinstance(value[0], Tensor):
            return [int(names.argsort()[one]) for one in value]
        return [renamed(one, names, logits=logits) for one in value]
    return value[:, names] if logits else names.argsort()[value]


def leaves(value: Any) -> Iterator[Tensor | np.ndarray[Any, Any]]:
    """All arrays that a value holds, models' parameters and buffers among them."""
    if isinstance(value, nn.Module):
        yield from (*value.parameters(), *value.buffers())
    elif isinstance(value, TensorSamples):
        yield from (value.inputs, value.targets)
    elif isinstance(value, Tensor | np.ndarray):
        yield value
    elif is_dataclass(value) and not isinstance(value, type):
        for one in fields(value):
            yield from leaves(getattr(value, one.name))
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from leaves(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from leaves(one)


def fingerprint(value: Any) -> Any:
    """Everything that a call could change in its inputs: bytes, modes, gradients, hooks, keys."""
    arrays = [
        (
            str(one.dtype),
            tuple(one.shape),
            bytes(np.asarray(one.detach().numpy() if isinstance(one, Tensor) else one).tobytes()),
        )
        for one in leaves(value)
    ]
    models = [one for one in value.values() if isinstance(one, nn.Module)]
    modes = [
        (name, module.training, len(module._forward_pre_hooks), len(module._forward_hooks), len(module._backward_hooks))
        for model in models
        for name, module in model.named_modules()
    ]
    grads = [(p.requires_grad, p.grad is None) for model in models for p in model.parameters()]
    plainly = {name: deepcopy(one) for name, one in value.items() if isinstance(one, int | float | str | list | tuple)}
    return arrays, modes, grads, plain(plainly), [sorted(one) for one in value.values() if isinstance(one, dict)]
