"""Rows forgotten, beside a model that never saw them: random rows, one kind of object within a class, or people.

    UNLEARN_DATA=... python benchmarks/forget_rows.py fashion --seeds 3
    UNLEARN_DATA=... python benchmarks/forget_rows.py har
    UNLEARN_DATA=... python benchmarks/forget_rows.py super20 --variants original,retrained,"incompetent teacher"

`fashion`: 1%, 5% and 10% of 20,000 rows of Fashion-MNIST, LeNet-5. `super20`: the rockets among the vehicles, the
mushrooms among fruit and vegetables, and the babies among people, one request each, of 10,000 rows of CIFAR-100 with
its 20 coarse labels, scaled to 16 x 16 to save time; an eighth-width ResNet-9 without augmentation, which learns its
rows by heart.

`har`: all rows of one and of three of the 21 people whose movements the network knows, six activities of 265 features.
`eeg`: ten of 400 recordings of brain waves, five classes, read by convolutions. Other people's movements, and other
recordings, are the rows that nobody saw; each seed forgets others. Both are trained from their starting points.

What to look for is the retrained model's row, not 0: of random rows it gets as many right as of rows that nobody saw.
The AUC is that of the loss attack on forgotten rows against held-out rows of the same kind; away from 0.5 on either
side, they stand out.

One JSON line per run goes to standard output and, with --out, to a file. Two tables come last: the means over seeds,
and how far each variant is from the retrained model, seed by seed, with the standard error of that mean.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from datasets import data_folder, npz_of
from machine import machine
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unlearning.attacks.membership import cross_entropy, entropy, population_attack
from unlearning.config import as_plain
from unlearning.config import build as build_settings
from unlearning.data.samples import Rows, Samples, TensorSamples
from unlearning.data.sources import make_manifest, open_samples
from unlearning.methods import (
    Facts,
    amnesiac,
    fine_tune,
    fisher,
    gradient_ascent,
    incompetent_teacher,
    negative_gradient_plus,
    retrain,
)
from unlearning.methods.task import Task
from unlearning.metrics.accuracy import accuracy
from unlearning.models.architectures import build
from unlearning.models.starting_points import starting_point
from unlearning.training import Recipe, build_seeded, generator, predict

VARIANTS: dict[str, tuple[ModuleType | None, dict[str, Any]]] = {
    "original": (None, {}),
    "retrained": (retrain, {}),
    "incompetent teacher": (incompetent_teacher, {}),
    "as published": (incompetent_teacher, {"preset": "paper"}),
    "published 3 x 1e-3": (incompetent_teacher, {"preset": "paper", "learning_rate": 1e-3, "epochs": 3}),
    "random teacher": (incompetent_teacher, {"teacher": "random"}),
    "amnesiac": (amnesiac, {}),
    "fine-tune": (fine_tune, {}),
    "gradient ascent": (gradient_ascent, {}),
    "NegGrad+": (negative_gradient_plus, {}),
    "Fisher": (fisher, {}),
}
COLUMNS = ("forget", "forget_test", "retain", "test", "auc_loss", "auc_entropy", "seconds")
AUCS = ("auc_loss", "auc_entropy")


@dataclass(frozen=True)
class Data:
    """A data set with its network; `kinds` are finer labels and `people` whom rows are about, where there are any."""

    samples: Samples
    input_shape: tuple[int, ...]
    train: Tensor
    test: Tensor
    kinds: Tensor | None
    classes: int
    network: Callable[[], nn.Module]
    recipe: Recipe
    people: NDArray[np.str_] | None = None
    groups: tuple[tuple[str, int], ...] = ()


def fashion(cache: Path) -> Data:
    content = np.load(npz_of("fashion", cache))
    names, targets = np.unique(content["targets"], return_inverse=True)
    samples = TensorSamples(
        torch.from_numpy(content["inputs"]), torch.from_numpy(targets.astype(np.int64)), mean=[0.286], std=[0.353]
    )
    train, test = (torch.from_numpy(np.flatnonzero(content["split"] == split)) for split in ("train", "test"))
    return Data(
        samples=samples,
        input_shape=(1, 28, 28),
        train=train[torch.randperm(len(train), generator=generator(0, "rows"))[:20_000]],
        test=test,
        kinds=None,
        classes=len(names),
        network=lambda: build("lenet5", {}, input_shape=(1, 28, 28), outputs=10),
        recipe=Recipe(epochs=20, learning_rate=2e-3, batch_size=128, weight_decay=0.0),
    )


def super20(cache: Path) -> Data:
    folder = data_folder() / "cifar100"
    labels = np.load(folder / "labels.npz")
    sheets = [np.asarray(Image.open(folder / f"{part}.webp").convert("RGB")) for part in ("train", "test")]
    pixels = np.concatenate(
        [s.reshape(100, 32, 100, 32, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, 32, 32) for s in sheets]
    )
    halved = pixels.reshape(-1, 3, 16, 2, 16, 2).mean((3, 5)).round().astype(np.uint8)
    coarse, kinds = (
        torch.from_numpy(np.concatenate([labels[f"{part}_{name}"] for part in ("train", "test")]).astype(np.int64))
        for name in ("coarse", "fine")
    )
    return Data(
        samples=TensorSamples(torch.from_numpy(halved), coarse, mean=[0.507, 0.487, 0.441], std=[0.267, 0.256, 0.276]),
        input_shape=(3, 16, 16),
        train=torch.arange(10_000),
        test=torch.arange(10_000, 20_000),
        kinds=kinds,
        classes=20,
        network=lambda: build("resnet9", {"width": 0.125}, input_shape=(3, 16, 16), outputs=20),
        recipe=Recipe(epochs=15, learning_rate=1e-2, batch_size=128),
    )


def of_people(source: str, groups: tuple[tuple[str, int], ...]) -> Data:
    """A source that says whom each row is about; the requests' names, and how many people each forgets."""
    made = make_manifest(source.format(data=data_folder()))
    train, test = (torch.from_numpy(made.rows(split)) for split in ("train", "test"))
    point = starting_point(made.card, len(train))
    return Data(
        samples=open_samples(made),
        input_shape=made.card.input_shape,
        train=train,
        test=test,
        kinds=None,
        classes=len(made.card.classes),
        network=lambda: build(
            point.architecture, point.arguments, input_shape=made.card.input_shape, outputs=point.outputs
        ),
        recipe=build_settings(Recipe, point.recipe, what="recipe"),
        people=np.array(made.table["subject_id"].to_pylist()),
        groups=groups,
    )


