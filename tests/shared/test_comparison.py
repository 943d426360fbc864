import math
from typing import Any

import pytest
import torch
from torch import nn

from unlearning.comparison import COLUMNS, VALUE_COLUMNS, Candidate, compare, measured
from unlearning.data.samples import TensorSamples
from unlearning.errors import UsageError
from unlearning.methods.task import Task
from unlearning.training import build_seeded, generator

RECIPE = {"epochs": 2, "learning_rate": 0.01, "batch_size": 16, "optimiser": "adam"}


def blank(seed: int) -> nn.Module:
    return build_seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)), seed)


def rows(targets: torch.Tensor, name: str) -> TensorSamples:
    return TensorSamples(
        torch.rand((len(targets), 1, 4, 4), generator=generator(0, name)), targets, mean=[0.5], std=[0.3]
    )


@pytest.fixture
def task() -> Task:
    return Task(
        input_shape=(1, 4, 4),
        outputs=3,
        forget_classes=(2,),
        blank=blank,
        forget=rows(torch.full((12,), 2), "forget"),
        retain=rows(torch.arange(40) % 2, "retain"),
    )


@pytest.fixture
def sets(task: Task) -> dict[str, Any]:
    assert task.forget is not None
    return {
        "forget.train": task.forget,
        "forget.test": rows(torch.full((6,), 2), "forget test"),
        "retain.test": rows(torch.arange(20) % 2, "retain test"),
    }


class Fixed(nn.Module):
    """Says of every row that it is of one class, with this margin."""

    def __init__(self, index: int, margin: float = 1.0) -> None:
        super().__init__()
        self.logits = nn.Parameter(margin * torch.eye(3)[index])

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.logits * torch.ones(len(inputs), 1)


def test_what_is_measured_by_hand(sets: dict[str, Any]) -> None:
    # class 0 of every row: right on half of the retain rows, on no forget row; one loss for all, so the attack is blind
    assert measured(Fixed(0), sets)[0] == {
        "forget_accuracy.train": 0.0,
        "forget_accuracy.test": 0.0,
        "retain_accuracy.test": 0.5,
        "membership_auc.loss.forget": 0.5,
    }
    del sets["forget.test"]  # retain.test stands in: its rows have class 0 at a lower loss, or class 1 at the same
    figures, logits = measured(Fixed(0), sets)
    assert logits.tolist() == [[1.0, 0.0, 0.0]] * 12
    assert "forget_accuracy.test" not in figures
    assert figures["membership_auc.loss.forget"] == pytest.approx(0.25)


def test_gaps_are_against_the_retrained_model(task: Task, sets: dict[str, Any]) -> None:
    found = list(compare(Fixed(2), Fixed(0), task, sets, names=[], settings={}, recipe=RECIPE, seeds=[4]))
    assert [(one.name, one.seed) for one in found] == [("original", 4), ("retrained", 4)]
    original, retrained = (one.figures for one in found)
    assert set(original) == set(COLUMNS) - {"seconds"}
    assert (original["forgetting_gap"], original["utility_gap"], original["membership_gap"]) == (1.0, -0.5, 0.0)
    e = math.e / (math.e + 2)  # probabilities (e, r, r) against (r, r, e): only two classes differ
    r, m = (1 - e) / 2, (e + (1 - e) / 2) / 2
    assert original["divergence"] == pytest.approx(e * math.log2(e / m) + r * math.log2(r / m))
    assert retrained["divergence"] == 0
    assert (retrained["forgetting_gap"], retrained["utility_gap"], retrained["membership_gap"]) == (0.0, 0.0, 0.0)


