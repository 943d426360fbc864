import math

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor, nn

from unlearning.methods.attention import attended_modules, attention_map, recorded
from unlearning.methods.pseudo_images import (
    PseudoGenerator,
    balance,
    barrier,
    gate,
    gated_batch,
    joined,
    without_classes,
)
from unlearning.training import build_seeded, generator

SHAPE = (1, 8, 8)


def network() -> nn.Module:
    """Two convolutions, and logits large enough that images differ in their classes."""

    def layers() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4)
        )

    model = build_seeded(layers, 0).eval()
    with torch.no_grad():
        model.get_submodule("5").weight.mul_(5)
    return model


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(0, "images"))


@given(values=st.lists(st.lists(st.floats(-8, 8, width=32), min_size=4, max_size=4), min_size=1, max_size=8))
@examples(deadline=None)
def test_the_gate_keeps_a_sample_iff_every_forgotten_class_is_at_most_epsilon(values: list[list[float]]) -> None:
    logits = torch.tensor(values)
    kept = gate(logits, [1, 3], 0.1)
    for row, passes in zip(logits.softmax(1).tolist(), kept.tolist(), strict=True):
        assert passes == (row[1] <= torch.tensor(0.1) and row[3] <= torch.tensor(0.1))


def test_the_gate_looks_at_every_forgotten_class_and_lets_the_bound_itself_pass() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.25, 0.25, 0.5]]).log()
    assert gate(logits, [2], 0.26).tolist() == [True, True, False]
    assert gate(logits, [1, 2], 0.26).tolist() == [True, False, False]
    assert gate(torch.zeros((1, 4)), [0], 0.25).tolist() == [True]
    assert gate(torch.empty((0, 3)), [0], 0.25).tolist() == []


def test_the_barrier_by_hand() -> None:
    # p = 1/2 and 1/4; level 1/8: log ratios ln 4 and ln 2 for one sample, 0 for the other: their mean is ln(8) / 2
    logits = torch.tensor([[0.5, 0.25, 0.25], [0.05, 0.05, 0.9]]).log()
    assert barrier(logits, [0, 1], 1 / 8).item() == pytest.approx(math.log(8) / 2)
    assert barrier(logits[1:], [0, 1], 1 / 8).item() == 0.0


def test_the_balance_is_zero_for_an_even_show_of_retain_classes_and_log_r_for_a_single_one() -> None:
    # class 0 is forgotten; the mean of the others over two samples is (1/4, 1/4) or (1/2, 0)
    even = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.0, 0.5]]).clamp_min(1e-9).log()
    assert balance(even, [0]).item() == pytest.approx(0, abs=1e-6)
    single = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]]).clamp_min(1e-9).log()
    assert balance(single, [0]).item() == pytest.approx(math.log(2), abs=1e-6)
    # q = (3/4, 1/4): log 2 - H
    skewed = torch.tensor([[0.2, 0.6, 0.2]]).log()
    assert balance(skewed, [0]).item() == pytest.approx(math.log(2) + 0.75 * math.log(0.75) + 0.25 * math.log(0.25))


def test_taking_classes_out_leaves_the_ratios_of_the_others() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.25]]).log()
    assert without_classes(logits, [0]).softmax(1)[0].tolist() == pytest.approx([0, 0.5, 0.5])
    assert logits.softmax(1)[0, 0].item() == pytest.approx(0.5)


@pytest.mark.parametrize(
    "shape", [(1, 8, 8), (3, 8, 8), (1, 28, 28), (3, 32, 32), (2, 30, 45), (3, 64, 64), (3, 224, 224), (7,), (2, 9)]
)
def test_the_generator_makes_any_shape_at_a_fixed_scale_and_the_same_in_any_mode(shape: tuple[int, ...]) -> None:
    made = build_seeded(lambda: PseudoGenerator(16, 16, shape), 0)
    latents = random(6, 16)
    with torch.no_grad():
        images = made.train()(latents)
        assert torch.equal(images, made.eval()(latents))
    assert images.shape == (6, *shape)
    assert images.std().item() == pytest.approx(1, abs=0.15)


def test_the_generator_at_32_pixels_is_the_published_one() -> None:
    made = PseudoGenerator(128, 128, (3, 32, 32))
    sizes = [tuple(module.weight.shape) for module in made.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    assert sizes == [(8192, 128), (128, 128, 3, 3), (64, 128, 3, 3), (3, 64, 3, 3)]


def test_the_gradient_reaches_every_weight_of_the_generator() -> None:
    made = build_seeded(lambda: PseudoGenerator(8, 8, SHAPE), 0)
    (made(random(6, 8)) * random(6, *SHAPE)).sum().backward()
    assert all(weight.grad is not None for weight in made.parameters())


def test_a_gated_batch_holds_what_passed_with_the_originals_logits_and_maps() -> None:
    teacher, images = network(), random(12, *SHAPE)
    layers = attended_modules(teacher, SHAPE)
    with torch.no_grad():
        keep = gate(teacher(images), [2], 0.24)
        with recorded(teacher, layers) as outputs:
            logits = teacher(images[keep])
    assert 0 < int(keep.sum()) < 12
    batch = gated_batch(teacher, images, [2], threshold=0.24, layers=layers)
    assert torch.equal(batch.images, images[keep])
    assert torch.allclose(batch.logits, logits, atol=1e-6)
    assert all(
        torch.allclose(a, attention_map(outputs[name]), atol=1e-6) for a, name in zip(batch.maps, layers, strict=True)
    )
    renormed = gated_batch(teacher, images, [2], threshold=0.24, renorm=True)
    assert not renormed.logits.softmax(1)[:, 2].any()
    twice = joined([batch, batch], most=len(batch) + 1)
    assert len(twice) == len(batch) + 1
    assert torch.equal(twice.images[-1], batch.images[0])
    assert all(len(maps) == len(twice) for maps in twice.maps)


def test_images_that_are_no_numbers_do_not_pass() -> None:
    images = random(4, *SHAPE)
    images[1, 0, 0, 0] = math.nan
    batch = gated_batch(network(), images, [2], threshold=0.999)
    assert torch.equal(batch.images, images[[0, 2, 3]])
