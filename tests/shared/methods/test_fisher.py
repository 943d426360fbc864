import math
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from support.digits import GONE, case, score
from torch import Tensor, nn

from unlearning.data.samples import Rows, TensorSamples
from unlearning.methods.fisher import configure, distill, fisher_information, last_layer, noise_of
from unlearning.training import build_seeded, generator


def network() -> nn.Module:
    """Convolution, batch statistics, dropout: each of them must be asked in eval mode."""
    return build_seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(8, 3)
        ),
        0,
    )


def samples(count: int = 5) -> TensorSamples:
    inputs = torch.rand((count, 1, 4, 4), generator=generator(0, "inputs"))
    return TensorSamples(inputs, torch.arange(count) % 3, mean=[0.5], std=[0.3])


def one_at_a_time(model: nn.Module, rows: TensorSamples) -> dict[str, Tensor]:
    """The published loop: a backward pass for each row and class."""
    model.eval()
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for row in range(len(rows)):
        x, _ = rows.batch(torch.tensor([row]))
        for c in range(3):
            model.zero_grad()
            log_p = F.log_softmax(model(x), dim=1)[0]
            log_p[c].backward()
            for name, p in model.named_parameters():
                assert p.grad is not None
                total[name] += log_p[c].exp().detach() * p.grad.square() / len(rows)
    return total


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_the_information_is_that_of_the_slow_loop_and_leaves_the_model(batch_size: int) -> None:
    expected = one_at_a_time(network(), samples())
    model = network().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = fisher_information(model, samples(), batch_size=batch_size, generator=generator(0, "fisher"))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-8)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert all(module.training for module in model.modules())


def test_the_information_of_two_classes_by_hand() -> None:
    # Logits (w x, 0), p = s(w x) with s the logistic function: d log p_0 / dw = (1 - p) x, d log p_1 / dw = -p x, so
    # F = p (1 - p)^2 x^2 + (1 - p) p^2 x^2 = p (1 - p) x^2. With w = ln 3 and x = 1: p = 3/4; with x = 0: 0.
    model = nn.Linear(1, 2, bias=False)
    model.weight.data = torch.tensor([[math.log(3)], [0.0]])
    rows = TensorSamples(torch.tensor([[1.0], [0.0]]), torch.tensor([0, 0]), mean=[0.0], std=[1.0])
    found = fisher_information(model, rows, generator=generator(0, "fisher"))["weight"]
    assert found.flatten().tolist() == pytest.approx([3 / 32, 3 / 32])


def test_drawn_classes_give_the_same_information_on_average() -> None:
    model = nn.Linear(1, 2, bias=False)
    model.weight.data = torch.tensor([[math.log(3)], [0.0]])
    rows = TensorSamples(torch.ones(20_000, 1), torch.zeros(20_000, dtype=torch.int64), mean=[0.0], std=[1.0])
    found = fisher_information(model, rows, labels="sampled", batch_size=5000, generator=generator(0, "fisher"))
    # Each row gives 1/16 with chance 3/4, else 9/16: mean 3/16, deviation 1/2 * sqrt(3/16).
    assert found["weight"][0].item() == pytest.approx(3 / 16, abs=5 * 0.5 * math.sqrt(3 / 16 / 20_000))


def test_the_last_layer_is_the_last_map_to_the_outputs() -> None:
    assert last_layer(network(), 3) == {"5.weight", "5.bias"}
    assert last_layer(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), 4) == {"1.weight", "1.bias"}
    assert last_layer(nn.Linear(4, 4), 5) == frozenset()


def test_the_noise_of_an_inner_matrix_is_averaged_over_its_inputs_and_bounded() -> None:
    # 1 / F is 2 and 4, mean 3; the second row has no information: the bound of 1000, mean (1000 + 500) / 2.
    F_ = torch.tensor([[0.5, 0.25], [0.0, 0.002]])
    weight = torch.tensor([[1.0, -1.0], [2.0, 3.0]])
    mean, variance = noise_of("inner.weight", weight, F_, alpha=1e-3)
    assert torch.equal(mean, weight)
    torch.testing.assert_close(variance, torch.tensor([[3e-3, 3e-3], [0.75, 0.75]]))


def test_vectors_and_the_last_layer_get_ten_times_the_noise_the_latter_within_a_lower_bound() -> None:
    _, vector = noise_of("norm.weight", torch.ones(2), torch.tensor([0.5, 0.0]), alpha=1e-3)
    torch.testing.assert_close(vector, torch.tensor([0.02, 10.0]))
    _, last = noise_of("head.bias", torch.ones(2), torch.tensor([0.5, 0.0]), alpha=1e-3, last=frozenset({"head.bias"}))
    torch.testing.assert_close(last, torch.tensor([0.02, 1.0]))


def test_a_forgotten_class_starts_anew_in_the_last_layer_alone() -> None:
    weight, F_, last = torch.ones(3, 2), torch.full((3, 2), 0.5), frozenset({"head.weight"})
    mean, variance = noise_of("head.weight", weight, F_, alpha=1e-3, last=last, forget_classes=(1,))
    assert mean.tolist() == [[1, 1], [0, 0], [1, 1]]
    torch.testing.assert_close(variance, torch.tensor([0.02, 1e-3, 0.02])[:, None].expand(3, 2))
    assert torch.equal(noise_of("inner.weight", weight, F_, alpha=1e-3, last=last, forget_classes=(1,))[0], weight)


@pytest.mark.parametrize("labels", ["all", "sampled"])
def test_more_noise_forgets_the_digit_and_costs_the_others(labels: Literal["all", "sampled"]) -> None:
    digits = case("class")
    scores = []
    for alpha in (1e-6, 1e-2):
        config = configure({"alpha": alpha, "labels": labels, "rows": 200}, digits.facts)
        student, record = distill(digits.original, digits.task, config=config, generator=generator(0, "distill"))
        assert digits.forget_accuracy(student) <= 0.05
        assert record.notes["rows"] == 200
        scores.append(score(student, digits.retain_test))
    assert scores[0] > 0.9
    assert scores[1] < 0.5


def test_rows_leave_every_output_its_weights() -> None:
    digits = case("rows")
    config = configure({"rows": 100, "alpha": 1e-9}, digits.facts)
    student, record = distill(digits.original, digits.task, config=config, generator=generator(0, "distill"))
    assert 0 < float(record.notes["relative_change"]) < 0.05
    assert score(student, Rows(digits.forget_test, torch.where(digits.forget_test.targets == GONE)[0])) > 0.8
