"""What an update of every method costs, beside the bare step: forward, backward and Adam on tensors already in memory.

    OMP_NUM_THREADS=2 python benchmarks/steps.py
    OMP_NUM_THREADS=2 python benchmarks/steps.py --networks resnet20 --methods gated_transfer --rounds 20

Speed does not depend on values, so the data are synthetic: uint8 rows held in memory and read through `TensorSamples`,
as in a real run. Nothing is asserted; the table says what meets its target. The rows:

S1  an update / the passes that the method's formula needs. At most 1.10.
S2  an update of noise, of which only the inputs learn / a bare step on as many rows. At most 0.75.
S3  noise for three classes / three times that for one, at most 1; and the updates that impair and repair take.
S4  gated transfer: the forward passes of teacher and generator in a cycle, 2 and 2; a cycle / what its formula needs;
    and a cycle that asks generator, gate and teacher anew in each student step / ours (higher is better, no target).

How it is timed. A method's own stage runs, and its `progress` is where the watch is stopped: between two calls lies one
whole update, its batch, its schedule and whatever the method looks at. Inside each call, off the watch, the reference
runs once. So update and reference alternate in one process; the ratio of each such pair is taken, and the median of
these is shown with their quartiles. Times are CPU times of the process over all threads; the ratio of wall times is
kept beside. The first update of a stage is left out with the set-up before it: the figure is the slope. Idle threads
sleep (OMP_WAIT_POLICY=PASSIVE): those that spin would count as work.

One JSON line per row goes to standard output or, with --out, to a file; the table comes last.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax

import unlearning
from unlearning.data.samples import Rows, TensorSamples
from unlearning.methods import METHODS, Facts
from unlearning.methods.attention import attended_modules, attention_loss, attention_map
from unlearning.methods.gated_course import kd_loss, student_steps
from unlearning.methods.noise import Noise
from unlearning.methods.pseudo_images import PseudoGenerator, balance, barrier, gate, gated_batch
from unlearning.methods.task import Task
from unlearning.models.architectures import build
from unlearning.progress import Progress
from unlearning.speed import in_force, speed_from, using
from unlearning.training import build_seeded, generator

Work = Callable[[], object]
Stage = Callable[[Progress], object]
Line = tuple[str, str, dict[str, Any]]
CLASSES = 10
LONG = 100_000
"""Epochs, steps or cycles of a stage that ends when enough of it was timed."""
NETWORKS: dict[str, tuple[dict[str, Any], tuple[int, int, int], int, int]] = {
    "lenet5": ({}, (1, 28, 28), 256, 2),
    "allcnn": ({"width": 0.25}, (1, 28, 28), 64, 1),
    "resnet20": ({}, (3, 32, 32), 32, 1),
    "resnet18": ({"stem": "small"}, (3, 32, 32), 8, 1),
    "vit_small": ({}, (3, 32, 32), 32, 1),
}
"""Arguments, input shape, rows in a batch, and pairs in a round: the shorter a step, the more of them."""
NOTES = (
    "A step of LeNet-5 takes some twenty milliseconds of CPU time. There the work around it shows: picking and "
    "normalising 256 rows alone takes a quarter of one. The larger networks hide it.",
    "The bare step of LeNet-5 does without the gradient of its first convolution's input. Noise needs it, and it costs "
    "more than the gradients of the weights that are left out.",
    "update_faults and needed_faults in the JSON count pages of memory that the allocator had given back and the "
    "system supplied anew. Where only one side has thousands, the ratio is theirs, and differs from run to run.",
    "gradient_ascent and incompetent_teacher look at the model between updates to know when to stop. Those passes "
    'count as needed in "with looks"; "plain" in the JSON is the ratio to the training step alone.',
    "fisher takes no step. Its unit is a backward pass for each row and class, one row at a time, as published; "
    '"plain" is the ratio to the same passes over all rows of a batch together, which yields sums and no squares.',
    "Bare steps and forward passes are in the order of memory that the loops use: channels last, unless --speed says "
    "otherwise.",
)


class Enough(Exception):  # noqa: N818
    """Ends a stage of which enough updates were timed."""


def now() -> Tensor:
    """CPU seconds of all threads, wall seconds, pages of memory that the system had to supply."""
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    return torch.tensor([time.process_time(), time.perf_counter(), faults], dtype=torch.float64)


@dataclass(frozen=True)
class Took:
    """What work says of its own time, when not all of it counts."""

    time: Tensor


class Pairs:
    """Updates of a stage timed in turn with other work, by being called after each of them.

    Args:
        wanted: How many pairs.
        others: What to run before each update; its time is kept, or what it returns as `Took`.
        phase: Count updates of this phase only; None: of all.
    """

    def __init__(self, wanted: int, others: dict[str, Work], phase: str | None = None) -> None:
        self._wanted, self._others, self._phase = wanted, others, phase
        self._at = ""
        self._last: Tensor | None = None
        self._began = now()
        self.updates: list[Tensor] = []
        self.times: dict[str, list[Tensor]] = {name: [] for name in others}
        self.first = torch.zeros(3)

    def __call__(self, phase: str = "", done: int = 0, total: int = 0, loss: float = 0.0) -> None:
        reached = now()
        if self._phase not in (None, phase):
            return
        if phase != self._at:
            self._at, self._last, self.first = phase, None, reached - self._began
        if self._last is not None:
            self.updates.append(reached - self._last)
            if len(self.updates) == self._wanted:
                raise Enough
        for name, work in self._others.items():
            before = now()
            took = work()
            self.times[name].append(took.time if isinstance(took, Took) else now() - before)
        self._last = now()

    def of(self, stage: Stage, progress: Progress | None = None) -> Pairs:
        """Itself, after the stage has run with it as its `progress`, or with one that calls it."""
        gc.collect()
        self._began = now()
        try:
            stage(progress or self)
        except Enough:
            return self
        raise SystemExit(f"error: the stage ended after {len(self.updates)} of {self._wanted} updates")

    def line(
        self,
        needed: dict[str, float],
        *,
        target: float,
        formula: str,
        window: int = 1,
        plain: str | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        """The figures of one line.

        Args:
            needed: How many of which other work an update is to cost.
            target: Of the ratio.
            formula: What `needed` is, in words.
            window: Updates taken together, where not each does the same.
            plain: Other work that the ratio is also given to.
            more: Further entries.
        """
        updates = _windows(self.updates, window)
        passes = torch.stack([count * _windows(self.times[name], window) for name, count in needed.items()]).sum(0)
        ratios = updates / passes
        low, ratio, high = statistics.quantiles(ratios[:, 0].tolist(), n=4, method="inclusive")
        figures: dict[str, Any] = {
            "ratio": round(ratio, 3),
            "target": target,
            "met": ratio <= target,
            "spread": [round(low, 3), round(high, 3)],
            "wall_ratio": round(ratios[:, 1].median().item(), 3),
            "update_ms": _ms(updates),
            "needed_ms": _ms(passes),
            "update_faults": round(updates[:, 2].median().item()),
            "needed_faults": round(passes[:, 2].median().item()),
            "pairs": len(ratios),
            "formula": formula,
        }
        if plain is not None:
            figures["plain"] = round((updates / _windows(self.times[plain], window))[:, 0].median().item(), 3)
        return {**figures, **more}


def _windows(times: list[Tensor], window: int) -> Tensor:
    """Means of every so many, shape (N, 3)."""
    whole = len(times) // window * window
    return torch.stack(times[:whole]).view(-1, window, 3).mean(1)


def _ms(times: Tensor) -> float:
    return round(1000 * times[:, 0].median().item(), 3)


@dataclass(frozen=True)
class Bench:
    """A network with its synthetic data: 4 batches to forget, of class 0, and 16 to retain, of the others."""

    name: str
    pairs: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return NETWORKS[self.name][1]

    @property
    def batch(self) -> int:
        return NETWORKS[self.name][2]

    def blank(self, seed: int) -> nn.Module:
        arguments, shape, *_ = NETWORKS[self.name]
        return build_seeded(lambda: build(self.name, arguments, input_shape=shape, outputs=CLASSES), seed)

    def original(self) -> nn.Module:
        """A network to which class 0 is next to impossible, so that gates let everything pass."""
        model = self.blank(0)
        bias = [value for name, value in model.named_parameters() if name.endswith("bias") and len(value) == CLASSES]
        bias[-1].data[0] = -20.0
        return model.eval()

    def task(self) -> Task:
        size = self.batch
        draws = torch.Generator().manual_seed(0)
        pixels = torch.randint(256, (20 * size, *self.shape), generator=draws, dtype=torch.uint8)
        targets = torch.cat([torch.zeros(4 * size, dtype=torch.int64), 1 + torch.arange(16 * size) % (CLASSES - 1)])
        channels = self.shape[0]
        samples = TensorSamples(pixels, targets, mean=[0.5] * channels, std=[0.25] * channels)
        return Task(
            input_shape=self.shape,
            outputs=CLASSES,
            forget_classes=(0,),
            blank=self.blank,
            forget=Rows(samples, torch.arange(4 * size)),
            retain=Rows(samples, torch.arange(4 * size, 20 * size)),
            calibration=Rows(samples, torch.arange(4 * size)),
        )

    def images(self, rows: int) -> Tensor:
        return torch.randn(rows, *self.shape, generator=torch.Generator().manual_seed(rows))

    def ordered(self, rows: int) -> tuple[nn.Module, Tensor]:
        """A network and images in the order of memory that the loops use: the bare step is as fast as theirs."""
        model, images = self.blank(1), self.images(rows)
        if in_force().channels_last:
            model.to(memory_format=torch.channels_last)
            images = images.contiguous(memory_format=torch.channels_last)
        return model, images

    def step(self, rows: int) -> Work:
        """The bare step on so many rows."""
        model, inputs = self.ordered(rows)
        model.train()
        adam = torch.optim.Adam(model.parameters(), lr=1e-3)
        targets = torch.arange(rows) % CLASSES

        def run() -> None:
            adam.zero_grad(set_to_none=True)
            cross_entropy(model(inputs), targets).backward()
            adam.step()

        run()  # makes Adam's state
        return run

    def forward(self, rows: int) -> Work:
        """A forward pass in eval mode without gradients."""
        model, inputs = self.blank(1).eval(), self.images(rows)

        def run() -> None:
            with torch.inference_mode():
                model(inputs)

        return run

    def configure(self, method: str, settings: dict[str, Any]) -> Any:
        rows = 16 * self.batch
        facts = Facts(
            retain_rows=rows,
            retain_per_class=rows // (CLASSES - 1),
            input_size=torch.Size(self.shape).numel(),
            forget_classes=1,
        )
        return METHODS[method].configure(settings, facts)

    def stage(self, method: str, stage: str, settings: dict[str, Any], *given: Any, **named: Any) -> Stage:
        """A method's own stage on the original, ready to run with some `progress`."""
        config, run, original = self.configure(method, settings), METHODS[method].stage(stage), self.original()
        return lambda progress: run(
            original, *given, **named, config=config, generator=generator(0, stage), progress=progress
        )

    def timed(self, method: str, stage: str, settings: dict[str, Any], *given: Any, **named: Any) -> Pairs:
        """A stage's updates in turn with bare steps on as many rows as a batch has."""
        pairs = Pairs(self.pairs, {"step": self.step(self.batch)})
        return pairs.of(self.stage(method, stage, settings, *given, **named))


