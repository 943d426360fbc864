"""How time and memory grow: with forgotten classes, rows to forget, training rows, parameters and models in a batch.

    OMP_NUM_THREADS=1 python benchmarks/growth.py

An exponent is the slope of log time over log size through all sizes: 1 is linear, 0 is flat. "last" beside it is the
slope between the last two, which a constant part flattens less. Nothing should be above 1 by more than the noise of the
fit; updates of noise, and those of impairing and repairing with bounded retain rows, should be flat in the number of
classes. CPU seconds of whole methods, or counts of updates where these decide. Memory is what the peak of the process
rises by while the work runs; Linux tells it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
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
    last = round(slope(floats[-2:], values[-2:]), 4)
    return line("growth", what, slope(floats, values), target, last=last, **shown, **more)


def measured(work: Callable[[], object]) -> tuple[float, float]:
    """CPU seconds, and MiB that the process's peak rose by."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew

    def held(name: str) -> int:
        found = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())
        return int(found[1]) if found else 0

    before, began = held("VmRSS"), time.process_time()
    work()
    return time.process_time() - began, max(8.0, (held("VmHWM") - before) / 1024)  # less is noise


def classes(quick: bool) -> Iterator[dict[str, Any]]:
    """Forgotten classes K of 100: updates and time of UNSIR, retain rows bounded as a pipeline bounds them."""
    sizes = [1, 5, 20] if quick else [1, 5, 10, 20, 50]
    data, model = samples(10_000, 100), network(100).eval()
    unlearn(model, task(data, torch.arange(9), (0,), 100), name="unsir", settings={"noise_batch": 16}, seed=0)
    taken: dict[str, list[float]] = {"synthesize": [], "impair": [], "repair": [], "CPU seconds": [], "peak MiB": []}
    for count in sizes:
        phases: dict[str, float] = dict.fromkeys(taken, 0.0)

        def progress(phase: str, *_: object, phases: dict[str, float] = phases) -> None:
            phases[phase] += 1

        given = task(data, (data.targets < count).nonzero()[:, 0], tuple(range(count)), 100)

        def work(given: Task = given, progress: Callable[..., None] = progress) -> None:
            unlearn(model, given, name="unsir", settings={"noise_batch": 16}, seed=0, progress=progress)

        phases["CPU seconds"], phases["peak MiB"] = measured(work)
        for name, values in taken.items():
            values.append(phases[name])
    for name, values in taken.items():
        what = name if " " in name else f"updates of {name}"
        target = 1.1 if " " in name else 0.05
        yield fit(f"unsir, {what} in forgotten classes", sizes, values, target, method="unsir")


def forget_rows(quick: bool) -> Iterator[dict[str, Any]]:
    """Rows to forget, of which the method makes one pass beside a bounded share of the others."""
    sizes = [100, 1_000] if quick else [100, 1_000, 10_000, 100_000]
    for method in ("amnesiac", "negative_gradient_plus"):
        found = []
        for count in sizes:
            data = samples(2 * count, 10)
            given = task(data, torch.arange(count), (), 10)
            settings = {"epochs": 1, "batch_size": 50}

            def work(given: Task = given, method: str = method, settings: dict[str, int] = settings) -> None:
                unlearn(network(10).eval(), given, name=method, settings=settings, seed=0)

            found.append(measured(work))
        for what, values in zip(("CPU seconds", "peak MiB"), zip(*found, strict=True), strict=True):
            yield fit(f"{method}, {what} in rows to forget", sizes, list(values), 1.1, method=method)


def training_rows(quick: bool) -> Iterator[dict[str, Any]]:
    """Rows of the data set: an epoch, predictions, and the choice of rows from a manifest."""
    sizes = [1_000, 10_000] if quick else [1_000, 10_000, 100_000, 1_000_000]
    found: dict[str, list[float]] = {}
    for count in sizes:
        data, model = samples(count, 10), network(10)
        recipe = Recipe(epochs=1, batch_size=250)
        works: dict[str, Callable[[], object]] = {
            "an epoch": lambda m=model, d=data, r=recipe: train(m, d, r, generator=generator(0, "order")),
            "predictions": lambda m=model, d=data: predict(m, d),
        }
        for name, work in works.items():
            for what, value in zip(("CPU seconds", "peak MiB"), measured(work), strict=True):
                found.setdefault(f"{name}, {what} in training rows", []).append(value)
    for name, values in found.items():
        yield fit(name, sizes, values, 1.1)


