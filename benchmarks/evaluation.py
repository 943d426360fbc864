"""What judging a model costs, beside one epoch of training it on the same data (S6: at most 1).

    python benchmarks/evaluation.py
    UNLEARN_DATA=/path/to/data python benchmarks/evaluation.py --tasks digits fashion cifar10 --out FILE

What the stages `evaluate` and `attack` do between loading and drawing is timed as they do it: one forward pass of every
model over every set, accuracies, divergences, controls, the search for rows that are there twice, the outputs written
and read again, and the membership attacks. Beside it an epoch of the recipe that the network was trained by, on all
training rows. Both are CPU times of the process over all threads, the better of some rounds, in turn; drawing the
figures is shown apart: it costs the same second for ten rows and for a million. Lines of JSON go to --out, or to
standard output.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported

import numpy as np
import torch
from datasets import npz_of
from torch import nn

from unlearning.data.manifest import Manifest
from unlearning.data.overlap import overlap
from unlearning.data.samples import Rows
from unlearning.data.selection import ForgetRequest, select
from unlearning.data.sources import make_manifest, open_samples
from unlearning.metrics.classification import Outputs
from unlearning.models.architectures import build
from unlearning.models.bundle import ModelCard
from unlearning.training import Recipe, build_seeded, generator, predict, train
from unlearning_components.evaluations import attacked, drawn, measured
from unlearning_components.handover import read_outputs, write_outputs
from unlearning_components.surroundings import some_of


@dataclass(frozen=True)
class Task:
    """A data set, a network and how it is trained."""

    source: str
    network: str
    arguments: dict[str, Any]
    batch: int
    rows: int = 0
    """Training rows that are used; 0: all."""


TASKS = {
    "digits": Task("digits", "lenet5", {}, 64),
    "fashion": Task("fashion", "lenet5", {}, 256),
    "fashion-allcnn": Task("fashion", "allcnn", {"width": 0.25}, 256, 20_000),
    "cifar10": Task("cifar10", "resnet20", {}, 128, 20_000),
}


def clocked(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of the process, and what came of the work."""
    began = time.process_time()
    made = work()
    return time.process_time() - began, made


def manifest_of(task: Task, folder: Path) -> Manifest:
    """The data set's manifest."""
    return make_manifest(task.source if task.source == "digits" else f"npz:{npz_of(task.source, folder)}")


def measure(
    name: str, task: Task, manifest: Manifest, request: str, rounds: int, folder: Path, *, reference: bool
) -> dict[str, Any]:
    """One line; the models' outputs are kept in the folder."""
    samples, card = open_samples(manifest), manifest.card
    column = manifest.table["sample_id"].to_pylist()
    ids = (card.classes[3],) if request == "class" else tuple(column[row] for row in manifest.rows("train")[::20])
    chosen = select(manifest, ForgetRequest(request, ids), seed=0)  # type: ignore[arg-type]
    test = np.concatenate([chosen.holdout_forget, chosen.holdout_retain])
    retain, gone = chosen.retain, chosen.forget
    if task.rows:  # the same share of every set
        share = task.rows / (len(retain) + len(gone))
        retain, gone, test = (rows[:: round(1 / share)] for rows in (retain, gone, test))
    unseen = {
        "forget.test": np.intersect1d(test, chosen.holdout_forget),
        "retain.test": np.intersect1d(test, chosen.holdout_retain),
    }
    numbers = {"forget.train": gone, "retain.train": some_of(retain), **unseen}
    sets = {key: Rows(samples, torch.from_numpy(rows)) for key, rows in numbers.items() if len(rows)}
    everything = Rows(samples, torch.from_numpy(np.sort(np.concatenate([retain, gone]))))
    shape = card.input_shape
    original = build_seeded(
        lambda: build(task.network, task.arguments, input_shape=shape, outputs=len(card.classes)), 0
    )
    recipe = Recipe(epochs=1, learning_rate=0.001, batch_size=task.batch)
    models: dict[str, nn.Module] = {"original": original, "unlearned": copy.deepcopy(original)}
    if reference:
        models["retrained"] = copy.deepcopy(original)
    with torch.no_grad():
        for seed, model in enumerate(list(models.values())[1:]):
            for weight in model.parameters():
                weight += 0.01 * torch.randn(weight.shape, generator=generator(seed, "moved"))
    described = ModelCard(
        architecture=task.network, arguments=task.arguments, input_shape=shape, outputs=10, classes=card.classes
    )

    answers = folder / "answers"

    def outputs() -> dict[str, dict[str, Outputs]]:
        return {
            model: {key: Outputs(logits=predict(network, rows), targets=rows.targets) for key, rows in sets.items()}
            for model, network in models.items()
        }

    def evaluation() -> Any:
        made = outputs()
        write_outputs(made, str(answers), task=described.task, levels=())
        found = measured(made, card=described, data=card, forget_classes=chosen.forget_classes, models=models)
        overlap(samples, gone, retain, test)
        return found

    def attack() -> Any:
        made, task_of, levels = read_outputs(str(answers))
        return attacked(made, task=task_of, levels=levels, seed=0)

    best: dict[str, float] = {}
    for _ in range(rounds):
        learner = copy.deepcopy(original)
        spent = {
            "epoch": clocked(lambda learner=learner: train(learner, everything, recipe, generator=generator(0, "e")))[
                0
            ],
            "predict": clocked(outputs)[0],
            "overlap": clocked(lambda: overlap(samples, gone, retain, test))[0],
        }
        spent["evaluate"], found = clocked(evaluation)
        spent["attack"] = clocked(attack)[0]
        spent["figures"] = clocked(lambda found=found: drawn(found))[0]
        best = {key: min(value, best.get(key, value)) for key, value in spent.items()}
    judged = best["evaluate"] + best["attack"]
    return {
        "row": "S6",
        "task": f"{name} {task.network}, {request}{', with a reference' if reference else ''}",
        "rows": len(everything),
        "held_out": len(test),
        "ratio": round(judged / best["epoch"], 3),
        "seconds_epoch": round(best["epoch"], 3),
        "seconds_evaluation": round(judged, 3),
        **{f"seconds_{key}": round(value, 3) for key, value in best.items() if key not in ("epoch",)},
    }


def main() -> None:
    """Every task, without and with a retrained model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=["digits"])
    parser.add_argument("--requests", nargs="+", choices=("class", "sample"), default=["class", "sample"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, help="training rows of the larger data sets")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.tasks:
            task = TASKS[name]
            if task.rows and options.rows:
                task = replace(task, rows=options.rows)
            manifest = manifest_of(task, Path(folder))
            for request in options.requests:
                for reference in (False, True):
                    lines.append(
                        measure(name, task, manifest, request, options.rounds, Path(folder), reference=reference)
                    )
                    print(json.dumps(lines[-1]), flush=True)
    if options.out:
        options.out.write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