STEP = "forward, backward, Adam"


def plainly(method: str) -> Callable[[Bench], Iterator[Line]]:
    """Of a method whose formula takes one step a batch."""

    def lines(bench: Bench) -> Iterator[Line]:
        settings = {"epochs": LONG, "batch_size": bench.batch}
        pairs = bench.timed(method, "distill", settings, bench.task())
        yield "S1", "update", pairs.line({"step": 1}, target=1.10, formula=STEP)

    return lines


def unsir(bench: Bench) -> Iterator[Line]:
    size, retain = bench.batch, bench.task().retain
    noise = Noise(images=bench.images(size)[None], classes=torch.tensor([0]))
    settings = {"batch_size": size, "noise_images": 4 * size, "impair_epochs": LONG, "repair_epochs": LONG}
    for stage, given in (("impair", (noise, retain)), ("repair", (retain,))):
        pairs = bench.timed("unsir", stage, settings, *given)
        yield "S1", stage, pairs.line({"step": 1}, target=1.10, formula=STEP)
    yield from noises(bench, "unsir", "synthesize")


def emmn(bench: Bench) -> Iterator[Line]:
    size = bench.batch
    noise = Noise(
        images=bench.images(4 * size)[None],
        classes=torch.tensor([0]),
        proxies=bench.images(16 * size).view(8, 2 * size, *bench.shape),
        proxy_classes=torch.arange(1, 9),
    )
    settings = {"batch_size": size, "impair_epochs": LONG, "repair_epochs": LONG}
    for stage, given in (("impair", (noise,)), ("repair", ())):
        named = {} if given else {"noise": noise}
        pairs = bench.timed("emmn", stage, settings, *given, **named)
        yield "S1", stage, pairs.line({"step": 1}, target=1.10, formula=f"{STEP}; BatchNorm keeps its statistics")
    yield from noises(bench, "emmn", "synthesize forget noise")


