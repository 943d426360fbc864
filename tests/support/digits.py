"""Handwritten digits to forget from: a class, or some rows; the model that knows them and the one that never did."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from unlearning.attacks.membership import cross_entropy, population_attack
from unlearning.data.samples import Rows, Samples, TensorSamples
from unlearning.methods import Facts
from unlearning.methods.task import Task
from unlearning.metrics.accuracy import accuracy
from unlearning.models.architectures import build
from unlearning.training import Recipe, build_seeded, generator, predict, train

GONE = 3
RECIPE = Recipe(epochs=20, learning_rate=0.005, batch_size=64)


@dataclass(frozen=True)
class Case:
    """A request on the digits; held-out rows are those of the same rule, and the calibration rows are not of them."""

    original: nn.Module
    retrained: nn.Module
    task: Task
    facts: Facts
    forget_test: Samples
    retain_test: Samples

    def forget_accuracy(self, model: nn.Module) -> float:
        """On the forgotten training rows."""
        return score(model, self.task.forget)

    def forget_auc(self, model: nn.Module) -> float:
        """Of the loss attack: forgotten training rows against held-out ones."""
        losses = [
            cross_entropy(predict(model, rows), rows.targets) for rows in (self.task.forget, self.forget_test) if rows
        ]
        return population_attack(*losses).auc


def score(model: nn.Module, rows: Samples | None) -> float:
    assert rows is not None
    return accuracy(predict(model, rows), rows.targets)


def blank(seed: int) -> nn.Module:
    return build_seeded(lambda: build("lenet5", {}, input_shape=(1, 8, 8), outputs=10), seed)


def trained(rows: Samples, seed: int) -> nn.Module:
    model = blank(seed)
    train(model, rows, RECIPE, generator=generator(seed, "train"))
    return model


@cache
def _digits() -> tuple[TensorSamples, Tensor, Tensor, Tensor, nn.Module]:
    data = load_digits()
    pixels = torch.from_numpy(np.round(data.images / 16 * 255).astype(np.uint8))[:, None]
    samples = TensorSamples(pixels, torch.from_numpy(data.target).long(), mean=[0.305], std=[0.376])
    order = torch.randperm(len(pixels), generator=generator(0, "split"))
    seen, calibration, test = order[:1000], order[1000:1300], order[1300:]
    return samples, seen, calibration, test, trained(Rows(samples, seen), 0)


@cache
def case(kind: str) -> Case:
    """Forget the class `GONE` ("class"), or every twentieth training row ("rows")."""
    samples, seen, calibration, test, original = _digits()
    whole = kind == "class"
    gone = samples.targets[seen] == GONE if whole else torch.arange(len(seen)) % 20 == 0
    same_rule = samples.targets[test] == GONE if whole else torch.ones(len(test), dtype=torch.bool)
    forget, retain = Rows(samples, seen[gone]), Rows(samples, seen[~gone])
    counts = torch.bincount(retain.targets)
    return Case(
        original=original,
        retrained=trained(retain, 1),
        task=Task(
            input_shape=(1, 8, 8),
            outputs=10,
            forget_classes=(GONE,) if whole else (),
            blank=blank,
            forget=forget,
            retain=retain,
            calibration=Rows(samples, calibration),
        ),
        facts=Facts(
            retain_rows=len(retain),
            retain_per_class=int(counts[counts > 0].median()),
            input_size=64,
            forget_classes=int(whole),
        ),
        forget_test=Rows(samples, test[same_rule]),
        retain_test=Rows(samples, test[~same_rule] if whole else test),
    )
