import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlearning.data.samples import TensorSamples
from unlearning.errors import UsageError
from unlearning.models.architectures import build
from unlearning.passes import checkpointed, kept_bytes, prepared, rows_at_once
from unlearning.speed import Speed, in_force, speed_from, using
from unlearning.training import Recipe, build_seeded, generator, predict, train


def network(name: str, side: int = 32, **arguments: Any) -> nn.Module:
    shape = (3, side, side)
    return build_seeded(lambda: build(name, arguments, input_shape=shape, outputs=4), 0).train()


def images(count: int = 8, side: int = 32) -> Tensor:
    return torch.randn((count, 3, side, side), generator=generator(1, "images"))


def samples(count: int = 24, side: int = 16) -> TensorSamples:
    pixels = torch.randint(256, (count, 3, side, side), generator=generator(2, "pixels"), dtype=torch.uint8)
    return TensorSamples(pixels, torch.arange(count) % 4, mean=[0.5] * 3, std=[0.25] * 3)


def trained(speed: Speed, model: nn.Module, recipe: Recipe) -> tuple[nn.Module, list[float]]:
    own = copy.deepcopy(model)
    with using(speed):
        losses = train(own, samples(), recipe, generator=generator(3, "order"))
    return own, losses


def gap(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


def gradients_of(model: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    with prepared(model) as run:
        F.cross_entropy(run(inputs), torch.arange(len(inputs)) % 4).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("name", ["resnet20", "allcnn", "mobilenet_v3_small"])
def test_activations_that_are_computed_again_give_the_same_gradients_and_batchnorm_statistics(name: str) -> None:
    plain, thrifty = network(name), network(name)
    wanted, counted = [], []
    with using(Speed(checkpointing=False)), torch.random.fork_rng():
        torch.manual_seed(0)
        wanted.append(gradients_of(plain, images()))
    with using(Speed(checkpointing=True)), torch.random.fork_rng():
        torch.manual_seed(0)
        counted.append(gradients_of(thrifty, images()))
    for parameter, gradient in wanted[0].items():
        torch.testing.assert_close(counted[0][parameter], gradient, rtol=1e-3, atol=1e-5)
    buffers = dict(plain.named_buffers())
    assert buffers
    for key, buffer in thrifty.named_buffers():
        torch.testing.assert_close(buffer, buffers[key])
    assert all("forward" not in vars(module) for module in thrifty.modules())


def test_recomputing_keeps_less_for_the_backward_pass_than_keeping_everything() -> None:
    model = network("resnet20")
    with using(Speed()), prepared(model) as run:
        everything = kept_bytes(model, run, images(2))
    with using(Speed(checkpointing=True)), prepared(model) as run:
        little = kept_bytes(model, run, images(2))
    assert 0 < 3 * little < everything
    assert model.training


def test_kept_bytes_are_those_of_a_network_counted_by_hand() -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 2))
    # The first layer keeps its input (3 x 5), the second the output of ReLU (3 x 7), which ReLU keeps too: one storage.
    with prepared(model) as run:
        assert kept_bytes(model, run, torch.randn(3, 5)) == 4 * 3 * (5 + 7)


def test_a_batch_taken_in_parts_trains_as_one_taken_whole_where_rows_do_not_meet() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 4))
    recipe = Recipe(epochs=2, batch_size=12, augmentation="shift_flip", optimiser="sgd", learning_rate=0.05)
    whole, losses = trained(Speed(), model, recipe)
    parts, other = trained(Speed(micro_batch=5), model, recipe)
    assert gap(whole, parts) < 1e-5
    assert other == pytest.approx(losses, abs=1e-5)
    assert gap(whole, model) > 1e-3


def test_no_pass_sees_more_rows_than_one_may_have() -> None:
    seen: list[int] = []
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))
    model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    with using(Speed(micro_batch=5)):
        train(model, samples(), Recipe(epochs=1, batch_size=12), generator=generator(3, "order"))
    assert max(seen) <= 5
    assert sum(seen) == 24


def test_memory_bounds_the_rows_of_large_inputs_and_leaves_small_ones_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
    with using(Speed(memory_gib=0.01)), prepared(model) as run:
        kept = kept_bytes(model, run, images(1, side=128))
        assert rows_at_once(model, run, images(1, side=128), 256) == int(0.01 * 2**30 / kept) < 256
        assert rows_at_once(model, run, images(1, side=32), 256) == 256
        assert rows_at_once(model, run, images(1, side=128), 1) == 1
    with using(Speed(memory_gib=0)), prepared(model) as run:
        assert rows_at_once(model, run, images(1, side=128), 256) == 256


@pytest.mark.parametrize("speed", [Speed(channels_last=True), Speed(channels_last=False), Speed(precision="bf16")])
def test_the_same_seed_gives_the_same_bytes_under_every_switch_and_weights_stay_as_they_lay(speed: Speed) -> None:
    recipe = Recipe(epochs=1, batch_size=12, augmentation="shift")
    one, losses = trained(speed, network("resnet20", 16), recipe)
    two, again = trained(speed, network("resnet20", 16), recipe)
    assert losses == again
    assert gap(one, two) == 0
    assert all(weight.is_contiguous() and weight.dtype == torch.float32 for weight in one.parameters())


def test_the_order_of_memory_changes_nothing_but_roundings() -> None:
    one, _ = trained(Speed(channels_last=True), network("resnet20", 16), Recipe(epochs=1, batch_size=12))
    two, _ = trained(Speed(channels_last=False), network("resnet20", 16), Recipe(epochs=1, batch_size=12))
    data = samples()
    assert (predict(one, data) - predict(two, data)).abs().max() < 1e-2


def test_half_the_precision_learns_what_full_precision_learns() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 32), nn.ReLU(), nn.Linear(32, 4))
    recipe = Recipe(epochs=20, batch_size=12, learning_rate=0.01)
    data = samples()
    for precision in ("fp32", "bf16"):
        taught, _ = trained(Speed(precision=precision), model, recipe)  # type: ignore[arg-type]
        assert (predict(taught, data).argmax(1) == data.targets).float().mean() == 1


def test_switches_hold_inside_and_not_outside() -> None:
    @contextmanager
    def depth() -> Iterator[None]:
        with using(Speed(micro_batch=7)):
            yield

    with depth():
        assert in_force().micro_batch == 7
    assert in_force() == Speed()


def test_switches_are_read_from_a_text_and_mistakes_are_named() -> None:
    assert speed_from("") == Speed()
    assert speed_from("precision=bf16, micro_batch=32,channels_last=false") == Speed(
        precision="bf16", micro_batch=32, channels_last=False
    )
    with pytest.raises(UsageError, match='unknown setting "precison"; did you mean "precision"'):
        speed_from("precison=bf16")
    with pytest.raises(UsageError, match="micro_batch"):
        speed_from("micro_batch=-1")


def test_blocks_are_the_innermost_parts_of_sequences() -> None:
    model = network("resnet20")
    with checkpointed(model):
        changed = {type(module).__name__ for module in model.modules() if "forward" in vars(module)}
    assert changed == {"_BasicBlock"}