def noises(bench: Bench, method: str, phase: str) -> Iterator[Line]:
    """S2 for one class, S3 for three."""
    settings = {"noise_batch": bench.batch, "noise_steps": LONG} | ({"proxy_batches": 1} if method == "emmn" else {})

    def synthesize(count: int) -> Stage:
        named = {"input_shape": bench.shape, "forget_classes": list(range(count))}
        return bench.stage(method, "synthesize", settings, **named)

    pairs = Pairs(bench.pairs, {"step": bench.step(bench.batch)}, phase).of(synthesize(1))
    formula = "forward, backward to the inputs, Adam on the inputs"
    yield "S2", "noise", pairs.line({"step": 1}, target=0.75, formula=formula)
    one = synthesize(1)
    pairs = Pairs(bench.pairs, {"one class": lambda: Took(Pairs(1, {}, phase).of(one).updates[0])}, phase).of(
        synthesize(3)
    )
    formula = "three times the update for one class"
    yield "S3", "noise, 3 classes", pairs.line({"one class": 3}, target=1.0, formula=formula)
    yield "S3", "updates, 3 classes", updates(method)


def updates(method: str) -> dict[str, Any]:
    """How many updates impair and repair take by default, for three classes and for one; no matter which network."""
    shape, per_class = (1, 8, 8), 200
    model = build_seeded(lambda: build("mlp", {"hidden": [8]}, input_shape=shape, outputs=CLASSES), 0).eval()
    taken: dict[int, dict[str, int]] = {}
    for count in (1, 3):
        targets = torch.arange(count, CLASSES).repeat(per_class)
        retain = TensorSamples(torch.zeros(len(targets), *shape), targets, mean=[0.0], std=[1.0])
        facts = Facts(retain_rows=len(targets), retain_per_class=per_class, input_size=64, forget_classes=count)
        config = METHODS[method].configure({"attempts": 1} if method == "emmn" else {}, facts)
        common = {"config": config, "generator": generator(0, "updates")}
        synthesize, impair, repair = (METHODS[method].stage(stage) for stage in ("synthesize", "impair", "repair"))
        noise = synthesize(model, input_shape=shape, forget_classes=list(range(count)), **common)
        impaired, impairing = impair(model, noise, retain, **common)
        _, repairing = repair(impaired, retain, noise=noise, **common)
        taken[count] = {"impair": len(impairing), "repair": len(repairing)}
    ratio = max(taken[3][stage] / taken[1][stage] for stage in taken[1])
    return {
        "ratio": round(ratio, 3),
        "target": 1.0,
        "met": ratio <= 1.0,
        "one_class": taken[1],
        "three_classes": taken[3],
        "formula": f"updates of impair and repair by default, {per_class} rows a class; the larger ratio",
    }


