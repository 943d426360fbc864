import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from unlearning.config import as_plain, build
from unlearning.data.samples import Samples, TensorSamples
from unlearning.errors import UsageError
from unlearning.training import (
    Recipe,
    augmented,
    best_device,
    build_seeded,
    device_of,
    evaluating,
    generator,
    optimise,
    permuted,
    predict,
    steps_per_epoch,
    train,
)


def network() -> nn.Module:
    """Depends on its mode twice: batch statistics and dropout."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(256, 3)
    )


def samples(count: int = 50) -> TensorSamples:
    """Images of three classes: each lights up its own rows of pixels."""
    targets = torch.arange(count) % 3
    inputs = torch.rand((count, 1, 8, 8), generator=generator(0, "inputs"))
    for row, target in enumerate(targets.tolist()):
        inputs[row, 0, 2 * target : 2 * target + 2] += 2
    return TensorSamples(inputs, targets, mean=[0.5], std=[1.0])


def weights(model: nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


def sgd(model: nn.Module, learning_rate: float = 0.05) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=learning_rate)


@given(count=st.integers(1, 200), batch_size=st.integers(1, 70), seed=st.integers(0, 5))
@settings(deadline=None)
def test_an_epoch_covers_every_row_once_without_a_lone_row_in_the_number_of_steps_announced(
    count: int, batch_size: int, seed: int
) -> None:
    batches = list(permuted(count, batch_size, torch.Generator().manual_seed(seed)))
    assert sorted(torch.cat(batches).tolist()) == list(range(count))
    assert len(batches) == steps_per_epoch(count, batch_size)
    assert all(1 <= len(batch) <= batch_size + 1 for batch in batches)
    if count > 1 and batch_size > 1:
        assert min(len(batch) for batch in batches) > 1


def test_a_lone_last_row_joins_the_batch_before_it_and_two_last_rows_do_not() -> None:
    assert [len(batch) for batch in permuted(9, 4, generator(0, "x"))] == [4, 5]
    assert [len(batch) for batch in permuted(10, 4, generator(0, "x"))] == [4, 4, 2]


def test_epochs_drawn_from_one_generator_differ_and_are_drawn_again_alike() -> None:
    one, two = generator(3, "order"), generator(3, "order")
    first, second = next(permuted(64, 64, one)).tolist(), next(permuted(64, 64, one)).tolist()
    assert first != second
    assert [next(permuted(64, 64, two)).tolist() for _ in range(2)] == [first, second]


def shifted(image: Tensor, down: int, right: int, mirrored: bool) -> Tensor:
    """The slow way: pixel by pixel; zero where the image had nothing."""
    moved = torch.zeros_like(image)
    _, H, W = image.shape
    for row in range(H):
        for column in range(W):
            if 0 <= row - down < H and 0 <= column - right < W:
                moved[:, row, column] = image[:, row - down, column - right]
    return moved.flip(2) if mirrored else moved


@pytest.mark.parametrize(("how", "mirrors"), [("shift", (False,)), ("shift_flip", (False, True))])
def test_augmented_images_are_the_shifts_by_up_to_an_eighth_and_every_shift_occurs(
    how: str, mirrors: tuple[bool, ...]
) -> None:
    image = torch.arange(1.0, 2 * 16 * 8 + 1).view(2, 16, 8)  # an eighth: 2 rows, 1 column
    candidates = {
        shifted(image, down, right, mirrored).numpy().tobytes(): (down, right, mirrored)
        for down in range(-2, 3)
        for right in range(-1, 2)
        for mirrored in mirrors
    }
    found = augmented(image.expand(1000, -1, -1, -1), how, generator(1, "augment"))
    assert {candidates[picture.contiguous().numpy().tobytes()] for picture in found} == set(candidates.values())


def test_a_lone_pixel_moves_by_at_most_one_place_in_an_image_of_eight() -> None:
    image = torch.zeros((1, 1, 8, 8))
    image[0, 0, 4, 2] = 1.0
    found = augmented(image.expand(200, -1, -1, -1), "shift", generator(0, "augment"))
    places = {tuple(place[2:].tolist()) for place in found.nonzero()}
    assert places == {(row, column) for row in (3, 4, 5) for column in (1, 2, 3)}


def test_no_augmentation_gives_the_very_images_and_draws_nothing() -> None:
    images, draws = torch.rand(2, 1, 8, 8), generator(0, "augment")
    before = draws.get_state()
    assert augmented(images, "none", draws) is images
    assert torch.equal(draws.get_state(), before)


def test_training_lowers_the_loss_and_notes_every_step() -> None:
    model = build_seeded(network, 0)
    noted: list[tuple[str, int, int, float]] = []
    losses = optimise(
        model,
        samples(),
        optimiser=sgd(model),
        epochs=6,
        batch_size=16,
        generator=generator(0, "train"),
        phase="warm up",
        progress=lambda phase, done, total, loss: noted.append((phase, done, total, loss)),
    )
    assert len(losses) == 6 * 4  # 16, 16, 16 and 2 rows
    assert sum(losses[-4:]) < 0.5 * sum(losses[:4])
    assert noted == [("warm up", step + 1, 24, loss) for step, loss in enumerate(losses)]
    assert model.training


def test_one_step_is_the_gradient_step_by_hand() -> None:
    # One weight w = 0 on the difference of two logits: CE = ln(1 + exp(-w x)) for class 0. With x = 1 the gradient by
    # w is -1/2 and by the other logit's weight +1/2; a step of rate 0.1 leaves (0.05, -0.05).
    model = nn.Linear(1, 2, bias=False)
    nn.init.zeros_(model.weight)
    data = TensorSamples(torch.ones(2, 1), torch.zeros(2, dtype=torch.int64), mean=[0.0], std=[1.0])
    losses = optimise(model, data, optimiser=sgd(model, 0.1), epochs=1, batch_size=2, generator=generator(0, "train"))
    assert losses == [pytest.approx(math.log(2))]
    assert model.weight.flatten().tolist() == pytest.approx([0.05, -0.05])


def test_clipping_bounds_every_entry_of_the_gradient() -> None:
    model, data = build_seeded(network, 0), samples(20)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimise(
        model,
        data,
        optimiser=sgd(model, 1.0),
        epochs=1,
        batch_size=20,
        generator=generator(0, "train"),
        clip_value=1e-3,
        loss=lambda outputs, targets: 100 * F.cross_entropy(outputs, targets),
    )
    moved = torch.cat([(new - old).flatten().abs() for new, old in zip(model.parameters(), before, strict=True)])
    assert 0.9e-3 < moved.max() <= 1.001e-3


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_training_and_says_where(value: float) -> None:
    model = build_seeded(network, 0)
    with pytest.raises(
        FloatingPointError, match=r"^impair: the loss became (nan|inf) at step 1; lower the learning rate"
    ):
        optimise(
            model,
            samples(),
            optimiser=sgd(model),
            epochs=1,
            batch_size=16,
            generator=generator(0, "train"),
            loss=lambda outputs, targets: F.cross_entropy(outputs, targets) * value,
            phase="impair",
        )


def test_a_rate_far_too_high_stops_the_training() -> None:
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        train(
            build_seeded(network, 0),
            samples(),
            Recipe(learning_rate=1e20, optimiser="sgd", schedule="constant", epochs=5),
            generator=generator(0, "train"),
        )


RECIPES = {
    "adam": Recipe(epochs=2, batch_size=16, learning_rate=0.01),
    "sgd": Recipe(epochs=2, batch_size=16, optimiser="sgd", schedule="constant", augmentation="shift_flip"),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_the_same_seed_trains_the_same_bytes_and_leaves_the_global_generator(recipe: Recipe) -> None:
    trained = []
    for seed, global_seed in ((5, 1), (5, 2), (6, 1)):
        torch.manual_seed(global_seed)  # dropout must not follow it
        before = torch.get_rng_state()
        model = build_seeded(network, 5)
        losses = train(model, samples(), recipe, generator=generator(seed, "train"))
        assert torch.equal(torch.get_rng_state(), before)
        assert not any(module.training for module in model.modules())
        trained.append((losses, weights(model)))
    assert trained[0] == trained[1]
    assert trained[0][0] != trained[2][0]
    assert trained[0][1] != trained[2][1]


@pytest.mark.parametrize("count", [2, 3, 40])
def test_a_schedule_fits_the_number_of_steps_however_few(count: int) -> None:
    recipe = Recipe(epochs=1, batch_size=8, schedule="one_cycle")
    losses = train(build_seeded(network, 0), samples(count), recipe, generator=generator(0, "train"))
    assert len(losses) == steps_per_epoch(count, 8)


def test_a_one_cycle_schedule_moves_the_weights_less_at_its_ends_than_at_its_peak() -> None:
    model, moves = build_seeded(lambda: nn.Linear(64, 3), 0), []
    last = [model.weight.detach().clone()]

    def note(phase: str, done: int, total: int, loss: float) -> None:
        moves.append((model.weight.detach() - last[0]).abs().max().item())
        last[0] = model.weight.detach().clone()

    class Flat(TensorSamples):
        def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
            inputs, targets = super().batch(rows)
            return inputs.flatten(1), targets

    flat = samples()
    data = Flat(flat.inputs, flat.targets, mean=[0.5], std=[1.0])
    train(model, data, Recipe(epochs=5, batch_size=16, learning_rate=0.01), generator=generator(0, "t"), progress=note)
    assert len(moves) == 20
    assert max(moves) <= 0.0101  # one Adam step moves a weight by about the rate, and the rate peaks at 0.01
    assert moves[0] < 0.1 * max(moves)
    assert moves[-1] < 0.1 * max(moves)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("learning_rate", math.inf),
        ("weight_decay", -1e-9),
        ("weight_decay", math.nan),
        ("clip_value", -1.0),
        ("clip_value", math.nan),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused_by_field_and_value(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{field} must be .*, got {value}$"):
        Recipe(**{field: value})


def test_a_recipe_goes_through_json_and_refuses_what_it_does_not_know() -> None:
    recipe = Recipe(epochs=3, optimiser="sgd", augmentation="shift", clip_value=0.5)
    assert build(Recipe, as_plain(recipe), what="recipe") == recipe
    with pytest.raises(UsageError, match=r'unknown setting "epoch"; did you mean "epochs"'):
        build(Recipe, {"epoch": 3}, what="recipe")
    with pytest.raises(UsageError, match="optimiser"):
        build(Recipe, {"optimiser": "rmsprop"}, what="recipe")


def mixed(model: nn.Module) -> list[bool]:
    """Put the modules in alternating modes; those modes."""
    for number, module in enumerate(model.modules()):
        module.training = number % 2 == 0
    return [module.training for module in model.modules()]


def test_predictions_equal_one_row_at_a_time_in_eval_mode_and_the_modes_come_back() -> None:
    model, data = build_seeded(network, 1), samples(23)
    model(data.batch(torch.arange(23))[0])  # batch statistics that are not the initial ones
    slow = copy.deepcopy(model).eval()
    with torch.no_grad():
        wanted = torch.cat([slow(data.batch(torch.tensor([row]))[0]) for row in range(23)])
    modes, before = mixed(model), weights(model)
    found = predict(model, data, batch_size=7)
    torch.testing.assert_close(found, wanted)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert not found.is_inference()  # may be used in training later
    assert [module.training for module in model.modules()] == modes
    assert weights(model) == before
    torch.testing.assert_close(predict(model, data), found)


def test_predictions_for_no_samples_have_no_rows() -> None:
    assert len(predict(build_seeded(network, 1), samples(0))) == 0


def test_predictions_of_a_half_precision_model_are_float32() -> None:
    class Half:
        targets = torch.zeros(4, dtype=torch.int64)

        def __len__(self) -> int:
            return 4

        def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
            return torch.ones((len(rows), 2), dtype=torch.bfloat16), self.targets[rows]

    data: Samples = Half()
    assert predict(nn.Linear(2, 3).bfloat16(), data).dtype == torch.float32


def test_modes_come_back_after_an_error_too() -> None:
    model = build_seeded(network, 1)
    modes, during = mixed(model), []

    def fail() -> None:
        with evaluating(model) as same:
            during.extend(module.training for module in same.modules())
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail()
    assert during == [False] * len(modes)
    assert [module.training for module in model.modules()] == modes


def test_a_seeded_build_depends_on_its_seed_alone_and_leaves_the_global_generator() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = weights(build_seeded(network, 7))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert weights(build_seeded(network, 7)) == first
    assert weights(build_seeded(network, 8)) != first


def test_generators_are_alike_for_one_purpose_and_seed_and_independent_otherwise() -> None:
    def draws(seed: int, purpose: str) -> Tensor:
        return torch.randn(20_000, generator=generator(seed, purpose))

    assert torch.equal(draws(0, "train"), draws(0, "train"))
    for seed, purpose in ((0, "impair"), (1, "train"), (-1, "train"), (2**70, "train")):
        correlation = torch.corrcoef(torch.stack([draws(0, "train"), draws(seed, purpose)]))[0, 1].item()
        assert abs(correlation) < 5 / math.sqrt(20_000)  # five standard errors of chance


def test_the_device_is_the_models_own() -> None:
    assert device_of(nn.Linear(1, 1)) == torch.device("cpu")
    assert best_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
