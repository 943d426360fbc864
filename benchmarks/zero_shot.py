"""Whole classes forgotten without any data, beside a model that never saw them.

    python benchmarks/zero_shot.py digits-lenet5 --classes 3
    UNLEARN_DATA=... python benchmarks/zero_shot.py mnist-lenet5 --classes 0 --classes 1,7
    UNLEARN_DATA=... python benchmarks/zero_shot.py cifar10-resnet20 --methods emmn --classes 0 --seeds 1
    UNLEARN_DATA=... python benchmarks/zero_shot.py mnist-lenet5 --methods gated_transfer --classes 0 --longer 5

The methods are given the original and the list of classes. Where they stop, and which of their models they return, they
decide by themselves; the test rows are read once it is done, for figures alone: of the model that came back and, for
gated_transfer, of the "last" one too, where it went on and then decided for an earlier one. `--longer K` runs
gated_transfer a second time, with K times its cycles: what it returns must not have the class back.

One JSON line per run goes to standard output and, with --out, to a file, whose runs are not done again; the table of
means comes last. The original of cifar10-resnet20 is a published model whose recipe is too long for this: what stands
beside it is one model retrained by a shorter recipe (twelve epochs), the same for every seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import data_folder, npz_of
from machine import machine
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unlearning.config import as_plain
from unlearning.data.samples import Rows, TensorSamples
from unlearning.data.sources import make_manifest, open_samples
from unlearning.methods import METHODS, Facts
from unlearning.methods.noise import forget_probability
from unlearning.methods.task import Task
from unlearning.metrics.accuracy import accuracy
from unlearning.models.architectures import build
from unlearning.models.bundle import ModelCard, load_bundle
from unlearning.models.importing import import_checkpoint
from unlearning.training import Recipe, build_seeded, generator, predict, train


@dataclass(frozen=True)
class Setup:
    """One data set with the network that learned it; a published one comes trained, its recipe is for retraining."""

    data: str
    architecture: str
    arguments: dict[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    recipe: Recipe
    published: bool = False


TASKS = {
    "digits-lenet5": Setup(
        "digits", "lenet5", {}, (0.305,), (0.376,), Recipe(epochs=20, learning_rate=0.005, batch_size=64)
    ),
    "mnist-lenet5": Setup(
        "mnist", "lenet5", {}, (0.1307,), (0.3081,), Recipe(epochs=3, learning_rate=0.003, batch_size=128)
    ),
    "mnist-allcnn": Setup(
        "mnist", "allcnn", {"width": 0.125}, (0.1307,), (0.3081,), Recipe(epochs=2, learning_rate=0.005, batch_size=128)
    ),
    "cifar10-resnet20": Setup(
        *("cifar10", "resnet20", {}, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        Recipe(epochs=12, learning_rate=0.005, batch_size=128, augmentation="shift_flip"),
        published=True,
    ),
}


@dataclass(frozen=True)
class Data:
    """The task's samples, and where its networks come from."""

    name: str
    setup: Setup
    samples: TensorSamples
    train: Tensor
    test: Tensor
    outputs: int
    cache: Path

    def rows(self, split: Tensor, classes: list[int], gone: bool) -> Rows:
        """The rows of a split whose class is among these, or is not."""
        wanted = torch.isin(self.samples.targets[split], torch.tensor(classes)) == gone
        return Rows(self.samples, split[wanted])

    def blank(self, seed: int) -> nn.Module:
        """A freshly initialised network."""
        shape = tuple(self.samples.inputs.shape[1:])
        return build_seeded(
            lambda: build(self.setup.architecture, self.setup.arguments, input_shape=shape, outputs=self.outputs), seed
        )

    def network(self, seed: int, without: list[int]) -> tuple[nn.Module, float]:
        """The network trained without these classes and the seconds that it took."""
        recipe = self.setup.recipe
        if self.setup.published:
            if not without:
                return self._published(), 0.0
            seed = 0
        path = self.cache / f"zero-shot-{self.name}-{'_'.join(map(str, without))}-{seed}.safetensors"
        if not path.exists():
            model, began = self.blank(seed), time.perf_counter()
            train(model, self.rows(self.train, without, False), recipe, generator=generator(seed, "train"))
            save_file({**model.state_dict(), "seconds": torch.tensor(time.perf_counter() - began)}, path)
        weights = load_file(path)
        seconds = weights.pop("seconds").item()
        model = self.blank(seed)
        model.load_state_dict(weights)
        return model.eval(), seconds

    def _published(self) -> nn.Module:
        checkpoint = next((data_folder() / "models").glob("*.th"))
        card = ModelCard(
            architecture=self.setup.architecture,
            arguments=self.setup.arguments,
            input_shape=tuple(self.samples.inputs.shape[1:]),
            outputs=self.outputs,
            classes=tuple(str(number) for number in range(self.outputs)),
            mean=self.setup.mean,
            std=self.setup.std,
        )
        with tempfile.TemporaryDirectory() as folder:
            return load_bundle(import_checkpoint(checkpoint, card, Path(folder, "bundle")).folder)[0].eval()


