"""What the method is for, on real data: a class of handwritten digits is forgotten, the others are not."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from unlearning.data.samples import Rows, Samples, TensorSamples
from unlearning.methods import METHODS, Facts
from unlearning.metrics.accuracy import accuracy
from unlearning.models.architectures import build
from unlearning.training import Recipe, build_seeded, generator, predict, train

GONE = 3
SEED = 0


def digits() -> tuple[TensorSamples, TensorSamples]:
    data = load_digits()
    pixels = torch.from_numpy(np.round(data.images / 16 * 255).astype(np.uint8))[:, None]
    order = torch.randperm(len(pixels), generator=generator(0, "split"))
    targets = torch.from_numpy(data.target).long()
    train_rows, test_rows = order[:1300], order[1300:]
    return (
        TensorSamples(pixels[train_rows], targets[train_rows], mean=[0.305], std=[0.376]),
        TensorSamples(pixels[test_rows], targets[test_rows], mean=[0.305], std=[0.376]),
    )


def of_class(samples: Samples, wanted: bool) -> Rows:
    return Rows(samples, torch.where((samples.targets == GONE) == wanted)[0])


def score(model: nn.Module, samples: Samples) -> float:
    return accuracy(predict(model, samples), samples.targets)


def test_unsir_forgets_a_class_of_digits_and_keeps_the_others() -> None:
    seen, unseen = digits()
    original = build_seeded(lambda: build("allcnn", {"width": 0.125}, input_shape=(1, 8, 8), outputs=10), SEED)
    recipe = Recipe(epochs=8, learning_rate=0.003, batch_size=64)
    train(original, seen, recipe, generator=generator(SEED, "train"))
    retain = of_class(seen, False)
    row = METHODS["unsir"]
    counts = torch.bincount(retain.targets)
    config = row.configure(
        {},
        Facts(
            retain_rows=len(retain),
            retain_per_class=int(counts[counts > 0].median()),
            input_size=64,
            forget_classes=1,
        ),
    )
    noise = row.stage("synthesize")(
        original, input_shape=(1, 8, 8), forget_classes=[GONE], config=config, generator=generator(SEED, "synthesize")
    )
    impaired, _ = row.stage("impair")(original, noise, retain, config=config, generator=generator(SEED, "impair"))
    unlearned, _ = row.stage("repair")(impaired, retain, config=config, generator=generator(SEED, "repair"))
    before = score(original, of_class(unseen, False))
    assert before > 0.9
    assert score(original, of_class(unseen, True)) > 0.9
    assert score(unlearned, of_class(unseen, True)) <= 0.05
    assert score(unlearned, of_class(seen, True)) <= 0.05  # nor are the very rows it was learned from
    assert score(unlearned, of_class(unseen, False)) >= 0.9 * before
