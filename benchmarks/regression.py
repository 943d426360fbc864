"""Values forgotten: a band of targets, people or a period, beside a network that never saw them.

    UNLEARN_DATA=... python benchmarks/regression.py abalone --seeds 3
    UNLEARN_DATA=... python benchmarks/regression.py parkinsons --methods original,retrained,blindspot

`abalone`: rings from body measures; the young ones, of 6 rings or fewer, are forgotten. `parkinsons`: a symptom score
from a voice recording; five of 42 patients. `california`: the median price of a district's houses, in 100,000 USD; the
cheap ones, below 1.0. A band at an end of the range, as in arXiv:2210.08196: a network without the middle of a range
would still answer it right, by what it knows on either side, and there would be nothing to forget.

What to look for is the retrained network's row, not the largest error. `forget`, `forget_test` and `test` are mean
absolute errors on the forgotten training rows, on held-out rows of the same kind and on all other held-out rows; `w1`
is the distance of the predictions on forgotten rows from the retrained network's, and `auc` the residual attack's on
forgotten rows against held-out ones of the same kind. "retrained again" is a second retrained network: as close as one
can be expected to come.

One JSON line per run goes to standard output and, with --out, to a file. Two tables come last: the means over seeds,
and how far each variant is from the retrained network, seed by seed, with the standard error of that mean.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import data_folder
from numpy.typing import NDArray
from torch import Tensor, nn

from unlearning.attacks.residual import absolute_residuals, published_residual_attack, residual_attack
from unlearning.config import as_plain
from unlearning.data.samples import Rows, Samples, TensorSamples
from unlearning.losses import point
from unlearning.methods.apply import unlearn
from unlearning.methods.task import Task
from unlearning.metrics.regression import mae, rmse, wasserstein
from unlearning.models.architectures import build
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
COLUMNS = ("forget", "forget_test", "test", "w1", "auc", "seconds")


@dataclass(frozen=True)
class Data:
    """Rows with values to predict; `gone` says of each row whether it is of the kind that is forgotten."""

    samples: TensorSamples
    train: Tensor
    test: Tensor
    gone: Tensor
    network: Callable[[], nn.Module]
    outputs: int
    recipe: Recipe

    @property
    def input_shape(self) -> tuple[int, ...]:
        return tuple(self.samples.inputs.shape[1:])


def table(path: str, *, header: bool, delimiter: str = ",") -> tuple[list[str], list[list[str]]]:
    with (data_folder() / "regression" / path).open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.reader(file, delimiter=delimiter) if row]
    return (rows[0], rows[1:]) if header else ([], rows)


def tabular(
    features: NDArray[np.float64], targets: NDArray[np.float64], gone: NDArray[np.bool_], **recipe: Any
) -> Data:
    """A fifth of the rows is held out; features are standardised by the others."""
    order = torch.randperm(len(targets), generator=generator(0, "split"))
    test, seen = order.split([len(order) // 5, len(order) - len(order) // 5])
    inputs = torch.from_numpy(features.astype(np.float32))
    std, mean = torch.std_mean(inputs[seen], 0)
    width = inputs.shape[1]
    return Data(
        samples=TensorSamples(
            inputs, torch.from_numpy(targets.astype(np.float32)), mean=mean.tolist(), std=std.clamp(min=1e-6).tolist()
        ),
        train=seen,
        test=test,
        gone=torch.from_numpy(gone),
        network=lambda: build("mlp", {"hidden": (128, 128)}, input_shape=(width,), outputs=1),
        outputs=1,
        recipe=Recipe(**{"epochs": 60, "learning_rate": 3e-3, "batch_size": 64, "loss": "l1", **recipe}),
    )


def abalone() -> Data:
    _, rows = table("uci/abalone.csv", header=False)
    sexes = np.array([[row[0] == sex for sex in "MFI"] for row in rows], dtype=np.float64)
    numbers = np.array([row[1:] for row in rows], dtype=np.float64)
    rings = numbers[:, -1]
    return tabular(np.hstack([sexes, numbers[:, :-1]]), rings, rings <= 6)


PATIENTS = 5


def parkinsons() -> Data:
    names, rows = table("uci/parkinsons_updrs.data", header=True, delimiter="\t")
    numbers = np.array(rows, dtype=np.float64)
    subject = numbers[:, names.index("subject#")].astype(np.int64)
    kept = [place for place, name in enumerate(names) if name not in ("subject#", "motor_UPDRS", "total_UPDRS")]
    gone = torch.randperm(subject.max(), generator=generator(0, "patients"))[:PATIENTS] + 1
    return tabular(numbers[:, kept], numbers[:, names.index("total_UPDRS")], np.isin(subject, gone.numpy()))


def california() -> Data:
    names, rows = table("california_housing/housing.csv", header=True)
    price = np.array([row[names.index("median_house_value")] for row in rows], dtype=np.float64) / 100_000
    kept = [place for place, name in enumerate(names) if name not in ("median_house_value", "ocean_proximity")]
    numbers = np.array([[row[place] or "nan" for place in kept] for row in rows], dtype=np.float64)
    numbers = np.where(np.isnan(numbers), np.nanmedian(numbers, axis=0), numbers)
    sea = np.array([row[names.index("ocean_proximity")] for row in rows])
    by_sea = np.stack([sea == kind for kind in np.unique(sea)], axis=1).astype(np.float64)
    return tabular(np.hstack([numbers, by_sea]), price, price < 1.0, epochs=30, batch_size=128)


TASKS: dict[str, Callable[[], Data]] = {"abalone": abalone, "parkinsons": parkinsons, "california": california}


def predictions(model: nn.Module, rows: Samples, recipe: Recipe) -> Tensor:
    return point(predict(model, rows), recipe.quantiles)


def figures(
    model: nn.Module, reference: nn.Module, task: Task, held_out: dict[str, Samples], data: Data, seed: int
) -> dict[str, Any]:
    parts = {"forget": task.forget, "retain": task.retain, **held_out}
    found: dict[str, Any] = {}
    residuals = {}
    for name, rows in parts.items():
        assert rows is not None
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
    data = TASKS[asked.task]()
    rows: dict[str, list[dict[str, Any]]] = {}
    lines: list[str] = []
    gone, gone_test = data.gone[data.train], data.gone[data.test]
    recipe = as_plain(data.recipe)
    for seed in range(asked.seeds):

        def blank(first: int) -> nn.Module:
            return build_seeded(data.network, first)

        task = Task(
            input_shape=data.input_shape,
            outputs=data.outputs,
            forget_classes=(),
            blank=blank,
            forget=Rows(data.samples, data.train[gone]),
            retain=Rows(data.samples, data.train[~gone]),
            targets="values",
        )
        held_out: dict[str, Samples] = {
            "forget_test": Rows(data.samples, data.test[gone_test]),
            "test": Rows(data.samples, data.test[~gone_test]),
        }
        began = time.perf_counter()
        original = blank(seed)
        train(original, Rows(data.samples, data.train), data.recipe, generator=generator(seed, "train"))
        trained = time.perf_counter() - began
        reference = unlearn(original, task, name="retrain", recipe=recipe, seed=seed)
        for variant in variants:
            name, settings = VARIANTS[variant]
            settings = settings | json.loads(asked.settings).get(variant, {})
            notes: dict[str, Any] = {}
            if variant == "original":
                model, seconds = original, trained
            elif variant == "retrained":
                model, seconds = reference.model, sum(reference.seconds.values())
            else:
                own = seed + 1000 if variant == "retrained again" else seed
                result = unlearn(original, task, name=name, settings=settings, recipe=recipe, seed=own)
                model, seconds = result.model, sum(result.seconds.values())
                notes = {"settings": result.settings, **result.record.notes}
            found = {**figures(model, reference.model, task, held_out, data, seed), "seconds": seconds}
            rows.setdefault(variant, []).append(found)
            line = {"task": asked.task, "variant": variant, "seed": seed, **found, **notes}
            lines.append(json.dumps(line))
            print(lines[-1], flush=True)
    machine = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "command": "python " + " ".join(sys.argv),
    }
    lines.append(json.dumps(machine))
    print(lines[-1])
    tables(rows)
    if asked.out:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
