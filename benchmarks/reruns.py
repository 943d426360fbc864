"""The nearest settings to what the authors printed, run anew: one generator of lines for each table of `published`.

A line is {"experiment", "setting", "seed", "rows": {row: {figure: value}}, "cpu_s", ...}: figures in the unit of the
published ones. Networks that were trained are kept under the cache and not trained again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import forget_class
import forget_rows
import numpy as np
import regression
import torch
import zero_shot
from datasets import npz_of
from safetensors.torch import load_file, save_file
from torch import nn

from unlearning.config import as_plain
from unlearning.data.samples import Rows, Samples
from unlearning.data.selection import ForgetRequest, select
from unlearning.data.sources import make_manifest
from unlearning.losses import loss_of, point
from unlearning.methods import METHODS, Facts
from unlearning.methods.apply import unlearn
from unlearning.methods.task import Task
from unlearning.metrics.accuracy import accuracy
from unlearning.metrics.calibration import negative_log_likelihood
from unlearning.metrics.divergence import legacy_zrf
from unlearning.metrics.regression import mse
from unlearning.models.architectures import build
from unlearning.training import Recipe, build_seeded, generator, optimise, predict, train
from unlearning_components.surroundings import open_for

Line = dict[str, Any]
Figures = dict[str, dict[str, float]]


def line(experiment: str, setting: str, seed: int, rows: Figures, began: float, **more: Any) -> Line:
    """One run; seconds of the processor since `began`, training of the original left out."""
    rounded = {row: {name: round(value, 4) for name, value in figures.items()} for row, figures in rows.items()}
    cpu = round(time.process_time() - began, 1)
    return {"experiment": experiment, "setting": setting, "seed": seed, "rows": rounded, "cpu_s": cpu, **more}


def right(model: nn.Module, parts: Mapping[str, Rows], *, losses: bool = True) -> dict[str, float]:
    """Accuracy in percent and mean loss of a classifier on each part."""
    found: dict[str, float] = {}
    for part, rows in parts.items():
        logits = predict(model, rows)
        found[f"{part} %"] = 100 * accuracy(logits, rows.targets)
        if losses:
            found[f"{part} loss"] = negative_log_likelihood(logits, rows.targets)
    return found


GKT_CODE: dict[str, Any] = {
    "variant": "paper",
    "student_batchnorm": "frozen_init",
    "generator_width": 32,
    "fill": 0.004,  # whatever passes the gate is taught, and no more is drawn
    "patience": 10**6,
    "monitor_every": 50,
}
GKT: dict[str, tuple[str, dict[str, Any]]] = {
    "code, LeNet-5": ("mnist-lenet5", {**GKT_CODE, "cycles": 1000}),
    "ours, LeNet-5": ("mnist-lenet5", {"cycles": 1000, "patience": 10**6, "monitor_every": 50}),
    "code, AllCNN/8": ("mnist-allcnn", {**GKT_CODE, "cycles": 900, "batch_size": 64}),
}


def gkt(cache: Path, seeds: int, settings: Sequence[str]) -> Iterator[Line]:
    """Accuracies of the student on test rows every 50 cycles, for figures alone, and of the one that is kept."""
    for setting in settings:
        name, asked = GKT[setting]
        data = zero_shot.opened(name, cache)
        parts = {"forget": data.rows(data.test, [0], True), "retain": data.rows(data.test, [0], False)}
        shape = tuple(data.samples.inputs.shape[1:])
        facts = Facts.of([], input_shape=shape, forget_classes=1, recipe=as_plain(data.setup.recipe))
        config = METHODS["gated_transfer"].configure(asked, facts)
        task = Task(input_shape=shape, outputs=data.outputs, forget_classes=(0,), blank=data.blank)
        for seed in range(seeds):
            original, _ = data.network(seed, [])
            rows = {"teacher": right(original, parts, losses=False)}

            def look(
                state: Mapping[str, Any],
                rows: Figures = rows,
                student: nn.Module = data.blank(0),  # noqa: B008
                parts: Mapping[str, Rows] = parts,
            ) -> None:
                student.load_state_dict(
                    {key.removeprefix("student."): value for key, value in state.items() if key.startswith("student.")}
                )
                found = right(student.eval(), parts, losses=False)
                loss = float(state["history.student loss"][-1])
                rows[f"cycle {state['cycle']}"] = {**found, "student loss": loss}

            began = time.process_time()
            model, record = METHODS["gated_transfer"].stage("distill")(
                original, task, config=config, generator=generator(seed, "distill"), checkpoint=look
            )
            rows["the student kept"] = right(model, parts, losses=False)
            probes = {key: [round(one, 4) for one in record.histories[key]] for key in ("cycle", "probes", "pass rate")}
            yield line("gkt", setting, seed, rows, began, notes=record.notes, looks=probes, settings=asked)


UNSIR: dict[str, dict[str, Any]] = {"code": {"preset": "code"}, "ours": {}, "no noise": {"noise": "none"}}


def unsir(cache: Path, seeds: int, settings: Sequence[str]) -> Iterator[Line]:
    """Airplane and bird of CIFAR-10, stage by stage; and the course of the noise."""
    manifest = make_manifest(f"npz:{npz_of('cifar10', cache)}")
    for setting in settings:
        variant, network = setting.split(", ")
        for seed in range(seeds):
            chosen = select(manifest, ForgetRequest("class", ("airplane", "bird")), retain_per_class=1000, seed=seed)
            if network == "ResNet-20":
                original, card, _ = forget_class.original_model("cifar10", manifest, cache, seed)
            else:
                recipe = Recipe(epochs=3, learning_rate=0.01, batch_size=256, clip_value=0.1)
                card = forget_class.card_for(manifest, "resnet18", {}, recipe=as_plain(recipe))

                def start(card: Any = card) -> nn.Module:
                    return build("resnet18", {}, input_shape=card.input_shape, outputs=10)

                everything = Rows(open_for(card, manifest), torch.from_numpy(manifest.rows("train")))
                original = kept(cache / f"cifar10-resnet18-{seed}", start, everything, recipe, seed)
            samples = open_for(card, manifest)
            parts = {
                "forget": Rows(samples, torch.from_numpy(chosen.holdout_forget)),
                "retain": Rows(samples, torch.from_numpy(chosen.holdout_retain)),
            }
            retain = Rows(samples, torch.from_numpy(chosen.available))
            facts = forget_class.facts_of(card, chosen.forget_classes, manifest.targets()[chosen.available])
            yield from _unsir(setting, UNSIR[variant], seed, original, retain, parts, chosen.forget_classes, facts)


def _unsir(
    setting: str,
    asked: dict[str, Any],
    seed: int,
    original: nn.Module,
    retain: Rows,
    parts: Mapping[str, Rows],
    classes: Sequence[int],
    facts: Facts,
    experiment: str = "unsir",
) -> Iterator[Line]:
    stage, config = METHODS["unsir"].stage, METHODS["unsir"].configure(asked, facts)
    rows = {"original": right(original, parts)}
    began = time.process_time()
    shape = tuple(retain.batch(torch.tensor([0]))[0].shape[1:])
    noise = stage("synthesize")(
        original,
        input_shape=shape,
        forget_classes=tuple(classes),
        config=config,
        generator=generator(seed, "synthesize"),
    )
    impaired, _ = stage("impair")(original, noise, retain, config=config, generator=generator(seed, "impair"))
    rows["after impair"] = right(impaired, parts)
    repaired, _ = stage("repair")(impaired, retain, config=config, generator=generator(seed, "repair"))
    rows["after repair"] = right(repaired, parts)
    yield line(experiment, setting, seed, rows, began, settings=asked)
    if experiment == "unsir" and noise.objective:
        blocks = {
            f"{first + 1} to {first + 8}": {"objective": float(np.mean(noise.objective[first : first + 8]))}
            for first in range(0, 40, 8)
        }
        yield line("unsir-noise", setting, seed, blocks, began, settings=asked)


def kept(path: Path, start: Callable[[], nn.Module], rows: Samples, recipe: Recipe, seed: int) -> nn.Module:
    """A network trained by its recipe, from the cache when it was trained before."""
    file, model = path.with_suffix(".safetensors"), build_seeded(start, seed)
    if file.exists():
        model.load_state_dict(load_file(file))
    else:
        train(model, rows, recipe, generator=generator(seed, "train"))
        save_file(model.state_dict(), file)
    return model.eval()


ROCKET: dict[str, dict[str, str]] = {
    "code, ResNet-9/8": {"incompetent teacher": "as published", "amnesiac": "amnesiac"},
    "ours, ResNet-9/8": {"incompetent teacher": "incompetent teacher", "amnesiac": "amnesiac"},
}
AMNESIAC_CODE = {"learning_rate": 1e-4, "epochs": 3, "batch_size": 256}


def rocket(cache: Path, seeds: int, settings: Sequence[str]) -> Iterator[Line]:
    """Rockets among the vehicles: accuracies, losses and their ZRF on held-out rows."""
    data = forget_rows.super20(cache)
    for seed in range(seeds):
        original, seconds = forget_rows.trained_original("super20", data, seed, cache)
        _, gone, same_kind = next(forget_rows.requests(data, seed))
        task, held_out = forget_rows.parts(data, gone, same_kind)
        parts = {"forget": held_out["forget_test"], "retain": held_out["test"]}
        blind = predict(task.blank(seed + 1000).eval(), parts["forget"])
        for setting in settings:
            names = {"original": "original", "retrained": "retrained", **ROCKET[setting]}
            given = {"amnesiac": AMNESIAC_CODE} if setting.startswith("code") else {}
            began, rows, answers = time.process_time(), {}, {}
            found = forget_rows.networks(
                data,
                task,
                list(names.values()),
                original,
                seconds,
                seed,
                given,
                lambda make, n=f"rows-super20-{seed}-rocket": forget_rows.kept(cache, n, data, make),
            )
            for row, (_, model, _, _) in zip(names, found, strict=True):
                answers[row] = predict(model, parts["forget"])
                rows[row] = {**right(model, parts), "their ZRF": legacy_zrf(answers[row], blind)}
            apart = 1 - legacy_zrf(answers["incompetent teacher"], answers["retrained"])
            yield line("rocket", setting, seed, rows, began, amnesiac=given.get("amnesiac", {}))
            yield line("rocket-js", setting, seed, {"incompetent teacher": {"their JS": apart}}, began)


SUPER0: dict[str, dict[str, Any]] = {
    "code, ResNet-9/8": {"preset": "code", "rates": "pretrained", "noise_steps": 250, "noise_images": 240},
    "ours, ResNet-9/8": {},
}


def super0(cache: Path, seeds: int, settings: Sequence[str]) -> Iterator[Line]:
    """UNSIR on the first coarse class."""
    data = forget_rows.super20(cache)
    for seed in range(seeds):
        original, _ = forget_rows.trained_original("super20", data, seed, cache)
        targets = data.samples.targets
        retain = Rows(data.samples, data.train[targets[data.train] != 0])
        parts = {
            "forget": Rows(data.samples, data.test[targets[data.test] == 0]),
            "retain": Rows(data.samples, data.test[targets[data.test] != 0]),
        }
        counts = torch.bincount(retain.targets).tolist()
        facts = Facts.of(counts, input_shape=data.input_shape, forget_classes=1, recipe=as_plain(data.recipe))
        for setting in settings:
            yield from _unsir(setting, SUPER0[setting], seed, original, retain, parts, (0,), facts, "super0")


def stsb(cache: Path, seeds: int, settings: Sequence[str]) -> Iterator[Line]:
    """Sentence pairs as the notebook trains and forgets: every network is the best of its epochs on validation rows."""
    setup = regression.TASKS["stsb"]
    data = regression.opened(setup)
    made = make_manifest(setup.source.format(data=regression.data_folder() / "regression"))
    watched = made.rows("validation")
    kept_band = made.targets()[watched] >= 2
    validation = {
        "train": Rows(data.samples, torch.from_numpy(watched)),
        "retain": Rows(data.samples, torch.from_numpy(watched[kept_band])),
    }
    parts = {"retain": data.parts["test"], "forget": data.parts["forget_test"]}
    five = {"epochs": 5, "learning_rate": 1e-3, "batch_size": 256}
    methods: dict[str, tuple[str, dict[str, Any]]] = {
        "fine-tune": ("fine_tune", five),
        "Gaussian amnesiac": ("gaussian_amnesiac", {"preset": "paper", **five}),
        "blindspot": ("blindspot", {"preset": "paper", "blind_epochs": 10, **five}),
    }

    def blank(first: int) -> nn.Module:
        return build_seeded(data.network, first)

    for seed in range(seeds):
        began, rows = time.process_time(), {}

        def note(name: str, model: nn.Module, since: float, rows: Figures = rows) -> None:
            seconds = time.process_time() - since
            rows[name] = {f"{part} MSE": squared(model, one) for part, one in parts.items()}
            rows[name]["seconds"] = seconds

        networks = {}
        for name, split, epochs in (
            ("original", "train", 15),
            ("retrained", "retain", 15),
            ("blind network", "retain", 10),
        ):
            since = time.process_time()
            networks[name] = best_epoch(blank(seed), data.parts[split], validation[split], epochs, seed)
            note(name, networks[name], since)
        task = Task(
            input_shape=data.card.input_shape,
            outputs=data.outputs,
            forget_classes=(),
            blank=blank,
            forget=data.parts["forget"],
            retain=data.parts["retain"],
            targets="values",
        )
        for name, (method, asked) in methods.items():
            since = time.process_time()
            recipe = as_plain(data.recipe)
            result = unlearn(networks["original"], task, name=method, settings=asked, recipe=recipe, seed=seed)
            note(name, result.model, since)
        yield line("stsb", settings[0], seed, rows, began, settings={name: one for name, (_, one) in methods.items()})


def squared(model: nn.Module, rows: Rows) -> float:
    """The mean squared error."""
    return mse(point(predict(model, rows), ()), rows.targets)


def best_epoch(model: nn.Module, rows: Samples, validation: Rows, epochs: int, seed: int) -> nn.Module:
    """The model after the epoch that served best on validation rows: Adam at 0.01, cut by ten on a plateau of ten."""
    draws = generator(seed, "train")
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, factor=0.1, patience=10)
    best, weights = float("inf"), {}
    for _ in range(epochs):
        optimise(
            model,
            rows,
            optimiser=optimiser,
            epochs=1,
            batch_size=256,
            generator=draws,
            loss=loss_of("mse"),
        )
        error = squared(model, validation)
        plateau.step(error)
        if error < best:
            best, weights = error, {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(weights)
    return model.eval()


RERUNS: dict[str, tuple[Callable[[Path, int, Sequence[str]], Iterator[Line]], tuple[str, ...], int]] = {
    "gkt": (gkt, tuple(GKT), 1),
    "unsir": (unsir, (*(f"{how}, ResNet-18" for how in UNSIR), "code, ResNet-20"), 1),
    "rocket": (rocket, tuple(ROCKET), 3),
    "super0": (super0, tuple(SUPER0), 3),
    "stsb": (stsb, ("code",), 3),
}
"""Name of a run to what does it, its settings, and seeds; some fill two tables."""