def opened(name: str, cache: Path) -> Data:
    setup = TASKS[name]
    manifest = make_manifest("digits" if setup.data == "digits" else f"npz:{npz_of(setup.data, cache)}")
    samples = open_samples(manifest)
    return Data(
        name=name,
        setup=setup,
        samples=TensorSamples(samples.inputs, samples.targets, mean=setup.mean, std=setup.std),
        train=torch.from_numpy(manifest.rows("train")),
        test=torch.from_numpy(manifest.rows("test")),
        outputs=len(manifest.card.classes),
        cache=cache,
    )


def unlearned(
    method: str, original: nn.Module, task: Task, config: Any, seed: int
) -> tuple[dict[str, nn.Module], dict[str, Any]]:
    """What the method returns, beside its last model where that is another, and what it says of itself."""
    stage = METHODS[method].stage
    if METHODS[method].stages == ("distill",):
        states: list[Mapping[str, Any]] = [{}]

        def keep(state: Mapping[str, Any]) -> None:
            states[0] = state

        model, record = stage("distill")(
            original, task, config=config, generator=generator(seed, "distill"), checkpoint=keep
        )
        last = task.blank(0)
        last.load_state_dict(
            {name.removeprefix("student."): value for name, value in states[0].items() if name.startswith("student.")}
        )
        looks = {name: [round(value, 4) for value in values] for name, values in record.histories.items()}
        return {"unlearned": model, "last": last.eval()}, {**record.notes, "looks": looks}
    attempts: set[str] = set()
    noise = stage("synthesize")(
        original,
        input_shape=task.input_shape,
        forget_classes=task.forget_classes,
        config=config,
        generator=generator(seed, "synthesize"),
    )
    impaired, _ = stage("impair")(original, noise, None, config=config, generator=generator(seed, "impair"))
    model, _ = stage("repair")(
        impaired,
        None,
        noise=noise,
        config=config,
        generator=generator(seed, "repair"),
        progress=lambda phase, *_: attempts.add(phase),
    )
    left = forget_probability(model, noise.probes.flatten(0, 1), noise.classes)
    return {"unlearned": model}, {"attempts": len(attempts), "leak": left}


def measured(data: Data, model: nn.Module, classes: list[int]) -> dict[str, float]:
    parts = {"forget": data.rows(data.test, classes, True), "retain": data.rows(data.test, classes, False)}
    return {part: accuracy(predict(model, rows), rows.targets) for part, rows in parts.items()}