KINDS = {"rocket": 69, "mushroom": 51, "baby": 2}
"""Fine labels of CIFAR-100, from three coarse classes: vehicles 2, fruit and vegetables, people."""
TASKS: dict[str, Callable[[Path], Data]] = {
    "fashion": fashion,
    "super20": super20,
    "har": lambda cache: of_people("har:{data}/har", (("1 person", 1), ("3 people", 3))),
    "eeg": lambda cache: of_people("eeg:{data}/eeg", (("10 recordings", 10),)),
}


def requests(data: Data, seed: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Each request's name, which training rows it means, and which test rows are of the same kind."""
    if data.kinds is not None:
        for name, kind in KINDS.items():
            yield name, data.kinds[data.train] == kind, data.kinds[data.test] == kind
        return
    unseen = torch.ones(len(data.test), dtype=torch.bool)
    if data.people is not None:
        known = data.people[data.train.numpy()]
        names = np.unique(known)
        drawn = names[torch.randperm(len(names), generator=generator(seed, "forget")).numpy()]
        for name, count in data.groups:
            yield name, torch.from_numpy(np.isin(known, drawn[:count])), unseen
        return
    order = torch.randperm(len(data.train), generator=generator(seed, "forget"))
    for share in (0.01, 0.05, 0.1):
        gone = torch.zeros(len(data.train), dtype=torch.bool)
        gone[order[: round(share * len(data.train))]] = True
        yield f"{share:.0%}", gone, unseen


def kept(cache: Path, name: str, data: Data, make: Callable[[], tuple[nn.Module, float]]) -> tuple[nn.Module, float]:
    """A trained network and the seconds that it took, from the cache when it was trained before."""
    path = cache / f"{name}.safetensors"
    if not path.exists():
        model, seconds = make()
        save_file({**model.state_dict(), "seconds": torch.tensor(seconds)}, path)
    weights = load_file(path)
    seconds = weights.pop("seconds").item()
    model = data.network()
    model.load_state_dict(weights)
    return model.eval(), seconds


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    return work(), time.perf_counter() - began


def networks(
    data: Data,
    task: Task,
    variants: list[str],
    original: nn.Module,
    trained: float,
    seed: int,
    given: dict[str, dict[str, Any]],
    keep: Callable[[Callable[[], tuple[nn.Module, float]]], tuple[nn.Module, float]],
) -> Iterator[tuple[str, nn.Module, float, dict[str, Any]]]:
    """Each variant's name, its network, the seconds that it took, and what it says of itself."""
    assert task.retain is not None
    counts = torch.bincount(task.retain.targets)
    facts = Facts(
        retain_rows=len(task.retain),
        retain_per_class=int(counts[counts > 0].median()),
        input_size=int(np.prod(task.input_shape)),
        forget_classes=0,
        learning_rate=data.recipe.learning_rate,
        recipe=as_plain(data.recipe),
    )
    for variant in variants:
        method, settings = VARIANTS[variant]
        settings = settings | given.get(variant, {})
        notes: dict[str, Any] = {}
        if method is None:
            model, seconds = original, trained
        else:
            config = method.configure(settings, facts)

            def work(method: ModuleType = method, config: Any = config) -> Any:
                return method.distill(original, task, config=config, generator=generator(seed, "distill"))

            if method is retrain:
                model, seconds = keep(lambda: ((ended := timed(work))[0][0], ended[1]))
            else:
                (model, record), seconds = timed(work)
                notes = {"config": as_plain(config), **record.notes}
        yield variant, model, seconds, notes


def figures_of(model: nn.Module, task: Task, held_out: dict[str, Rows]) -> dict[str, Any]:
    """Accuracies on training and held-out rows, and what two attacks see."""
    assert task.forget is not None
    assert task.retain is not None
    outputs = {
        name: (predict(model, rows), rows.targets)
        for name, rows in {"forget": task.forget, "retain": task.retain, **held_out}.items()
    }
    figures: dict[str, Any] = {name: accuracy(*pair) for name, pair in outputs.items()}
    for name, statistic in (("loss", cross_entropy), ("entropy", lambda logits, _: entropy(logits))):
        roc = population_attack(statistic(*outputs["forget"]), statistic(*outputs["forget_test"]))
        figures[f"auc_{name}"] = roc.auc
    return figures


def trained_original(name: str, data: Data, seed: int, cache: Path) -> tuple[nn.Module, float]:
    """The network that knows everything, and the seconds that its training took."""

    def train_original() -> tuple[nn.Module, float]:
        everything = Task(
            input_shape=data.input_shape,
            outputs=data.classes,
            forget_classes=(),
            blank=lambda first: build_seeded(data.network, first),
            retain=Rows(data.samples, data.train),
        )
        (model, _), seconds = timed(
            lambda: retrain.distill(
                build_seeded(data.network, 0),
                everything,
                config=retrain.RetrainConfig(**as_plain(data.recipe)),
                generator=generator(seed, "train"),
            )
        )
        return model, seconds

    return kept(cache, f"rows-{name}-{seed}", data, train_original)


def parts(data: Data, gone: Tensor, same_kind: Tensor) -> tuple[Task, dict[str, Rows]]:
    """What a method is given, and the held-out rows of the forgotten kind and of all others."""
    order = torch.randperm(len(data.test), generator=generator(0, "calibration"))
    calibration = torch.zeros(len(data.test), dtype=torch.bool)
    calibration[order[: len(data.test) // 5]] = True
    task = Task(
        input_shape=data.input_shape,
        outputs=data.classes,
        forget_classes=(),
        blank=lambda first: build_seeded(data.network, first),
        forget=Rows(data.samples, data.train[gone]),
        retain=Rows(data.samples, data.train[~gone]),
        calibration=Rows(data.samples, data.test[calibration]),
    )
    return task, {
        "forget_test": Rows(data.samples, data.test[same_kind & ~calibration]),
        "test": Rows(data.samples, data.test[~calibration & (~same_kind | same_kind.all())]),
    }


def tables(rows: dict[tuple[str, str], list[dict[str, Any]]]) -> None:
    """Print the means over seeds, and the differences from the retrained model of the same seed."""
    head = "{:13} {:20}".format("request", "variant")
    print(head + "".join(f"{column:>14}" for column in COLUMNS))
    for (request, variant), figures in rows.items():
        mean = {column: statistics.mean(one[column] for one in figures) for column in COLUMNS}
        print(
            f"{request:13} {variant:20}"
            + "".join(
                f"{mean[c]:14.1f}" if c == "seconds" else f"{mean[c]:14.3f}" if c in AUCS else f"{mean[c]:14.1%}"
                for c in COLUMNS
            )
        )
    print("\nless the retrained model's, accuracy in points")
    print(head + "".join(f"{column:>14}" for column in COLUMNS[:-1]))
    for (request, variant), figures in rows.items():
        references = rows.get((request, "retrained"))
        if references is None or variant == "retrained":
            continue
        line = f"{request:13} {variant:20}"
        for column in COLUMNS[:-1]:
            gaps = [one[column] - other[column] for one, other in zip(figures, references, strict=True)]
            error = statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else float("nan")
            gap, unit = statistics.mean(gaps), 1 if column in AUCS else 100
            line += (
                f"{gap * unit:+8.3f} {error * unit:5.3f}" if unit == 1 else f"{gap * unit:+8.1f} {error * unit:5.1f}"
            )
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--settings", default="{}", help='JSON, by variant: {"incompetent teacher": {"epochs": 5}}')
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "unlearn-benchmarks")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    variants = asked.variants.split(",")
    if unknown := [variant for variant in variants if variant not in VARIANTS]:
        parser.error(f"unknown variants {', '.join(unknown)} (known: {', '.join(VARIANTS)})")
    asked.cache.mkdir(parents=True, exist_ok=True)
    data = TASKS[asked.task](asked.cache)
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    lines: list[str] = []
    for seed in range(asked.seeds):
        original, trained = trained_original(asked.task, data, seed, asked.cache)
        for request, gone, same_kind in requests(data, seed):
            task, held_out = parts(data, gone, same_kind)
            name = f"rows-{asked.task}-{seed}-{request}"
            runs = networks(
                data,
                task,
                variants,
                original,
                trained,
                seed,
                json.loads(asked.settings),
                lambda make, n=name: kept(asked.cache, n, data, make),
            )
            for variant, model, seconds, notes in runs:
                figures = {**figures_of(model, task, held_out), "seconds": seconds, **notes}
                rows.setdefault((request, variant), []).append(figures)
                line = {"task": asked.task, "request": request, "variant": variant, "seed": seed, **figures}
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
