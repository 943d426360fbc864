"""What makes the loops fast, one switch at a time: a training step before and after, in turn, and their ratio.

    OMP_NUM_THREADS=1 python benchmarks/loops.py
    OMP_NUM_THREADS=1 python benchmarks/loops.py --rows two

Rows "loops": CPU seconds; a value below 1 pays. Rows "two": wall seconds of two processes on a core each, beside one.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from bench import line, middle
from steps import Bench
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.functional import cross_entropy

from unlearning.data.samples import TensorSamples
from unlearning.methods.noise import learn_noise
from unlearning.passes import prepared
from unlearning.speed import Speed, using
from unlearning.training import predict

Work = Callable[[], object]


def in_turn(before: Work, after: Work, pairs: int, clock: Callable[[], float] = time.process_time) -> dict[str, Any]:
    """The ratio after / before, over pairs that alternate; the first of each is left out."""
    before(), after()
    ratios, first, second = [], [], []
    for _ in range(pairs):
        began = clock()
        before()
        half = clock()
        after()
        first.append(half - began)
        second.append(clock() - half)
        ratios.append(second[-1] / first[-1])
    value, spread = middle(ratios)
    return {
        "value": value,
        "spread": spread,
        "before_ms": round(1000 * middle(first)[0], 2),
        "after_ms": round(1000 * middle(second)[0], 2),
    }


def step(name: str, rows: int, speed: Speed, **adam: Any) -> Work:
    """A training step of the loop with these switches, on inputs in memory."""
    bench = Bench(name, 1)
    model, inputs, targets = bench.blank(1).train(), bench.images(rows), torch.arange(rows) % 10
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, **adam)
    stack = using(speed)
    stack.__enter__()
    context = prepared(model)
    run = context.__enter__()  # left open: what it does to the model holds for the step
    stack.__exit__(None, None, None)

    def work() -> None:
        optimiser.zero_grad(set_to_none=True)
        cross_entropy(run(inputs), targets).backward()
        optimiser.step()

    work.context = context  # type: ignore[attr-defined]
    return work


def noise(name: str, frozen: bool) -> Work:
    """A step of noise for two classes of 32 images: with frozen weights and in one batch, or not."""
    bench = Bench(name, 1)
    start, model = torch.randn(2, 32, *bench.shape), bench.original()
    classes = torch.tensor([0, 1])

    def ours() -> None:
        learn_noise(
            model, start, classes, maximise=True, penalty=0.1, steps=1,
            optimiser=lambda parts: torch.optim.Adam(parts, lr=0.1), chunk=1024,
        )  # fmt: skip

    def naive() -> None:
        for bank, label in zip(start, classes, strict=True):
            images = bank.clone().requires_grad_()
            adam = torch.optim.Adam([images], lr=0.1)
            penalty = 0.1 * images.flatten(1).square().sum(1).mean()
            loss = penalty - cross_entropy(model(images), label.expand(len(images)))
            model.zero_grad()
            loss.backward()  # of the weights, too
            adam.step()

    return ours if frozen else naive


def teacher(cached: bool) -> Work:
    """What three epochs of a teacher's answers cost: asked once and kept, or asked in every epoch."""
    bench = Bench("resnet20", 1)
    pixels = torch.randint(256, (64, *bench.shape), dtype=torch.uint8)
    samples = TensorSamples(pixels, torch.arange(64) % 10, mean=[0.5] * 3, std=[0.25] * 3)
    model = bench.original()

    def work() -> None:
        for _ in range(1 if cached else 3):
            predict(model, samples)

    return work


def inference(mode: Any) -> Work:
    """A forward pass of a teacher."""
    bench = Bench("resnet20", 1)
    model, inputs = bench.original(), bench.images(32)

    def work() -> None:
        with mode():
            model(inputs)

    return work


def shadows(rows: int, together: bool) -> Work:
    """A training step of eight small networks, as shadow models are: one after the other, or in one vmap."""
    bench = Bench("lenet5", 1)
    models, inputs, targets = [bench.blank(seed).train() for seed in range(8)], bench.images(rows), torch.arange(rows)
    targets = targets % 10
    if not together:
        adams = [torch.optim.Adam(model.parameters(), lr=1e-3) for model in models]

        def apart() -> None:
            for model, adam in zip(models, adams, strict=True):
                adam.zero_grad(set_to_none=True)
                cross_entropy(model(inputs), targets).backward()
                adam.step()

        return apart
    weights, buffers = stack_module_state(models)
    adam = torch.optim.Adam(weights.values(), lr=1e-3)
    every = vmap(lambda w, b: cross_entropy(functional_call(models[0], (w, b), (inputs,)), targets))

    def at_once() -> None:
        adam.zero_grad(set_to_none=True)
        every(weights, buffers).sum().backward()
        adam.step()

    return at_once


def predictions(last: bool) -> Work:
    """Predictions of the loop."""
    bench = Bench("resnet20", 1)
    model, pixels = bench.original(), torch.randint(256, (256, *bench.shape), dtype=torch.uint8)
    samples = TensorSamples(pixels, torch.arange(256) % 10, mean=[0.5] * 3, std=[0.25] * 3)

    def work() -> None:
        with using(Speed(channels_last=last)):
            predict(model, samples)

    return work


