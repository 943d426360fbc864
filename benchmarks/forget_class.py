"""Whole classes forgotten by UNSIR, beside its control without noise: accuracies and costs over seeds.

    python benchmarks/forget_class.py digits
    python benchmarks/forget_class.py digits --after 3 --variants "unsir,repaired at the impair rate"
    UNLEARN_DATA=... python benchmarks/forget_class.py cifar10 --seeds 3
    UNLEARN_DATA=... python benchmarks/forget_class.py fashion --seeds 3

With --after, from a model that was made to forget a class before, by the defaults and the same seed. One JSON line per
run goes to standard output or, with --out, to a file; the table of means comes last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import data_folder, npz_of
from machine import machine
from torch import nn

from unlearning.config import as_plain
from unlearning.data.manifest import Manifest
from unlearning.data.samples import Rows, TensorSamples
from unlearning.data.selection import ForgetRequest, select
from unlearning.data.sources import make_manifest
from unlearning.methods import METHODS
from unlearning.metrics.accuracy import accuracy
from unlearning.models.architectures import build
from unlearning.models.bundle import ModelCard, load_bundle, save_bundle
from unlearning.models.importing import import_checkpoint
from unlearning.training import Recipe, build_seeded, generator, predict, train
from unlearning_components.surroundings import facts_of, open_for

FORGET = {"digits": (["3"], ["1", "4", "7"]), "cifar10": (["0"], ["0", "2"]), "fashion": (["0"], ["1", "6"])}
VARIANTS: dict[str, dict[str, Any]] = {
    "unsir": {},
    "without noise": {"noise": "none"},
    "repaired at the impair rate": {"repair_learning_rate": 0.005},
    "preset paper": {"preset": "paper"},
    "preset code": {"preset": "code"},
}
RECIPES = {
    "digits": ({"width": 0.25}, Recipe(epochs=15, learning_rate=0.005, batch_size=64)),
    "fashion": ({"width": 0.25}, Recipe(epochs=4, learning_rate=0.003, batch_size=128)),
}


def card_for(manifest: Manifest, architecture: str, arguments: dict[str, Any], **more: Any) -> ModelCard:
    return ModelCard(
        architecture=architecture,
        arguments=arguments,
        input_shape=manifest.card.input_shape,
        outputs=len(manifest.card.classes),
        classes=manifest.card.classes,
        **{"mean": manifest.card.mean, "std": manifest.card.std, **more},
    )


def original_model(task: str, manifest: Manifest, cache: Path, seed: int) -> tuple[nn.Module, ModelCard, float]:
    """The model to unlearn from, and the seconds that its training took (0: not trained here)."""
    if task == "cifar10":
        checkpoint = next((data_folder() / "models").glob("*.th"))
        card = card_for(manifest, "resnet20", {}, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        with tempfile.TemporaryDirectory() as folder:
            return *load_bundle(import_checkpoint(checkpoint, card, Path(folder, "bundle")).folder), 0.0
    arguments, recipe = RECIPES[task]
    card = card_for(manifest, "allcnn", arguments, recipe=as_plain(recipe))
    kept = cache / f"{task}-{seed}"
    if not kept.is_dir():
        network = build_seeded(
            lambda: build("allcnn", arguments, input_shape=card.input_shape, outputs=card.outputs), seed
        )
        rows = torch.from_numpy(manifest.rows("train"))
        began = time.perf_counter()
        train(network, Rows(open_for(card, manifest), rows), recipe, generator=generator(seed, "train"))
        save_bundle(network, card, kept)
        (cache / f"{task}-{seed}.seconds").write_text(str(time.perf_counter() - began))
    return *load_bundle(kept), float((cache / f"{task}-{seed}.seconds").read_text())


def forget(
    original: nn.Module,
    card: ModelCard,
    samples: TensorSamples,
    manifest: Manifest,
    classes: list[str],
    settings: dict[str, Any],
    seed: int,
    gone: str = "",
) -> tuple[nn.Module, dict[str, Any]]:
    """The unlearned model and its figures; of a model without the class `gone`, if any."""
    chosen = select(manifest, ForgetRequest("class", tuple(classes)), retain_per_class=1000, seed=seed)
    targets = manifest.targets()
    if gone:
        lost = manifest.class_index(gone)
        chosen = replace(
            chosen,
            available=chosen.available[targets[chosen.available] != lost],
            holdout_retain=chosen.holdout_retain[targets[chosen.holdout_retain] != lost],
        )
    config = METHODS["unsir"].configure(settings, facts_of(card, chosen.forget_classes, targets[chosen.available]))
    retain = Rows(samples, torch.from_numpy(chosen.available))
    method, seconds, began = METHODS["unsir"], {}, time.perf_counter()
    noise = method.stage("synthesize")(
        original,
        input_shape=card.input_shape,
        forget_classes=chosen.forget_classes,
        config=config,
        generator=generator(seed, "synthesize"),
    )
    seconds["synthesize"] = time.perf_counter() - began
    impaired, _ = method.stage("impair")(original, noise, retain, config=config, generator=generator(seed, "impair"))
    unlearned, losses = method.stage("repair")(impaired, retain, config=config, generator=generator(seed, "repair"))
    seconds["total"] = time.perf_counter() - began
    figures: dict[str, Any] = {"config": {"batch": config.batch_size, "noise_images": config.noise_images}}
    for part, rows in (("forget", chosen.holdout_forget), ("retain", chosen.holdout_retain)):
        held_out = Rows(samples, torch.from_numpy(rows))
        for name, model in (("original", original), ("unlearned", unlearned)):
            figures[f"{part}.{name}"] = accuracy(predict(model, held_out), held_out.targets)
    return unlearned, {**figures, "seconds": seconds, "repair_steps": len(losses)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=FORGET)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--variants", default="unsir,without noise")
    parser.add_argument("--after", default="", metavar="CLASS", help="that the model was made to forget before")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "unlearn-benchmarks")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    asked.cache.mkdir(parents=True, exist_ok=True)
    manifest = make_manifest("digits" if asked.task == "digits" else f"npz:{npz_of(asked.task, asked.cache)}")
    lines: list[str] = []
    table: list[tuple[str, str, list[dict[str, Any]]]] = []
    opened: dict[tuple[float, ...], TensorSamples] = {}  # by normalisation: the pixels are the same for every seed
    for variant in asked.variants.split(","):
        for classes in FORGET[asked.task]:
            if asked.after in classes:
                continue
            names = [manifest.card.classes[manifest.class_index(name)] for name in classes]
            runs = []
            for seed in range(asked.seeds):
                original, card, trained = original_model(asked.task, manifest, asked.cache, seed)
                if card.mean not in opened:
                    opened[card.mean] = open_for(card, manifest)
                if asked.after:
                    original, _ = forget(original, card, opened[card.mean], manifest, [asked.after], {}, seed)
                how = VARIANTS[variant]
                _, figures = forget(original, card, opened[card.mean], manifest, names, how, seed, gone=asked.after)
                runs.append(figures)
                line = {"task": asked.task, "variant": variant, "forget": names, "seed": seed, "trained_s": trained}
                line |= {"after": asked.after} if asked.after else {}
                lines.append(json.dumps({**line, **runs[-1]}))
                print(lines[-1], flush=True)
            table.append((variant, ", ".join(names), runs))
    lines.append(json.dumps(machine()))
    print(lines[-1])
    head = ("variant", "forgotten", "forget before", "after", "worst", "retain before", "after", "change", "seconds")
    print("{:14} {:16} {:>13} {:>7} {:>7} {:>13} {:>7} {:>7} {:>8}".format(*head))
    for variant, names_, runs in table:
        mean = {key: statistics.mean(run[key] for run in runs) for key in runs[0] if "." in key}
        worst = max(run["forget.unlearned"] for run in runs)
        spent = statistics.median(run["seconds"]["total"] for run in runs)
        print(
            f"{variant:14} {names_:16} {mean['forget.original']:13.1%} {mean['forget.unlearned']:7.1%} {worst:7.1%} "
            f"{mean['retain.original']:13.1%} {mean['retain.unlearned']:7.1%} "
            f"{100 * (mean['retain.unlearned'] - mean['retain.original']):+7.1f} {spent:8.1f}"
        )
    if asked.out:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
