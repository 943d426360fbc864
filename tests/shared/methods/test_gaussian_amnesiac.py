import math

import pytest
import torch
from torch import nn

from unlearning.data.samples import TensorSamples
from unlearning.errors import UsageError
from unlearning.methods import Facts
from unlearning.methods.gaussian_amnesiac import GaussianAmnesiacConfig, configure, distill, gaussian_targets
from unlearning.methods.task import Task
from unlearning.training import build_seeded, generator, predict


def test_values_are_drawn_like_the_targets_of_all_training_rows() -> None:
    observed = 7 + 2 * torch.randn(500, generator=generator(0, "observed"))
    drawn = gaussian_targets(observed, 20_000, clip=False, generator=generator(0, "draw"))
    assert drawn.mean().item() == pytest.approx(observed.mean().item(), abs=0.05)
    assert drawn.std().item() == pytest.approx(observed.std().item(), abs=0.05)


def test_the_deviation_is_the_samples_by_hand() -> None:
    observed = torch.tensor([1.0, 3.0])  # mean 2, sample deviation sqrt(2), not 1
    noise = torch.randn(4, generator=generator(0, "draw"))
    drawn = gaussian_targets(observed, 4, clip=False, generator=generator(0, "draw"))
    assert drawn.tolist() == pytest.approx((2 + math.sqrt(2) * noise).tolist())


def test_clipped_values_stay_in_the_observed_range_and_others_are_not_moved() -> None:
    observed = torch.tensor([0.0, 0.0, 0.0, 5.0])
    free = gaussian_targets(observed, 1000, clip=False, generator=generator(0, "draw"))
    clipped = gaussian_targets(observed, 1000, clip=True, generator=generator(0, "draw"))
    assert free.min() < 0
    assert torch.equal(clipped, free.clamp(0, 5))


def test_each_step_of_a_forecast_has_its_own_distribution() -> None:
    observed = torch.tensor([[0.0, 100.0], [1.0, 300.0], [2.0, 200.0]])
    drawn = gaussian_targets(observed, 5000, clip=True, generator=generator(0, "draw"))
    assert drawn.shape == (5000, 2)
    assert drawn.mean(0).tolist() == pytest.approx([1, 200], rel=0.05)
    assert drawn[:, 1].min() >= 100


def test_a_single_target_has_no_deviation() -> None:
    with pytest.raises(ValueError, match="two or more targets, got 1"):
        gaussian_targets(torch.ones(1), 3, clip=True, generator=generator(0, "draw"))


def test_every_forget_row_is_taught_one_value_that_never_changes() -> None:
    inputs = torch.eye(6)
    forget = TensorSamples(inputs[:2], torch.tensor([0.0, 1.0]), mean=[0.0], std=[1.0])
    retain = TensorSamples(inputs[2:], torch.tensor([0.0, 1.0, 2.0, 3.0]), mean=[0.0], std=[1.0])
    task = Task(
        input_shape=(6,),
        outputs=1,
        forget_classes=(),
        blank=lambda seed: build_seeded(lambda: nn.Linear(6, 1), seed),
        forget=forget,
        retain=retain,
        targets="values",
    )
    config = GaussianAmnesiacConfig(epochs=600, batch_size=6, learning_rate=0.05, error="mse")
    student, record = distill(task.blank(0), task, config=config, generator=generator(0, "distill"))
    observed = torch.tensor([0.0, 1.0, 0.0, 1.0, 2.0, 3.0])
    drawn = gaussian_targets(observed, 2, clip=True, generator=generator(0, "distill"))
    assert predict(student, forget).squeeze(1).tolist() == pytest.approx(drawn.tolist(), abs=0.02)
    assert predict(student, retain).squeeze(1).tolist() == pytest.approx([0, 1, 2, 3], abs=0.02)
    assert record.notes["target_mean"] == pytest.approx(7 / 6)


def test_the_published_settings_and_what_is_refused() -> None:
    facts = Facts.of(rows=10_000, input_shape=(6,), recipe={"loss": "l1"})
    config = configure({"preset": "paper"}, facts)
    assert (config.clip, config.epochs, config.learning_rate, config.batch_size) == ("none", 1, 1e-3, 256)
    assert (config.schedule, config.error) == ("constant", "l1")
    assert configure({"preset": "paper", "epochs": 5}, facts).epochs == 5
    with pytest.raises(UsageError, match="cross_entropy is of classes"):
        configure({"error": "cross_entropy"}, facts)
    with pytest.raises(UsageError, match=r"epochs must be at least 1.*learning_rate must be a positive number"):
        configure({"epochs": 0, "learning_rate": 0}, facts)
