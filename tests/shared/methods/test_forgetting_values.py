"""What the methods for values are for, on real data: low disease scores are forgotten, the others are not."""

from functools import cache
from statistics import mean

import pytest
import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn

from unlearning.data.samples import Rows, Samples, TensorSamples
from unlearning.losses import point
from unlearning.methods.apply import unlearn
from unlearning.methods.task import Task
from unlearning.metrics.regression import mae, wasserstein
from unlearning.models.architectures import build
from unlearning.training import Recipe, build_seeded, generator, predict, train

LOW = 0.9
SEEDS = (1, 2, 3)
RECIPE = {"epochs": 60, "learning_rate": 3e-3, "batch_size": 32, "loss": "l1", "optimiser": "adam"}


def blank(seed: int) -> nn.Module:
    return build_seeded(lambda: build("mlp", {"hidden": (64, 64)}, input_shape=(10,), outputs=1), seed)


@cache
def diabetes() -> tuple[Task, Samples, Samples, nn.Module]:
    """Patients whose score a year on was below 0.9 (0.25 to 3.46) are forgotten: a quarter of them."""
    data = load_diabetes()
    inputs, scores = (torch.from_numpy(values).float() for values in (data.data, data.target / 100))
    samples = TensorSamples(inputs, scores, mean=[0.0] * 10, std=[0.0476] * 10)
    order = torch.randperm(len(scores), generator=generator(0, "split"))
    seen, test = order[:342], order[342:]
    low = scores < LOW
    task = Task(
        input_shape=(10,),
        outputs=1,
        forget_classes=(),
        blank=blank,
        forget=Rows(samples, seen[low[seen]]),
        retain=Rows(samples, seen[~low[seen]]),
        targets="values",
    )
    original = blank(0)
    train(original, Rows(samples, seen), Recipe(**RECIPE), generator=generator(0, "train"))  # type: ignore[arg-type]
    return task, Rows(samples, test[low[test]]), Rows(samples, test[~low[test]]), original


@cache
def unlearned(name: str, seed: int) -> nn.Module:
    task, _, _, original = diabetes()
    return unlearn(original, task, name=name, recipe=RECIPE, seed=seed).model


def answers(model: nn.Module, rows: Samples | None) -> Tensor:
    assert rows is not None
    return point(predict(model, rows))


def error(model: nn.Module, rows: Samples | None) -> float:
    assert rows is not None
    return mae(answers(model, rows), rows.targets)


def apart(name: str, rows: Samples | None) -> float:
    """How far the mean error of three runs is from the retrained networks' of the same seeds."""
    return abs(mean(error(unlearned(name, seed), rows) - error(unlearned("retrain", seed), rows) for seed in SEEDS))


def test_there_is_something_to_forget() -> None:
    task, forget_test, retain_test, original = diabetes()
    retrained = unlearned("retrain", 1)
    assert error(original, task.forget) < 0.5 * error(retrained, task.forget)
    assert error(original, forget_test) < 0.8 * error(retrained, forget_test)
    assert error(retrained, retain_test) < 0.6


@pytest.mark.parametrize("baseline", ["fine_tune", "gaussian_amnesiac"])
def test_on_rows_never_seen_blindspot_is_closer_to_the_retrained_network_than_a_baseline(baseline: str) -> None:
    _, forget_test, retain_test, _ = diabetes()
    assert apart("blindspot", forget_test) < 0.6 * apart(baseline, forget_test)
    assert apart("blindspot", retain_test) < apart(baseline, retain_test)


def test_what_blindspot_says_of_the_forgotten_rows_is_closer_than_what_is_left_after_fine_tuning() -> None:
    task, _, _, original = diabetes()
    assert apart("blindspot", task.forget) < 0.5 * apart("fine_tune", task.forget)
    for seed in SEEDS:
        reference = answers(unlearned("retrain", seed), task.forget)
        ours, tuned = (
            wasserstein(answers(unlearned(name, seed), task.forget), reference) for name in ("blindspot", "fine_tune")
        )
        assert ours < 0.7 * tuned
        assert ours < 0.5 * wasserstein(answers(original, task.forget), reference)


def test_blindspot_keeps_what_is_retained() -> None:
    _, _, retain_test, _ = diabetes()
    for seed in SEEDS:
        assert error(unlearned("blindspot", seed), retain_test) < 1.1 * error(unlearned("retrain", seed), retain_test)


@pytest.mark.parametrize("name", ["gaussian_amnesiac", "gradient_ascent", "negative_gradient_plus"])
def test_the_others_make_the_forgotten_scores_worse_and_are_of_some_use_on_the_rest(name: str) -> None:
    task, _, retain_test, original = diabetes()
    assert error(unlearned(name, 1), task.forget) > 1.2 * error(original, task.forget)
    assert error(unlearned(name, 1), retain_test) < 1.3 * error(unlearned("retrain", 1), retain_test)
