"""Values forgotten: a band of targets, people or a period, beside a network that never saw them.

    UNLEARN_DATA=... python benchmarks/regression.py abalone --seeds 3
    UNLEARN_DATA=... python benchmarks/regression.py parkinsons --methods original,retrained,blindspot

`abalone`: rings from body measures; the young ones, of 6 rings or fewer, are forgotten. `parkinsons`: a symptom score
from a voice recording; five of 42 patients. `california`: the median price of a district's houses, in 100,000 USD; the
cheap ones, below 1.0. `stsb`: how alike two sentences are, from 0 to 5, by a recurrent network; scores below 2. `ett`:
three quantiles of a transformer's temperature, in units of 10 degrees, in each of the next 12 hours; July and August
2016. Each is an end of its range, or people, as in arXiv:2210.08196: a network without the middle of a range would
still answer it right, by what it knows on either side, and there would be nothing to forget.

What to look for is the retrained network's row, not the largest error. `forget`, `forget_test` and `test` are mean
absolute errors on the forgotten training rows, on held-out rows of the same kind and on all other held-out rows; `w1`
is the distance of the predictions on forgotten rows from the retrained network's, and `auc` the residual attack's on
forgotten rows against held-out ones of the same kind. "retrained again" is a second retrained network: as close as one
can be expected to come. Seconds are of the processor, not of the clock.

One JSON line per run goes to standard output and, with --out, to a file. Two tables come last: the means over seeds,
and how far each variant is from the retrained network, seed by seed, with the standard error of that mean.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import re
import statistics
import sys
import time
import zlib
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


WORDS = 4096
"""Places of words: a word's is its checksum, so that no vocabulary is learned from data."""


class Likeness(nn.Module):
    """Two sentences, (B, 2, T) places of words, through one recurrent layer; then what differs and what agrees."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 32, padding_idx=0)
        self.memory = nn.GRU(32, 48, batch_first=True)
        self.hidden = nn.Sequential(nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
        self.last = nn.Linear(32, 1)

    def forward(self, pairs: Tensor) -> Tensor:
        first, second = (self.memory(self.words(pairs[:, place].long()))[0][:, -1] for place in range(2))
        score: Tensor = self.last(self.hidden(torch.cat([(first - second).abs(), first * second], 1)))
        return score


def stsb(length: int = 12) -> Data:
    """The published training pairs; those for development and test together are held out."""

    def places(sentence: str) -> list[int]:
        found = [1 + zlib.crc32(word.encode()) % (WORDS - 1) for word in re.findall(r"[a-z0-9']+", sentence.lower())]
        return [0] * (length - len(found[:length])) + found[:length]

    pairs, scores, counts = [], [], []
    for part in ("train", "dev", "test"):
        text = (data_folder() / "regression" / "stsb" / f"sts-{part}.csv").read_text(encoding="utf-8")
        rows = [line.split("\t") for line in text.splitlines() if line]
        pairs += [[places(row[5]), places(row[6])] for row in rows]
        scores += [float(row[4]) for row in rows]
        counts.append(len(rows))
    targets = torch.tensor(scores)
    return Data(
        samples=TensorSamples(torch.tensor(pairs, dtype=torch.float32), targets, mean=[0.0], std=[1.0]),
        train=torch.arange(counts[0]),
        test=torch.arange(counts[0], len(scores)),
        gone=targets < 2,
        network=Likeness,
        outputs=1,
        recipe=Recipe(epochs=12, learning_rate=5e-3, batch_size=64, loss="mse"),
    )


QUANTILES = (0.1, 0.5, 0.9)
SEEN, AHEAD, EVERY = 48, 12, 4
"""Hours that a window shows, hours to foretell, and hours from one window to the next."""


class Forecast(nn.Module):
    """The three quantiles of every hour ahead, (B, AHEAD * 3), from (B, SEEN, 7)."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.GRU(7, 32, batch_first=True)
        self.hidden = nn.Sequential(nn.Linear(32, 64), nn.ReLU())
        self.last = nn.Linear(64, AHEAD * len(QUANTILES))

    def forward(self, hours: Tensor) -> Tensor:
        quantiles: Tensor = self.last(self.hidden(self.memory(hours)[0][:, -1]))
        return quantiles


def ett() -> Data:
    """Windows lie within one week, so that none of the held-out weeks, every fifth, shares an hour with others."""
    _, rows = table("ett/ETTh1.csv", header=True)
    hours = torch.tensor([[float(value) for value in row[1:]] for row in rows])
    months = [row[0][:7] for row in rows]
    week = 7 * 24
    starts = [
        first + hour
        for first in range(0, len(rows) - week + 1, week)
        for hour in range(0, week - SEEN - AHEAD + 1, EVERY)
    ]
    held_out = torch.tensor([start // week % 5 == 4 for start in starts])
    std, mean = torch.std_mean(hours, 0)
    inputs = torch.stack([(hours[start : start + SEEN] - mean) / std for start in starts])
    targets = torch.stack([hours[start + SEEN : start + SEEN + AHEAD, -1] for start in starts])
    return Data(
        samples=TensorSamples(inputs, targets / 10, mean=[0.0], std=[1.0]),
        train=torch.where(~held_out)[0],
        test=torch.where(held_out)[0],
        gone=torch.tensor([months[start] in ("2016-07", "2016-08") for start in starts]),
        network=Forecast,
        outputs=AHEAD * len(QUANTILES),
        recipe=Recipe(epochs=20, learning_rate=5e-3, batch_size=64, loss="quantile", quantiles=QUANTILES),
    )


TASKS: dict[str, Callable[[], Data]] = {
    "abalone": abalone,
    "parkinsons": parkinsons,
    "california": california,
    "stsb": stsb,
    "ett": ett,
}


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
        began = time.process_time()
        original = blank(seed)
        train(original, Rows(data.samples, data.train), data.recipe, generator=generator(seed, "train"))
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
            found = {**figures(model, reference, task, held_out, data, seed), "seconds": seconds}
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
