"""How time grows: with forgotten classes, rows to forget, training rows and parameters; the exponents of the fits.

    OMP_NUM_THREADS=1 python benchmarks/growth.py

An exponent is the slope of log time over log size: 1 is linear, 0 is flat. Given is the larger of the slope through all
sizes and of that between the last two, which a constant part flattens less. Nothing should be above 1 by more than the
noise of the fit; updates of noise, and those of impairing and repairing with bounded retain rows, should be flat in the
number of classes. CPU seconds of whole methods, or counts of updates where these decide.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from bench import line
from torch import nn

from unlearning.data.samples import Rows, TensorSamples
from unlearning.data.selection import ForgetRequest, select
from unlearning.data.sources import make_manifest
from unlearning.methods import METHODS, Facts
from unlearning.methods.apply import unlearn
from unlearning.methods.task import Task
from unlearning.training import Recipe, build_seeded, generator, predict, train

FEATURES = 16


def slope(sizes: list[float], values: list[float]) -> float:
    """Of log value over log size, by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(np.maximum(values, 1e-9)), 1)[0])


def network(outputs: int, hidden: int = 16) -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def samples(rows: int, classes: int) -> TensorSamples:
    inputs = torch.randn((rows, FEATURES), generator=torch.Generator().manual_seed(0))
    return TensorSamples(inputs, torch.arange(rows) % classes, mean=[0.0], std=[1.0])


def task(data: TensorSamples, forget: torch.Tensor, classes: tuple[int, ...], outputs: int) -> Task:
    chosen = torch.zeros(len(data), dtype=torch.bool).index_fill(0, forget, True)
    return Task(
        input_shape=(FEATURES,),
        outputs=outputs,
        forget_classes=classes,
        blank=lambda seed: build_seeded(lambda: network(outputs), seed),
        forget=Rows(data, chosen.nonzero()[:, 0]),
        retain=Rows(data, (~chosen).nonzero()[:, 0]),
    )


def fit(what: str, sizes: list[int], values: list[float], target: float | None, **more: Any) -> dict[str, Any]:
    floats = [float(size) for size in sizes]
    shown = {"sizes": sizes, "values": [round(value, 5) for value in values]}
    steepest = max(slope(floats, values), slope(floats[-2:], values[-2:]))
    return line("growth", what, steepest, target, **shown, **more)


def classes(quick: bool) -> Iterator[dict[str, Any]]:
    """Forgotten classes K of 100: updates and time of UNSIR, retain rows bounded as a pipeline bounds them."""
    sizes = [1, 5, 20] if quick else [1, 5, 10, 20, 50]
    data, model = samples(10_000, 100), network(100).eval()
    unlearn(model, task(data, torch.arange(9), (0,), 100), name="unsir", settings={"noise_batch": 16}, seed=0)
    taken: dict[str, list[float]] = {"synthesize": [], "impair": [], "repair": [], "seconds": []}
    for count in sizes:
        phases: dict[str, float] = dict.fromkeys(taken, 0.0)

        def progress(phase: str, *_: object, phases: dict[str, float] = phases) -> None:
            phases[phase] += 1

        given = task(data, (data.targets < count).nonzero()[:, 0], tuple(range(count)), 100)
        began = time.process_time()
        unlearn(model, given, name="unsir", settings={"noise_batch": 16}, seed=0, progress=progress)
        phases["seconds"] = time.process_time() - began
        for name, values in taken.items():
            values.append(phases[name])
    for name, values in taken.items():
        what = "CPU seconds" if name == "seconds" else f"updates of {name}"
        target = 1.1 if name == "seconds" else 0.05
        yield fit(f"unsir, {what} in forgotten classes", sizes, values, target, method="unsir")