def run(
    data: Data, method: str, classes: list[int], seed: int, settings: dict[str, Any], longer: int
) -> dict[str, Any]:
    original, trained_s = data.network(seed, [])
    shape = tuple(data.samples.inputs.shape[1:])
    recipe = None if data.setup.published else as_plain(data.setup.recipe)
    facts = Facts.of([], input_shape=shape, forget_classes=len(classes), recipe=recipe)
    config = METHODS[method].configure(settings, facts)
    if longer > 1:
        config = METHODS[method].configure({**settings, "cycles": longer * config.cycles}, facts)
    task = Task(input_shape=shape, outputs=data.outputs, forget_classes=tuple(classes), blank=data.blank)
    cpu, wall = time.process_time(), time.perf_counter()
    models, notes = unlearned(method, original, task, config, seed)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    figures = {"original": measured(data, original, classes)}
    figures["retrained"] = measured(data, data.network(seed, classes)[0], classes)
    figures |= {name: measured(data, model, classes) for name, model in models.items()}
    costs = {"cpu_s": round(cpu, 1), "wall_s": round(wall, 1), "trained_s": round(trained_s, 1)}
    return {**figures, "notes": notes, **costs, "config": as_plain(config)}


def table(lines: list[dict[str, Any]]) -> str:
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault((line["task"], line["run"], ",".join(map(str, line["classes"]))), []).append(line)
    text = "{:17} {:20} {:8} {:>5} {:>17} {:>17} {:>17} {:>6} {:>7} {:>7}\n".format(
        *("task", "method", "classes", "seeds", "original", "retrained", "unlearned", "worst", "cpu s", "wall s")
    )
    for (task, name, classes), runs in groups.items():
        text += f"{task:17} {name:20} {classes:8} {len(runs):5}"
        for model in ("original", "retrained", "unlearned"):
            pair = [statistics.mean(one[model][part] for one in runs) for part in ("forget", "retain")]
            text += f" {pair[0]:8.2%} {pair[1]:8.2%}"
        cpu, wall = (statistics.median(one[kind] for one in runs) for kind in ("cpu_s", "wall_s"))
        text += f" {max(one['unlearned']['forget'] for one in runs):6.2%} {cpu:7.0f} {wall:7.0f}\n"
    return text + "forget accuracy, then retain accuracy; worst: the highest forget accuracy of a seed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--methods", default="gated_transfer,emmn")
    parser.add_argument("--classes", action="append", required=True, help="forgotten together, as in 1,7; repeatable")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--settings", type=json.loads, default={}, help="of the methods, as JSON")
    parser.add_argument("--longer", type=int, default=1, help="gated_transfer also with so many times its cycles")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "unlearn-benchmarks")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if unknown := [name for name in asked.methods.split(",") if name not in METHODS or METHODS[name].reads]:
        parser.error(f"{', '.join(unknown)}: no method that works without data")
    asked.cache.mkdir(parents=True, exist_ok=True)
    done: list[dict[str, Any]] = []
    if asked.out and asked.out.exists():
        done = [json.loads(line) for line in asked.out.read_text().splitlines()]
    lines: list[dict[str, Any]] = []

    def say(line: dict[str, Any]) -> None:
        print(json.dumps(line), flush=True)
        if asked.out:
            asked.out.parent.mkdir(parents=True, exist_ok=True)
            with asked.out.open("a") as file:
                file.write(json.dumps(line) + "\n")

    data = opened(asked.task, asked.cache)
    for seed in range(asked.seeds):
        for classes in asked.classes:
            for method in asked.methods.split(","):
                for longer in sorted({1, asked.longer if method == "gated_transfer" else 1}):
                    key = {
                        "task": asked.task,
                        "run": method if longer == 1 else f"{method} x {longer}",
                        "classes": [int(number) for number in classes.split(",")],
                        "seed": seed,
                        "settings": asked.settings,
                    }
                    found = [line for line in done if all(line.get(name) == value for name, value in key.items())]
                    if not found:
                        found = [{**key, **run(data, method, key["classes"], seed, asked.settings, longer)}]
                        say(found[0])
                    lines += found
    say(machine())
    print(table(lines))


if __name__ == "__main__":
    main()