def manifests(quick: bool) -> Iterator[dict[str, Any]]:
    """Rows of a manifest: made of an npz file, and a class selected."""
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
    widths = [256, 1024] if quick else [256, 1024, 4096, 9216]
    sizes: list[int] = []
    found: dict[str, list[float]] = {}
    row = METHODS["unsir"]
    facts = Facts(retain_rows=256, retain_per_class=25, input_size=FEATURES, forget_classes=1)
    config = row.configure({"noise_batch": 64, "noise_steps": 4}, facts)
    for hidden in widths:
        model = nn.Sequential(
            nn.Linear(FEATURES, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 10)
        )
        sizes.append(sum(parameter.numel() for parameter in model.parameters()))
        data = samples(512, 10)

        def epoch(model: nn.Module = model, data: TensorSamples = data) -> None:
            train(model, data, Recipe(epochs=1, batch_size=64), generator=generator(0, "order"))

        def noise(model: nn.Module = model) -> None:
            row.stage("synthesize")(
                model, input_shape=(FEATURES,), forget_classes=[0], config=config, generator=generator(0, "synthesize")
            )

        epoch()
        for name, work, updates in (("an update", epoch, 8), ("an update of noise", noise, 4)):
            seconds, peak = measured(work)
            for what, value in (("CPU seconds", seconds / updates), ("peak MiB", peak)):
                found.setdefault(f"{name}, {what} in parameters", []).append(value)
    for name, values in found.items():
        yield fit(name, sizes, values, 1.1)


def models(quick: bool) -> Iterator[dict[str, Any]]:
    """Models with ten requests each in one ledger: planning, and serving all of them, a batch for each model."""
    from ledger import opened

    from unlearning.ledger.claims import claim, plan
    from unlearning.ledger.filing import file_requests
    from unlearning.ledger.promotion import Version, begin, confirm, settle
    from unlearning.ledger.requests import request_from

    sizes = [1, 4] if quick else [1, 4, 20, 100]
    found: dict[str, list[float]] = {}
    for count in sizes:
        with tempfile.TemporaryDirectory() as folder:
            ledger = opened(f"sqlite:///{folder}/ledger.db", Path(folder))
            ledger.upgrade()
            asked = {"controller": "shop", "kind": "subject", "submitted_at": "2026-01-01T00:00:00Z"}
            every = [
                request_from({**asked, "key": f"{name}-{number}", "ids": [f"{number}"], "model": f"model-{name}"})
                for name in range(count)
                for number in range(10)
            ]
            list(file_requests(ledger, every, actor="benchmark"))

            def serve(ledger: Any = ledger, count: int = count) -> None:
                for name in range(count):
                    held = claim(ledger, owner="benchmark", model=f"model-{name}")
                    begin(ledger, held, Version(f"{name:064x}", "", "1"))
                    confirm(ledger, held, f"{name:064x}")
                    settle(ledger, held, outcome="erased_exact", certificate="c" * 64)

            for what, work in (("a plan", lambda one=ledger: plan(one, model="model-0")), ("batches for all", serve)):
                seconds, peak = measured(work)
                found.setdefault(f"{what}, CPU seconds in models", []).append(seconds)
                found.setdefault(f"{what}, peak MiB in models", []).append(peak)
            ledger.close()
    for name, values in found.items():
        yield fit(name, sizes, values, 1.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    texts = []
    warm = samples(200, 2)
    unlearn(network(2).eval(), task(warm, torch.arange(100), (), 2), name="amnesiac", seed=0)
    for measure in (classes, forget_rows, training_rows, manifests, parameters, models):
        for one in measure(asked.quick):
            texts.append(json.dumps(one))
            print(texts[-1], flush=True)
    if asked.out:
        asked.out.write_text("\n".join(texts) + "\n")


if __name__ == "__main__":
    main()