def forget_rows(quick: bool) -> Iterator[dict[str, Any]]:
    """Rows to forget, of which the method makes one pass beside a bounded share of the others."""
    sizes = [100, 1_000] if quick else [100, 1_000, 10_000, 100_000]
    for method in ("amnesiac", "negative_gradient_plus"):
        values = []
        for count in sizes:
            data = samples(2 * count, 10)
            given = task(data, torch.arange(count), (), 10)
            began = time.process_time()
            settings = {"epochs": 1, "batch_size": 50}
            unlearn(network(10).eval(), given, name=method, settings=settings, seed=0)
            values.append(time.process_time() - began)
        yield fit(f"{method}, CPU seconds in rows to forget", sizes, values, 1.1, method=method)


def training_rows(quick: bool) -> Iterator[dict[str, Any]]:
    """Rows of the data set: an epoch, predictions, and the choice of rows from a manifest."""
    sizes = [1_000, 10_000] if quick else [1_000, 10_000, 100_000, 1_000_000]
    epochs, passes = [], []
    for count in sizes:
        data, model = samples(count, 10), network(10)
        began = time.process_time()
        train(model, data, Recipe(epochs=1, batch_size=250), generator=generator(0, "order"))
        epochs.append(time.process_time() - began)
        began = time.process_time()
        predict(model, data)
        passes.append(time.process_time() - began)
    yield fit("an epoch, CPU seconds in training rows", sizes, epochs, 1.1)
    yield fit("predictions, CPU seconds in rows", sizes, passes, 1.1)


def manifests(quick: bool) -> Iterator[dict[str, Any]]:
    """Rows of a manifest: made of an npz file, and a class selected."""
    import tempfile

    sizes = [1_000, 10_000] if quick else [1_000, 10_000, 100_000]
    made, chosen = [], []
    make_manifest("digits")  # imports
    with tempfile.TemporaryDirectory() as folder:
        for count in sizes:
            path = Path(folder, f"{count}.npz")
            np.savez(path, inputs=np.zeros((count, 2), dtype=np.float32), targets=np.arange(count) % 10)
            began = time.process_time()
            manifest = make_manifest(f"npz:{path}")
            made.append(time.process_time() - began)
            began = time.process_time()
            select(manifest, ForgetRequest(kind="class", ids=("3",)), retain_per_class=0, seed=0)
            chosen.append(time.process_time() - began)
    yield fit("a manifest, CPU seconds in rows", sizes, made, 1.1)
    yield fit("a selection, CPU seconds in rows", sizes, chosen, 1.1)


def parameters(quick: bool) -> Iterator[dict[str, Any]]:
    """Parameters: an update of training, and one of noise."""
    widths = [64, 256, 1024] if quick else [64, 256, 1024, 4096]
    sizes, steps, noises = [], [], []
    row = METHODS["unsir"]
    facts = Facts(retain_rows=256, retain_per_class=25, input_size=FEATURES, forget_classes=1)
    config = row.configure({"noise_batch": 64, "noise_steps": 4}, facts)
    for hidden in widths:
        model = nn.Sequential(
            nn.Linear(FEATURES, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 10)
        )
        sizes.append(sum(parameter.numel() for parameter in model.parameters()))
        data = samples(512, 10)
        train(model, data, Recipe(epochs=1, batch_size=64), generator=generator(0, "order"))
        began = time.process_time()
        train(model, data, Recipe(epochs=1, batch_size=64), generator=generator(0, "order"))
        steps.append((time.process_time() - began) / 8)
        began = time.process_time()
        row.stage("synthesize")(
            model, input_shape=(FEATURES,), forget_classes=[0], config=config, generator=generator(0, "synthesize")
        )
        noises.append((time.process_time() - began) / 4)
    yield fit("an update, CPU seconds in parameters", sizes, steps, 1.1)
    yield fit("an update of noise, CPU seconds in parameters", sizes, noises, 1.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    texts = []
    warm = samples(200, 2)
    unlearn(network(2).eval(), task(warm, torch.arange(100), (), 2), name="amnesiac", seed=0)
    for measure in (classes, forget_rows, training_rows, manifests, parameters):
        for one in measure(asked.quick):
            texts.append(json.dumps(one))
            print(texts[-1], flush=True)
    if asked.out:
        asked.out.write_text("\n".join(texts) + "\n")


if __name__ == "__main__":
    main()
