import math

import numpy as np
import pytest
import torch
from support.digits import GONE, case
from torch import Tensor, nn

from unlearning.attacks.inversion import (
    InversionConfig,
    InversionScore,
    inversion_score,
    invert,
    total_variation,
)
from unlearning.data.samples import Joined, Samples
from unlearning.training import generator, seeded

SHORT = InversionConfig(steps=5)


def network() -> nn.Module:
    with seeded(0, torch.device("cpu")):
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 36, 3))


def inverted(model: nn.Module, classes: list[int], config: InversionConfig, seed: int = 0) -> Tensor:
    return invert(model, classes, (1, 8, 8), config, generator=generator(seed, "inversion"))


def mean_image(rows: Samples, target: int) -> Tensor:
    return rows.batch((rows.targets == target).nonzero()[:, 0])[0].mean(0)


def test_total_variation_by_hand_and_of_a_single_row() -> None:
    image = torch.tensor([[[[0.0, 1.0], [3.0, 3.0]]]])
    assert total_variation(image).tolist() == [(3 + 2) / 2 + (1 + 0) / 2]
    assert total_variation(torch.tensor([[[[0.0, 2.0, 0.0]]]])).tolist() == [2.0]
    assert total_variation(torch.ones((2, 3, 4, 4))).tolist() == [0.0, 0.0]


def test_a_model_and_the_global_generator_stay_as_they_were() -> None:
    model = network().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.random.get_rng_state()
    inverted(model, [0, 1], SHORT)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_images_follow_the_seed_and_do_not_depend_on_each_other() -> None:
    model = network()
    both = inverted(model, [0, 2], SHORT)
    assert both.shape == (2, 1, 8, 8)
    assert torch.equal(both, inverted(model, [0, 2], SHORT))
    assert not torch.equal(both, inverted(model, [0, 2], SHORT, seed=1))
    torch.testing.assert_close(inverted(model, [0], SHORT), both[:1])


def test_one_step_moves_every_pixel_that_matters_by_the_rate_against_the_gradient() -> None:
    model = network().eval()
    start = inverted(model, [1], InversionConfig(steps=1, learning_rate=1e-12))
    pixels = start.clone().requires_grad_(True)
    loss = (
        nn.functional.cross_entropy(model(pixels), torch.tensor([1]))
        + 0.5 * total_variation(pixels).sum()
        + 0.01 * pixels.square().mean()
    )
    (slope,) = torch.autograd.grad(loss, [pixels])
    moved = inverted(model, [1], InversionConfig(steps=1, learning_rate=0.1)) - start
    kept = slope.abs() > 1e-4
    torch.testing.assert_close(moved[kept], -0.1 * slope.sign()[kept], atol=1e-4, rtol=0)


def test_on_digits_the_original_gives_away_the_class_and_a_model_that_never_knew_it_does_not() -> None:
    digits = case("class")
    assert digits.task.forget is not None
    assert digits.task.retain is not None
    rows, classes = Joined(digits.task.retain, digits.task.forget), [GONE, GONE, 5]
    means = torch.stack([mean_image(rows, target) for target in classes])
    config = InversionConfig(steps=150)
    scores = {}
    for name, model in (("original", digits.original), ("retrained", digits.retrained)):
        images = inverted(model, classes, config)
        with torch.no_grad():
            scores[name] = inversion_score(images, classes, digits.original(images), means)
    assert min(scores["original"].confidence) > 0.9
    assert max(scores["retrained"].confidence[:2]) < 0.5
    assert min(scores["original"].similarity[:2]) > max(scores["retrained"].similarity[:2]) + 0.2
    with torch.no_grad():
        perfect = inversion_score(means, classes, digits.original(means), means)
    assert perfect.similarity == pytest.approx([1, 1, 1])


def test_scores_by_hand_and_against_numpy() -> None:
    source = torch.Generator().manual_seed(0)
    images, means = (torch.randn((2, 1, 3, 3), generator=source) for _ in range(2))
    logits = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])
    found = inversion_score(images, [0, 1], logits, means)
    assert found.confidence == pytest.approx([0.75, 0.5])
    wanted = [np.corrcoef(images[i].ravel(), means[i].ravel())[0, 1] for i in range(2)]
    assert found.similarity == pytest.approx(wanted, abs=1e-6)
    flat = inversion_score(torch.ones((1, 1, 3, 3)), [0], logits[:1], means[:1])
    assert flat == InversionScore(confidence=(pytest.approx(0.75),), similarity=(0.0,))  # type: ignore[arg-type]
    negative = inversion_score(-means, [0, 1], logits, means)
    assert negative.similarity == pytest.approx([-1, -1])


def test_what_cannot_be_inverted_or_scored_is_refused() -> None:
    model, draws = network(), generator(0, "inversion")
    for classes, shape in (([], (1, 8, 8)), ([0], (64,))):
        with pytest.raises(ValueError, match="wanted classes and an image shape"):
            invert(model, classes, shape, SHORT, generator=draws)
    nn.init.constant_(model.get_submodule("4").bias, math.nan)  # type: ignore[arg-type]
    with pytest.raises(FloatingPointError, match="the model is broken"):
        inverted(model, [0], SHORT)
    image, logits = torch.zeros((1, 1, 2, 2)), torch.zeros((1, 2))
    for args, words in (
        ((image, [0, 1], logits, image), "one class and one mean image"),
        ((image, [0], logits, image[:, :, :1]), "one class and one mean image"),
        ((image, [0], logits * math.nan, image), "NaN"),
        ((image * math.nan, [0], logits, image), "NaN"),
    ):
        with pytest.raises(ValueError, match=words):
            inversion_score(*args)  # type: ignore[arg-type]
    for settings in ({"steps": 0}, {"learning_rate": 0.0}, {"total_variation": -1.0}, {"start": math.inf}):
        with pytest.raises(ValueError, match="must be"):
            InversionConfig(**settings)  # type: ignore[arg-type]
