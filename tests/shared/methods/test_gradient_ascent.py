import math
from dataclasses import replace

import pytest
import torch
from support.digits import case, score
from torch import nn

from unlearning.data.samples import TensorSamples
from unlearning.methods.gradient_ascent import GradientAscentConfig, ascent_loss, clipped, configure, distill
from unlearning.methods.task import Task
from unlearning.training import generator, predict


def test_the_loss_is_minus_the_cross_entropy() -> None:
    logits = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])
    assert ascent_loss(logits, torch.tensor([0, 1])).item() == pytest.approx((math.log(0.75) + math.log(0.5)) / 2)


@pytest.mark.parametrize(("norm", "expected"), [(1.0, [0.6, 0.8]), (5.0, [3.0, 4.0]), (9.0, [3.0, 4.0])])
def test_a_clipped_step_has_at_most_the_norm_and_the_gradients_direction(norm: float, expected: list[float]) -> None:
    weight = nn.Parameter(torch.zeros(2))
    optimiser = clipped(torch.optim.SGD([weight], lr=1.0), norm)
    weight.grad = torch.tensor([-3.0, -4.0])
    optimiser.step()
    assert weight.tolist() == pytest.approx(expected, rel=1e-5)


def by_hand(retain: TensorSamples | None) -> tuple[nn.Module, Task]:
    model = nn.Linear(1, 2, bias=False)
    nn.init.zeros_(model.weight)
    ones = TensorSamples(torch.ones(4, 1), torch.zeros(4, dtype=torch.int64), mean=[0.0], std=[1.0])
    return model, Task(
        input_shape=(1,),
        outputs=2,
        forget_classes=(),
        blank=lambda seed: nn.Linear(1, 2, bias=False),
        forget=ones,
        retain=retain,
    )


def test_one_step_by_hand_climbs() -> None:
    # Weights 0, input 1, class 0: the gradient of -CE by the weights is (1/2, -1/2); a step of 0.1 gives (-.05, .05).
    model, task = by_hand(None)
    config = GradientAscentConfig(learning_rate=0.1, batch_size=4)
    student, record = distill(model, task, config=config, generator=generator(0, "distill"))
    assert next(student.parameters()).flatten().tolist() == pytest.approx([-0.05, 0.05])
    assert record.histories == {"loss": [pytest.approx(-math.log(2))]}
    assert record.notes == {"stopped": "all steps taken", "steps": 1}


def test_the_last_model_within_the_bound_of_the_retain_loss_is_returned() -> None:
    # The retain rows are the forget rows: their loss is ln(1 + exp(margin)), and the margin grows by 0.1 with each of
    # the first steps (a little more later), so it leaves ln 2 + 0.11 at the third.
    rows = TensorSamples(torch.ones(4, 1), torch.zeros(4, dtype=torch.int64), mean=[0.0], std=[1.0])
    model, task = by_hand(rows)
    config = GradientAscentConfig(learning_rate=0.1, batch_size=2, retain_loss_rise=0.05)
    student, record = distill(model, task, config=config, generator=generator(0, "distill"))
    assert record.notes["stopped"] == "the retain loss rose too far"
    losses = record.histories["retain_loss"]
    assert losses[0] == pytest.approx(math.log(2))
    assert losses[-1] > losses[0] + 0.05 >= losses[-2]
    assert nn.functional.cross_entropy(predict(student, rows), rows.targets).item() == pytest.approx(losses[-2])


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_for_values_the_bound_is_a_share_of_what_answering_the_mean_would_lose(scale: float) -> None:
    # Retain targets 0 and 2: their mean loses 1 (times the scale squared), so the retain loss may rise by 0.3 of that.
    rows = TensorSamples(torch.ones(2, 1), scale * torch.tensor([0.0, 2.0]), mean=[0.0], std=[1.0])
    gone = TensorSamples(torch.ones(40, 1), scale * torch.zeros(40), mean=[0.0], std=[1.0])
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, scale)
    task = Task(
        input_shape=(1,), outputs=1, forget_classes=(), blank=lambda seed: nn.Linear(1, 1), forget=gone, retain=rows
    )
    config = GradientAscentConfig(
        learning_rate=0.1 * scale, batch_size=2, retain_loss_rise=0.3, error="mse", clip_norm=1.0
    )
    student, record = distill(model, replace(task, targets="values"), config=config, generator=generator(0, "distill"))
    # The weight grows by 0.1 a step; the loss of the retain rows is 1 + (weight - 1)^2.
    assert [loss / scale**2 for loss in record.histories["retain_loss"]] == pytest.approx(
        [1 + (0.1 * step) ** 2 for step in range(7)], rel=1e-4
    )
    assert next(student.parameters()).item() / scale == pytest.approx(1.5)


def test_at_most_an_epoch_of_the_forget_rows_is_taken() -> None:
    model, task = by_hand(None)
    for share, steps in ((1.0, 2), (0.5, 1), (0.01, 1)):
        config = GradientAscentConfig(batch_size=2, share_of_epoch=share)
        _, record = distill(model, task, config=config, generator=generator(0, "distill"))
        assert record.notes["steps"] == steps


def test_a_digit_gets_worse_while_the_others_stay_within_the_bound() -> None:
    digits = case("class")
    config = configure({}, digits.facts)
    student, record = distill(digits.original, digits.task, config=config, generator=generator(0, "distill"))
    assert digits.forget_accuracy(student) < 0.9 < digits.forget_accuracy(digits.original)
    assert score(student, digits.retain_test) > 0.85
    bound = record.histories["retain_loss"][0] + config.retain_loss_rise
    assert all(loss <= bound for loss in record.histories["retain_loss"][:-1])
    unbound, _ = distill(
        digits.original,
        replace(digits.task, retain=None),
        config=replace(config, learning_rate=0.5),
        generator=generator(0, "distill"),
    )
    assert score(unbound, digits.retain_test) < 0.5  # which is what the bound is for
