"""What two processes make together, or one by itself: run by torchrun, or as it is; the results go to a file.

python -m support.shared_work FILE
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unlearning.data.samples import Rows, TensorSamples
from unlearning.methods import METHODS
from unlearning.methods.task import Task
from unlearning.models.architectures import build
from unlearning.processes import by_each, joined, team
from unlearning.speed import Speed, using
from unlearning.training import Recipe, build_seeded, generator, predict, train

SHAPE = (3, 16, 16)


def data() -> TensorSamples:
    """Images of four classes, each brighter in its own rows of pixels."""
    pixels = torch.randint(128, (96, *SHAPE), generator=generator(2, "pixels"), dtype=torch.uint8)
    targets = torch.arange(96) % 4
    for row, target in enumerate(targets.tolist()):
        pixels[row, :, 4 * target : 4 * target + 4] += 100
    return TensorSamples(pixels, targets, mean=[0.5] * 3, std=[0.25] * 3)


def convolutions() -> nn.Module:
    """Without BatchNorm or dropout: rows do not meet."""
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(64, 4))


def blank(seed: int) -> nn.Module:
    """A network with BatchNorm."""
    return build_seeded(lambda: build("allcnn", {"width": 0.1}, input_shape=SHAPE, outputs=4), seed)


def task(rows: TensorSamples) -> Task:
    """Class 0 is to be forgotten."""
    forget = torch.arange(0, 96, 4)
    retain = torch.tensor([row for row in range(96) if row % 4])
    return Task(
        input_shape=SHAPE,
        outputs=4,
        forget_classes=(0,),
        blank=blank,
        forget=Rows(rows, forget),
        retain=Rows(rows, retain),
    )


def run() -> dict[str, Any]:
    """Everything that is compared."""
    rows, found = data(), {}
    recipe = Recipe(epochs=2, batch_size=25, optimiser="sgd", learning_rate=0.05, augmentation="shift_flip")
    plain = build_seeded(convolutions, 0)
    found["plain.losses"] = train(plain, rows, recipe, generator=generator(0, "order"))
    found["plain"] = plain.state_dict()
    thrifty = build_seeded(convolutions, 0)
    with using(Speed(micro_batch=4)):
        train(thrifty, rows, recipe, generator=generator(0, "order"))
    found["in parts"] = thrifty.state_dict()
    model = blank(0)
    found["model.losses"] = train(model, rows, recipe, generator=generator(0, "order"))
    found["model"] = model.state_dict()
    step = blank(0)
    train(step, rows, Recipe(epochs=1, batch_size=96, optimiser="sgd"), generator=generator(0, "order"))
    found["one step"] = step.state_dict()
    found["predicted"] = predict(model, rows, batch_size=7)
    found["lone"] = predict(model, Rows(rows, torch.tensor([5])))
    learner = blank(0)
    train(learner, rows, Recipe(epochs=4, batch_size=16, learning_rate=0.01), generator=generator(0, "order"))
    found["original"] = (predict(learner, rows).argmax(1) == rows.targets).float()
    given = task(rows)
    row = METHODS["unsir"]
    facts = {"noise_batch": 9, "noise_steps": 10, "noise_images": 24, "batch_size": 16, "impair_epochs": 4}
    config = row.configure(facts | {"repair_epochs": 2, "impair_learning_rate": 0.02}, _facts())
    noise = row.stage("synthesize")(
        learner, input_shape=SHAPE, forget_classes=[0, 2], config=config, generator=generator(0, "synthesize")
    )
    found["noise"], found["objective"] = noise.images, noise.objective
    noise = row.stage("synthesize")(
        learner, input_shape=SHAPE, forget_classes=[0], config=config, generator=generator(0, "synthesize")
    )
    worse, _ = row.stage("impair")(learner, noise, given.retain, config=config, generator=generator(0, "impair"))
    better, _ = row.stage("repair")(worse, given.retain, config=config, generator=generator(0, "repair"))
    found["unsir"] = (predict(better, rows).argmax(1) == rows.targets).float()
    row = METHODS["incompetent_teacher"]
    config = row.configure({"epochs": 4, "batch_size": 16, "watch": "never", "learning_rate": 3e-3}, _facts())
    student, _ = row.stage("distill")(learner, given, config=config, generator=generator(0, "distill"))
    found["student"] = (predict(student, rows).argmax(1) == rows.targets).float()
    found["jobs"] = by_each(
        range(5),
        lambda job: (
            job,
            team().size,
            float(
                train(build_seeded(convolutions, job), rows, Recipe(epochs=1), generator=generator(job, "order"))[-1]
            ),
        ),
    )
    found["team"] = (team().rank, team().size)
    return found


def _facts() -> Any:
    from unlearning.methods import Facts

    return Facts(retain_rows=72, retain_per_class=24, input_size=3 * 16 * 16, forget_classes=1)


def main() -> None:
    """Each process writes its own file: FILE.RANK."""
    torch.set_num_threads(1)
    with joined() as here:
        found = run()
        torch.save(found, Path(f"{sys.argv[1]}.{here.rank}"))


if __name__ == "__main__":
    main()