def batches(tensors: bool) -> Work:
    """An epoch over 4,096 images in memory: uint8 rows picked at once, or a sample at a time as a DataLoader asks."""
    pixels = torch.randint(256, (4096, 3, 32, 32), dtype=torch.uint8)
    samples = TensorSamples(pixels, torch.arange(4096) % 10, mean=[0.5] * 3, std=[0.25] * 3)
    mean, std = torch.full((3, 1, 1), 0.5), torch.full((3, 1, 1), 0.25)

    def ours() -> None:
        for rows in torch.randperm(4096).split(128):
            samples.batch(rows)

    def naive() -> None:
        for rows in torch.randperm(4096).split(128):
            torch.stack([(pixels[row] / 255 - mean) / std for row in rows.tolist()])

    return ours if tensors else naive


def loops(quick: bool) -> Iterator[dict[str, Any]]:
    """One line for each switch and each thing that the loops do."""
    pairs, plain = (3 if quick else 6), Speed(channels_last=False)
    networks = (("resnet20", 64),) if quick else (("lenet5", 256), ("allcnn", 64), ("resnet20", 64))
    for name, rows in networks:
        for what, changed, adam in (
            ("channels_last", {"channels_last": True}, {}),
            ("precision=bf16", {"precision": "bf16"}, {}),
            ("channels_last, precision=bf16", {"channels_last": True, "precision": "bf16"}, {}),
            ("checkpointing", {"checkpointing": True}, {}),
            ("Adam with foreach", {}, {"foreach": True}),
            ("Adam, fused", {}, {"fused": True}),
        ):
            after = step(name, rows, dataclasses.replace(plain, **changed), **adam)  # type: ignore[arg-type]
            found = in_turn(step(name, rows, plain), after, pairs)
            yield line("loops", what, found.pop("value"), None, network=name, **found)
    if not quick:
        began = time.perf_counter()
        compiled = step("resnet20", 64, dataclasses.replace(plain, compile=True))
        compiled()
        warm_up = time.perf_counter() - began
        found = in_turn(step("resnet20", 64, plain), compiled, pairs)
        yield line(
            "loops", "compile", found.pop("value"), None, network="resnet20", warm_up_s=round(warm_up, 1), **found
        )
    for what, before, after in (
        ("noise: frozen weights, classes in one batch", noise("resnet20", False), noise("resnet20", True)),
        ("teacher: answers kept for three epochs", teacher(False), teacher(True)),
        ("teacher: inference_mode, not gradients", inference(torch.enable_grad), inference(torch.inference_mode)),
        ("predictions: channels_last", predictions(False), predictions(True)),
        ("rows picked at once from uint8", batches(False), batches(True)),
    ):
        found = in_turn(before, after, pairs)
        yield line("loops", what, found.pop("value"), None, network="resnet20", **found)
    for rows in (16, 128):
        found = in_turn(shadows(rows, False), shadows(rows, True), pairs)
        what = f"eight shadow models in one vmap, {rows} rows"
        yield line("loops", what, found.pop("value"), None, network="lenet5", **found)


TWO = """
import sys, time, torch
sys.path.insert(0, sys.argv[1])
from steps import Bench
from unlearning.data.samples import TensorSamples
from unlearning.processes import joined, team
from unlearning.training import Recipe, generator, train
torch.set_num_threads(1)
with joined() as here:
    bench = Bench("resnet20", 1)
    pixels = torch.randint(256, (1024, *bench.shape), dtype=torch.uint8, generator=generator(0, "pixels"))
    rows = TensorSamples(pixels, torch.arange(1024) % 10, mean=[0.5] * 3, std=[0.25] * 3)
    model, times = bench.blank(1), []
    last = time.perf_counter()
    def progress(*_):
        global last
        now = time.perf_counter()
        times.append((now - last))
        last = time.perf_counter()
    train(model, rows, Recipe(epochs=1, batch_size=128), generator=generator(0, "order"), progress=progress)
    if here.rank == 0:
        print(sorted(times[1:])[len(times) // 2])
"""


def two(quick: bool) -> Iterator[dict[str, Any]]:
    """Wall seconds of a step on two processes / on one; 0.5 is the limit where both have a core to themselves."""
    ratios, ones, twos = [], [], []
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "two.py")
        program.write_text(TWO)
        words = [str(program), str(Path(__file__).parent)]
        for _ in range(1 if quick else 3):
            for command, times in (([sys.executable, *words], ones), ([*run, *words], twos)):
                said = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
                times.append(float(said.split()[-1]))
            ratios.append(twos[-1] / ones[-1])
    value, spread = middle(ratios)
    more = {"before_ms": round(1000 * middle(ones)[0], 1), "after_ms": round(1000 * middle(twos)[0], 1)}
    yield line("two", "a step on two processes / on one, wall", value, None, network="resnet20", spread=spread, **more)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="loops")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    texts = []
    for row in asked.rows.split(","):
        for one in {"loops": loops, "two": two}[row](asked.quick):
            texts.append(json.dumps(one))
            print(texts[-1], flush=True)
    if asked.out:
        asked.out.write_text("\n".join(texts) + "\n")


if __name__ == "__main__":
    main()
