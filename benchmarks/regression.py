"""Values forgotten: a band of targets, people or a period, beside a network that never saw them.

    UNLEARN_DATA=... python benchmarks/regression.py abalone --seeds 3
    UNLEARN_DATA=... python benchmarks/regression.py parkinsons --methods original,retrained,blindspot

`abalone`: rings from body measures; the young ones, of 6 rings or fewer, are forgotten. `parkinsons`: a symptom score
from a voice recording; five of 42 patients. `california`: the median price of a district's houses, in 100,000 USD; the
cheap ones, below 1.0. `stsb`: how alike two sentences are, from 0 to 5, by a recurrent network; scores below 2. `ett`:
three quantiles of a transformer's temperature, in deviations, in each of the next 24 hours, by a Temporal Fusion
Transformer as published; July and August 2016, with every window that reads an hour of them. Each is an end of its
range, people, or a time, as in arXiv:2210.08196: a network without the middle of a range would still answer it right,
by what it knows on either side, and there would be nothing to forget.

What to look for is the retrained network's row, not the largest error. `forget`, `retain`, `forget_test` and `test` are
mean absolute errors on the forgotten and the other training rows, on held-out rows of the forgotten kind (of `ett`,
where there are none, on all held-out rows) and on the other held-out rows; `w1` is the distance of the predictions on
forgotten rows from the retrained network's, and `auc` the residual attack's on forgotten rows against those of
`forget_test`. "retrained again" is a second retrained network: as close as one can be expected to come. Seconds are of
the processor, not of the clock.

One JSON line per run goes to standard output and, with --out, to a file. Two tables come last: the means over seeds,
and how far each variant is from the retrained network, seed by seed, with the standard error of that mean.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import data_folder
from machine import machine
from torch import Tensor, nn

from unlearning.attacks.residual import absolute_residuals, published_residual_attack, residual_attack
from unlearning.config import as_plain
from unlearning.config import build as build_settings
from unlearning.data.card import DataCard
from unlearning.data.manifest import Manifest
from unlearning.data.samples import Rows, Samples
from unlearning.data.selection import ForgetRequest, select
from unlearning.data.sources import make_manifest, open_samples
from unlearning.data.splits import drawn_splits
from unlearning.losses import point as point_of
from unlearning.methods.apply import unlearn
from unlearning.methods.task import Task
from unlearning.metrics.regression import mae, rmse, wasserstein
from unlearning.models.architectures import build
from unlearning.models.starting_points import starting_point
from unlearning.training import Recipe, build_seeded, generator, predict, train

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "original": ("", {}),
    "retrained": ("retrain", {}),
    "retrained again": ("retrain", {}),
    "blindspot": ("blindspot", {}),
    "blindspot published": ("blindspot", {"preset": "paper"}),
    "gaussian": ("gaussian_amnesiac", {}),
    "gaussian published": ("gaussian_amnesiac", {"preset": "paper"}),
    "fine-tune": ("fine_tune", {}),
    "gradient ascent": ("gradient_ascent", {}),
    "NegGrad+": ("negative_gradient_plus", {}),
}
COLUMNS = ("forget", "retain", "forget_test", "test", "w1", "auc", "seconds")


PATIENTS = ("2", "11", "13", "34", "35")
"""Drawn at random, once."""


@dataclass(frozen=True)
class Setup:
    """A source, what of it is forgotten, and where its training differs from the starting point for such data.

    `mixed`: rows are held out whomever they are about; the source itself would hold out whole people.
    """

    source: str
    request: ForgetRequest
    mixed: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)


TASKS = {
    "abalone": Setup(
        "table:{data}/uci/abalone.csv?target=rings&names=sex,length,diameter,height,whole,shucked,viscera,shell,rings",
        ForgetRequest("target", (":7",)),
    ),
    "parkinsons": Setup(
        "table:{data}/uci/parkinsons_updrs.data?sep=tab&target=total_UPDRS&subject=subject#&drop=motor_UPDRS",
        ForgetRequest("subject", PATIENTS),
        mixed=True,
    ),
    "california": Setup(
        "table:{data}/california_housing/housing.csv?target=median_house_value&divide=100000",
        ForgetRequest("target", (":1",)),
    ),
    "stsb": Setup("pairs:{data}/stsb", ForgetRequest("target", (":2",))),
    "ett": Setup(
        "windows:{data}/ett/ETTh1.csv?target=OT&encoder=72&horizon=24&stride=6",
        ForgetRequest("period", ("2016-07-01/2016-09-01",)),
        arguments={"season": 0},
        recipe={"epochs": 8},
    ),
}


@dataclass(frozen=True)
class Data:
    """Samples, which of them are meant, and how the network is built and trained."""

    card: DataCard
    samples: Samples
    parts: dict[str, Rows]
    network: Callable[[], nn.Module]
    outputs: int
    recipe: Recipe


def opened(setup: Setup) -> Data:
    made = make_manifest(setup.source.format(data=data_folder() / "regression"))
    if setup.mixed:
        splits = drawn_splits(np.zeros(len(made), dtype=np.int64), 0.2, 0)
        place = made.table.column_names.index("split")
        made = Manifest(made.card, made.table.set_column(place, "split", pa.array(splits, type=pa.string())))
    chosen = select(made, setup.request, retain_per_class=0, seed=0)
    samples, point = open_samples(made), starting_point(made.card, len(made.rows("train")))
    arguments = {**point.arguments, **setup.arguments}
    unseen = chosen.holdout_retain
    rows = {
        "train": made.rows("train"),
        "forget": chosen.forget,
        "retain": chosen.retain,
        "forget_test": chosen.holdout_forget if len(chosen.holdout_forget) else unseen,
        "test": unseen,
    }
    return Data(
        card=made.card,
        samples=samples,
        parts={name: Rows(samples, torch.from_numpy(numbers)) for name, numbers in rows.items()},
        network=lambda: build(point.architecture, arguments, input_shape=made.card.input_shape, outputs=point.outputs),
        outputs=point.outputs,
        recipe=build_settings(Recipe, {**point.recipe, **setup.recipe}, what="recipe"),
    )


def predictions(model: nn.Module, rows: Samples, recipe: Recipe) -> Tensor:
    return point_of(predict(model, rows), recipe.quantiles)


def figures(model: nn.Module, reference: nn.Module, data: Data, seed: int) -> dict[str, Any]:
    parts = {name: rows for name, rows in data.parts.items() if name != "train"}
    found: dict[str, Any] = {}
    residuals = {}
    for name, rows in parts.items():
        answers = predictions(model, rows, data.recipe)
        found[name] = mae(answers, rows.targets)
        found[f"{name}_rmse"] = rmse(answers, rows.targets)
        residuals[name] = absolute_residuals(answers, rows.targets)
        if name == "forget":
            found["w1"] = wasserstein(answers, predictions(reference, rows, data.recipe))
    roc = residual_attack(residuals["forget"], residuals["forget_test"])
    published = published_residual_attack(residuals["retain"], residuals["test"], residuals["forget"], seed=seed)
    return {**found, "auc": roc.auc, "tpr_at_1_percent_fpr": roc.tpr_at_1_percent_fpr, "published_attack": published}


def tables(rows: dict[str, list[dict[str, Any]]]) -> None:
    """Print the means over seeds, and the differences from the retrained network of the same seed."""
    print("{:22}".format("variant") + "".join(f"{column:>14}" for column in COLUMNS))
    for variant, found in rows.items():
        means = (statistics.mean(one[column] for one in found) for column in COLUMNS)
        print(f"{variant:22}" + "".join(f"{mean:14.3f}" for mean in means))
    print("\nless the retrained network's")
    for variant, found in rows.items():
        if variant == "retrained" or "retrained" not in rows:
            continue
        line = f"{variant:22}"
        for column in COLUMNS[:-1]:
            gaps = [one[column] - other[column] for one, other in zip(found, rows["retrained"], strict=True)]
            error = statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else float("nan")
            line += f"{statistics.mean(gaps):+8.3f} {error:5.3f}"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", default=",".join(VARIANTS))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--settings", default="{}", help='JSON, by variant: {"blindspot": {"epochs": 5}}')
    asked = parser.parse_args()
    variants = asked.methods.split(",")
    if unknown := [variant for variant in variants if variant not in VARIANTS]:
        parser.error(f"unknown methods {', '.join(unknown)} (known: {', '.join(VARIANTS)})")
    data = opened(TASKS[asked.task])
    rows: dict[str, list[dict[str, Any]]] = {}
    lines: list[str] = []
    recipe = as_plain(data.recipe)
    for seed in range(asked.seeds):

        def blank(first: int) -> nn.Module:
            return build_seeded(data.network, first)

        task = Task(
            input_shape=data.card.input_shape,
            outputs=data.outputs,
            forget_classes=(),
            blank=blank,
            forget=data.parts["forget"],
            retain=data.parts["retain"],
            targets="values",
        )
        began = time.process_time()
        original = blank(seed)
        train(original, data.parts["train"], data.recipe, generator=generator(seed, "train"))
        trained = time.process_time() - began
        began = time.process_time()
        reference = unlearn(original, task, name="retrain", recipe=recipe, seed=seed).model
        retrained = time.process_time() - began
        for variant in variants:
            name, settings = VARIANTS[variant]
            settings = settings | json.loads(asked.settings).get(variant, {})
            notes: dict[str, Any] = {}
            if variant == "original":
                model, seconds = original, trained
            elif variant == "retrained":
                model, seconds = reference, retrained
            else:
                own = seed + 1000 if variant == "retrained again" else seed
                began = time.process_time()
                result = unlearn(original, task, name=name, settings=settings, recipe=recipe, seed=own)
                model, seconds = result.model, time.process_time() - began
                notes = {"settings": result.settings, **result.record.notes}
            found = {**figures(model, reference, data, seed), "seconds": seconds}
            rows.setdefault(variant, []).append(found)
            line = {"task": asked.task, "variant": variant, "seed": seed, **found, **notes}
            lines.append(json.dumps(line))
            print(lines[-1], flush=True)
    lines.append(json.dumps(machine()))
    print(lines[-1])
    tables(rows)
    if asked.out:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