def incompetent_teacher(bench: Bench) -> Iterator[Line]:
    size, task = bench.batch, bench.task()
    settings = {"retain_fraction": 1.0, "batch_size": size, "epochs": LONG, "watch": "never"}
    pairs = bench.timed("incompetent_teacher", "distill", settings, task)
    line = pairs.line({"step": 1}, target=1.10, formula=f"{STEP} of the student; the teachers' answers are cached")
    passes = {
        "set_up_steps": round((1000 * pairs.first[0].item() - line["update_ms"]) / line["needed_ms"], 1),
        "set_up": "each teacher once over its own rows, 20 batches in all, in bare steps",
    }
    yield "S1", "update", line | passes
    looks, every = 30, 3
    settings |= {"epochs": looks * every // 20 + 1, "watch": "calibration", "looks": looks}
    pairs = Pairs(max(2, bench.pairs // every) * every, {"step": bench.step(size), "forward": bench.forward(size)})
    pairs.of(bench.stage("incompetent_teacher", "distill", settings, task))
    seen = 2 * min(1000, 4 * size)
    formula = f"the same, and every {every} updates a forward pass of {seen} rows"
    needed = {"step": 1.0, "forward": seen / size / every}
    yield "S1", "with looks", pairs.line(needed, target=1.10, formula=formula, window=every, plain="step")


def gradient_ascent(bench: Bench) -> Iterator[Line]:
    size, task = bench.batch, bench.task()
    unwatched = dataclasses.replace(task, forget=task.retain, retain=None)
    pairs = Pairs(min(bench.pairs, 14), {"step": bench.step(size)})
    pairs.of(bench.stage("gradient_ascent", "distill", {"batch_size": size}, unwatched))
    yield "S1", "update", pairs.line({"step": 1}, target=1.10, formula=f"{STEP} (here SGD, clipped)")
    config = bench.configure("gradient_ascent", {"retain_loss_rise": 1e9})
    pairs = Pairs(max(4, bench.pairs // 3), {"step": bench.step(config.batch_size), "forward": bench.forward(size)})
    pairs.of(bench.stage("gradient_ascent", "distill", {"retain_loss_rise": 1e9}, task))
    needed = {"step": 1.0, "forward": config.watched_rows / size / config.look_every}
    formula = (
        f"the same on {config.batch_size} rows, and every {config.look_every} a forward pass of "
        f"{config.watched_rows} rows"
    )
    yield "S1", "with looks", pairs.line(needed, target=1.10, formula=formula, plain="step")


def negative_gradient_plus(bench: Bench) -> Iterator[Line]:
    pairs = Pairs(bench.pairs, {"step": bench.step(2 * bench.batch)})
    settings = {"epochs": LONG, "batch_size": bench.batch}
    pairs.of(bench.stage("negative_gradient_plus", "distill", settings, bench.task()))
    yield "S1", "update", pairs.line({"step": 1}, target=1.10, formula=f"{STEP} (here SGD, clipped) on 2 B rows")


def fisher(bench: Bench) -> Iterator[Line]:
    rows = 16

    def loop(rows: int) -> Work:
        """Forward once, backward for every class, squares added up: for one row as published, or for some at once."""
        model, inputs = bench.blank(1).eval(), bench.images(rows)
        squares = [torch.zeros_like(weight) for weight in model.parameters()]

        def run() -> None:
            log_p = log_softmax(model(inputs), dim=1)
            p = log_p.detach().exp().mean(0)
            for c in range(CLASSES):
                gradients = torch.autograd.grad(log_p[:, c].sum(), list(model.parameters()), retain_graph=True)
                for square, gradient in zip(squares, gradients, strict=True):
                    square += p[c] * gradient.square()

        return run

    pairs = Pairs(max(3, bench.pairs // 4), {"row": loop(1), "batch": loop(rows)})
    pairs.of(bench.stage("fisher", "distill", {"batch_size": rows}, bench.task()))
    formula = f"for each of {rows} rows a forward pass, for each row and class a backward pass, one at a time"
    yield "S1", "rows x classes", pairs.line({"row": rows}, target=1.10, formula=formula, plain="batch")


def gated_transfer(bench: Bench) -> Iterator[Line]:
    yield student_update(bench)
    yield from cycle(bench)


def student_update(bench: Bench) -> Line:
    teacher, layers = bench.original(), attended_modules(bench.original(), bench.shape)
    config = bench.configure("gated_transfer", {"batch_size": bench.batch, "student_steps": LONG})
    batch = gated_batch(teacher, bench.images(bench.batch), [0], threshold=config.threshold, layers=layers)
    other = bench.blank(1).train()
    adam = torch.optim.Adam(other.parameters(), lr=1e-3)
    kept: dict[str, Tensor] = {}
    for name in layers:
        other.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: kept.update({name: output}))

    def attended() -> None:
        adam.zero_grad(set_to_none=True)
        loss = kd_loss(other(batch.images), batch.logits)
        maps = [attention_map(kept[name]) for name in layers]
        (loss + config.attention * attention_loss(maps, batch.maps)).backward()
        adam.step()

    attended()
    student = bench.blank(2).train()
    optimiser = torch.optim.Adam(student.parameters(), lr=1e-3)
    pairs = Pairs(bench.pairs, {"attended": attended, "step": bench.step(bench.batch)})
    optimiser.register_step_post_hook(lambda *_: pairs())
    pairs.of(lambda _: student_steps(student, batch, optimiser=optimiser, config=config, layers=layers))
    formula = f"forward, {len(layers)} attention maps, backward, Adam"
    return "S1", "student update", pairs.line({"attended": 1}, target=1.10, formula=formula, plain="step")


def cycle(bench: Bench) -> Iterator[Line]:
    """Passes counted, and cycles in turn with what they need and with the naive order of the same work."""
    size, teacher = bench.batch, bench.original().requires_grad_(False)
    layers = attended_modules(teacher, bench.shape)
    settings = {"batch_size": size, "cycles": LONG, "monitor_every": LONG}
    config = bench.configure("gated_transfer", settings)
    single = dataclasses.replace(config, student_steps=1)
    images_of, student = PseudoGenerator(config.latent, config.generator_width, bench.shape), bench.blank(1).train()
    adams = {model: torch.optim.Adam(model.parameters(), lr=1e-3) for model in (images_of, student)}
    latents, step = torch.randn(size, config.latent), bench.step(size)

    def generator_step() -> None:
        adams[images_of].zero_grad(set_to_none=True)
        images = images_of(latents)
        logits = teacher(images)
        loss = config.balance_weight * balance(logits, [0]) - kd_loss(student(images), logits)
        loss = loss + config.barrier_weight * barrier(logits, [0], config.threshold / config.barrier_margin)
        loss.backward(inputs=list(images_of.parameters()))
        adams[images_of].step()

    def gated_images() -> Tensor:
        with torch.no_grad():
            images: Tensor = images_of(latents)
            return images[gate(teacher(images), [0], config.threshold)]

    def three_naive_steps() -> None:
        for _ in range(3):
            batch = gated_batch(teacher, gated_images(), [0], threshold=config.threshold, layers=layers)
            student_steps(student, batch, optimiser=adams[student], config=single, layers=layers)

    counts: Counter[str] = Counter()
    counted: list[Counter[str]] = []

    def count(module: nn.Module, *_: object) -> None:
        if isinstance(module, PseudoGenerator):
            counts["generator"] += 1
        elif type(module) is type(teacher):
            counts["student" if next(module.parameters()).requires_grad else "teacher"] += 1

    def progress(phase: str, done: int, total: int, loss: float) -> None:
        counted.append(counts.copy())
        try:
            pairs(phase, done, total, loss)
        finally:
            counts.clear()

    pairs = Pairs(
        max(3, bench.pairs // 4),
        {
            "three steps": lambda: [step() for _ in range(3)],
            "generator step": generator_step,
            "images": gated_images,
            "three naive steps": three_naive_steps,
        },
    )
    hook = nn.modules.module.register_module_forward_hook(count)
    try:
        pairs.of(bench.stage("gated_transfer", "distill", settings, bench.task()), progress)
    finally:
        hook.remove()
    asked = counted[1:]  # the first holds the set-up too
    for name in ("teacher", "generator"):
        most = max(passes[name] for passes in asked)
        yield (
            "S4",
            f"{name} passes",
            {"ratio": most, "target": 2, "met": most <= 2, "formula": "forward passes in a cycle, the most of all"},
        )
    third = config.student_steps / 3
    needed = {"three steps": third, "generator step": 1.0, "images": 1.0}
    formula = f"{config.student_steps} bare steps, a generator step, generator and teacher once more"
    step_ms = round(_ms(_windows(pairs.times["three steps"], 1)) / 3, 3)
    yield "S4", "cycle", pairs.line(needed, target=1.20, formula=formula, step_ms=step_ms)
    naive = pairs.line({"three naive steps": third, "generator step": 1.0}, target=1.0, formula="")
    yield (
        "S4",
        "naive / cycle",
        {
            **naive,
            "ratio": round(1 / naive["ratio"], 2),
            "target": None,
            "met": None,
            "spread": [round(1 / value, 2) for value in reversed(naive["spread"])],
            "wall_ratio": round(1 / naive["wall_ratio"], 2),
            "formula": "generator, gate and teacher anew in each student step; higher is better",
        },
    )


VERDICTS = {True: "ok", False: "MISS", None: ""}
MEASURES: dict[str, Callable[[Bench], Iterator[Line]]] = {
    "unsir": unsir,
    "emmn": emmn,
    "gated_transfer": gated_transfer,
    "incompetent_teacher": incompetent_teacher,
    "retrain": plainly("retrain"),
    "fine_tune": plainly("fine_tune"),
    "gradient_ascent": gradient_ascent,
    "negative_gradient_plus": negative_gradient_plus,
    "amnesiac": plainly("amnesiac"),
    "fisher": fisher,
}


def machine() -> dict[str, Any]:
    git = ["git", "-C", str(Path(unlearning.__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "commit": commit,
        "environment": {name: value for name, value in os.environ.items() if name.startswith(("OMP_", "MALLOC_"))},
        "command": "python " + " ".join(sys.argv),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="lenet5,allcnn,resnet20")
    parser.add_argument("--methods", default=",".join(MEASURES))
    parser.add_argument(
        "--rounds", type=int, default=6, help="pairs of an update and its reference; twice as many for LeNet-5"
    )
    parser.add_argument("--speed", default="", help="switches of unlearning.speed, such as channels_last=false")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    with using(speed_from(asked.speed)):
        measure(parser, asked)


def measure(parser: argparse.ArgumentParser, asked: argparse.Namespace) -> None:
    networks, methods = asked.networks.split(","), asked.methods.split(",")
    for names, known in ((networks, NETWORKS), (methods, MEASURES)):
        if unknown := [name for name in names if name not in known]:
            parser.error(f"unknown: {', '.join(unknown)} (known: {', '.join(known)})")
    if asked.rounds < 2:
        parser.error(f"--rounds must be at least 2, got {asked.rounds}")
    lines: list[dict[str, Any]] = []
    texts: list[str] = []
    for network in networks:
        for method in methods:
            bench = Bench(network, asked.rounds * NETWORKS[network][3])
            for row, part, figures in MEASURES[method](bench):
                lines.append({"row": row, "method": method, "part": part, "network": network, **figures})
                lines[-1]["batch"] = bench.batch
                texts.append(json.dumps(lines[-1]))
                print(texts[-1], flush=True)
    texts.append(
        json.dumps(
            {
                **machine(),
                "cpu_s": round(time.process_time(), 1),
                "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            }
        )
    )
    print(texts[-1])
    head = ("", "method", "part", "network", "ratio", "target", "", "quartiles", "wall", "update ms", "needed ms")
    print("\n{:2} {:22} {:18} {:9} {:>6} {:>6} {:4} {:>13} {:>6} {:>10} {:>10}".format(*head))
    for line in sorted(lines, key=lambda line: line["row"]):
        spread = "{:6.2f} {:6.2f}".format(*line["spread"]) if "spread" in line else ""
        print(
            f"{line['row']:2} {line['method']:22} {line['part']:18} {line['network']:9} {line['ratio']:6} "
            f"{line['target'] or '-':>6} {VERDICTS[line['met']]:4} {spread:13} {line.get('wall_ratio', ''):>6} "
            f"{line.get('update_ms', ''):>10} {line.get('needed_ms', ''):>10}"
        )
    print("", *NOTES, sep="\n")
    if asked.out:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text("\n".join(texts) + "\n")


if __name__ == "__main__":
    main()
