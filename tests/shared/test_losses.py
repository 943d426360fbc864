import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unlearning.losses import LOSSES, loss_of, pinball_loss, point
from unlearning.training import generator


def random(*shape: int, purpose: str = "values") -> Tensor:
    return torch.randn(shape, generator=generator(0, purpose))


def test_the_losses_of_values_by_hand() -> None:
    outputs, targets = torch.tensor([[1.0], [4.0]]), torch.tensor([3.0, 3.0])
    assert loss_of("l1")(outputs, targets).item() == 1.5
    assert loss_of("mse")(outputs, targets).item() == 2.5
    # errors 2 and -1: 0.9 * 2 and 0.1 * 1
    assert loss_of("quantile", (0.9,))(outputs, targets).item() == pytest.approx((1.8 + 0.1) / 2)


def test_classes_are_taught_by_cross_entropy() -> None:
    logits, targets = random(5, 3), torch.tensor([0, 1, 2, 0, 1])
    assert torch.equal(loss_of("cross_entropy")(logits, targets), F.cross_entropy(logits, targets))


def test_a_forecast_has_an_error_for_each_of_its_values() -> None:
    outputs, targets = random(4, 3), random(4, 3, purpose="targets")
    assert loss_of("l1")(outputs, targets).item() == pytest.approx((outputs - targets).abs().mean().item())
    assert loss_of("mse")(outputs, targets).item() == pytest.approx((outputs - targets).square().mean().item())


@pytest.mark.parametrize("name", ["l1", "mse"])
@pytest.mark.parametrize("shapes", [((4, 1), (4, 2)), ((4, 2), (4,)), ((4, 4), (4, 1)), ((4,), (4, 1))])
def test_outputs_are_never_broadcast_to_targets(name: str, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="do not fit targets"):
        loss_of(name)(random(*shapes[0]), random(*shapes[1]))


def test_quantiles_are_the_last_axis_of_a_forecast_by_a_slow_loop() -> None:
    levels, outputs, targets = (0.1, 0.5, 0.8), random(4, 2 * 3), random(4, 2, purpose="targets")
    total = 0.0
    for b in range(4):
        for h in range(2):
            for q, level in enumerate(levels):
                error = (targets[b, h] - outputs[b, 3 * h + q]).item()
                total += level * error if error >= 0 else (level - 1) * error
    assert loss_of("quantile", levels)(outputs, targets).item() == pytest.approx(total / 8)
    with pytest.raises(ValueError, match=r"outputs \(4, 6\) do not fit 2 quantiles of targets \(4, 2\)"):
        loss_of("quantile", (0.1, 0.9))(outputs, targets)


@settings(deadline=None, max_examples=30)
@given(st.floats(0.05, 0.95), st.integers(0, 1000))
def test_the_pinball_loss_is_least_at_the_quantile_itself(level: float, seed: int) -> None:
    values = torch.randn(201, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    best = values.quantile(level)

    def loss(guess: Tensor) -> float:
        return pinball_loss(guess.expand(201, 1, 1), values, (level,)).item()

    assert loss(best) <= min(loss(best - 0.1), loss(best + 0.1)) + 1e-9


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "cross_entropy"])
def test_a_loss_has_gradients_and_no_surprises_at_a_perfect_answer(name: str) -> None:
    quantiles = (0.5,) if name == "quantile" else ()
    outputs = torch.ones((3, 1), requires_grad=True)
    value = loss_of(name, quantiles)(outputs, torch.ones(3))
    value.backward()
    assert value.item() == 0.0
    assert outputs.grad is not None
    assert bool(outputs.grad.isfinite().all())


@pytest.mark.parametrize(
    ("name", "quantiles", "message"),
    [
        ("mae", (), 'loss must be one of cross_entropy, l1, mse, quantile, got "mae"'),
        ("mse", (0.5,), "quantiles go with the quantile loss only"),
        ("quantile", (), r"rising quantiles in \(0, 1\), got \[\]"),
        ("quantile", (0.5, 0.1), "rising quantiles"),
        ("quantile", (0.5, 0.5), "rising quantiles"),
        ("quantile", (0.0, 0.5), "rising quantiles"),
    ],
)
def test_a_loss_that_there_is_not_is_refused(name: str, quantiles: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss_of(name, quantiles)


def test_the_point_prediction_is_the_output_or_the_median() -> None:
    assert point(torch.tensor([[1.0], [2.0]])).tolist() == [1.0, 2.0]
    assert point(random(3, 2)).shape == (3, 2)
    two = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])
    assert point(two, (0.1, 0.5, 0.9)).tolist() == [[2.0, 5.0]]
    assert point(two, (0.2, 0.3, 0.4, 0.6, 0.8, 0.9)).tolist() == [3.0]  # none is 0.5: the first of the nearest
    with pytest.raises(ValueError, match="6 outputs are no multiple of 4 quantiles"):
        point(two, (0.1, 0.2, 0.3, 0.4))