def test_every_method_runs_with_every_seed_and_the_original_stays_as_it_is(task: Task, sets: dict[str, Any]) -> None:
    original = blank(0)
    before = [weight.clone() for weight in original.parameters()]
    phases: set[str] = set()
    found = list(
        compare(
            original,
            blank(1),
            task,
            sets,
            names=["unsir", "fine_tune"],
            settings={"unsir": {"noise_steps": 2, "noise_batch": 4}},
            recipe=RECIPE,
            seeds=[0, 1],
            progress=lambda phase, *_: phases.add(phase),
        )
    )
    runs = [(one.name, one.seed) for one in found[2:]]
    assert runs == [("unsir", 0), ("unsir", 1), ("fine_tune", 0), ("fine_tune", 1)]
    for one in found[2:]:
        assert one.failed == ""
        assert set(one.figures) == set(COLUMNS)
        assert all(math.isfinite(value) for value in one.figures.values())
        assert one.figures["seconds"] > 0
    assert phases == {"unsir synthesize", "unsir impair", "unsir repair", "fine_tune distill"}
    assert all(torch.equal(a, b) for a, b in zip(before, original.parameters(), strict=True))


def test_a_method_that_breaks_down_is_a_finding_and_a_mistake_is_an_error(task: Task, sets: dict[str, Any]) -> None:
    def run(name: str, settings: dict[str, Any]) -> list[Candidate]:
        return list(
            compare(blank(0), blank(1), task, sets, names=[name], settings={name: settings}, recipe=RECIPE, seeds=[0])
        )

    broken = run("fine_tune", {"learning_rate": 1e30, "epochs": 8})[-1]
    assert (broken.name, broken.figures) == ("fine_tune", {})
    assert "loss" in broken.failed
    with pytest.raises(UsageError, match='unknown setting "rate"'):
        run("fine_tune", {"rate": 1})


class Says(nn.Module):
    """Predicts one value of every row."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor([value]))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.value * torch.ones(len(inputs), 1)


def test_regressors_are_compared_by_errors_as_shares_of_the_retrained_models(task: Task) -> None:
    sets = {
        "forget.train": rows(torch.full((12,), 10.0), "forget"),
        "forget.test": rows(torch.full((6,), 10.0), "forget test"),
        "retain.test": rows(torch.full((20,), 4.0), "retain test"),
    }
    found = list(compare(Says(9.0), Says(5.0), task, sets, names=[], settings={}, recipe={}, seeds=[0], values=True))
    original, retrained = (one.figures for one in found)
    assert set(original) == set(VALUE_COLUMNS) - {"seconds"}
    assert original == pytest.approx(
        {
            "forget_mae.train": 1.0,
            "forget_mae.test": 1.0,
            "retain_mae.test": 5.0,
            "forgetting_gap": 0.8,  # off by 1 where the retrained model is off by 5
            "utility_gap": -4.0,  # off by 5 where it is off by 1
            "membership_auc.residual.forget": 0.5,
            "membership_gap": 0.0,
            "wasserstein": 4.0,
        }
    )
    assert (retrained["forgetting_gap"], retrained["utility_gap"], retrained["wasserstein"]) == (0.0, 0.0, 0.0)


def test_the_methods_for_values_run_in_a_comparison() -> None:
    def values(count: int, name: str) -> TensorSamples:
        inputs = torch.randn((count, 4), generator=generator(0, name))
        return TensorSamples(inputs, inputs.sum(1), mean=[0.0], std=[1.0])

    def network(seed: int) -> nn.Module:
        return build_seeded(lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)), seed)

    task = Task(
        input_shape=(4,),
        outputs=1,
        forget_classes=(),
        blank=network,
        targets="values",
        forget=values(12, "forget"),
        retain=values(60, "retain"),
    )
    assert task.forget is not None
    sets = {"forget.train": task.forget, "retain.test": values(30, "test")}
    recipe = {**RECIPE, "loss": "mse"}
    names = ["blindspot", "gaussian_amnesiac", "fine_tune"]
    found = list(
        compare(network(0), network(1), task, sets, names=names, settings={}, recipe=recipe, seeds=[0], values=True)
    )
    assert [one.name for one in found] == ["original", "retrained", *names]
    for one in found[2:]:
        assert set(one.figures) == set(VALUE_COLUMNS) - {"forget_mae.test"}
        assert all(math.isfinite(value) for value in one.figures.values())
