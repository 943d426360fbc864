import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from unlearning.config import as_plain, build
from unlearning.data.samples import Rows, TensorSamples
from unlearning.errors import UsageError
from unlearning.methods import Facts
from unlearning.methods.emmn import (
    ASCENT,
    RATES,
    EmmnConfig,
    FixedStatistics,
    ascent_loss,
    configure,
    impair,
    repair,
    synthesize,
)
from unlearning.methods.noise import (
    Noise,
    NoiseSamples,
    forget_probability,
    learn_noise,
    noise_objective,
    proxy_samples,
    resolved_penalty,
)
from unlearning.metrics.accuracy import accuracy
from unlearning.models import architectures
from unlearning.training import Recipe, build_seeded, generator, predict, train

torch.set_num_threads(1)

SHAPE, CLASSES = (1, 8, 8), 4
FACTS = Facts(retain_rows=0, retain_per_class=0, input_size=64, forget_classes=1)
QUICK = {"noise_batch": 4, "proxy_batches": 4, "noise_steps": 5}


class Untouchable:
    """Retain data that must not be read."""

    @property
    def targets(self) -> Tensor:
        raise AssertionError("data was read")

    def __len__(self) -> int:
        raise AssertionError("data was read")

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError("data was read")


def network(seed: int = 0) -> nn.Module:
    return build_seeded(
        lambda: architectures.build("allcnn", {"width": 0.08}, input_shape=SHAPE, outputs=CLASSES), seed
    ).eval()


def settings(**more: object) -> EmmnConfig:
    return configure({**QUICK, **more}, FACTS)


def learned(config: EmmnConfig, *, seed: int = 0, forget: tuple[int, ...] = (2,)) -> Noise:
    return synthesize(
        network(), input_shape=SHAPE, forget_classes=forget, config=config, generator=generator(seed, "synthesize")
    )


def contents(model: nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


def test_the_objective_is_the_error_with_a_sign_plus_the_penalty_by_hand() -> None:
    # two classes, equal logits: CE = ln 2; squared norms 4 and 16, their mean 10
    noise, logits = torch.tensor([[2.0, 0.0], [0.0, 4.0]]), torch.zeros((2, 2))
    assert noise_objective(logits, noise, 1, penalty=0.1, maximise=False).item() == pytest.approx(math.log(2) + 1)
    assert noise_objective(logits, noise, 1, penalty=0.1).item() == pytest.approx(1 - math.log(2))


def test_lambda_shrinks_above_32_pixels_of_three_channels_and_only_there() -> None:
    assert resolved_penalty(0.1, 64) == resolved_penalty(0.1, 3072) == 0.1
    assert resolved_penalty(0.1, 2 * 3072) == pytest.approx(0.05)


def test_error_minimising_noise_lowers_the_error_of_its_class_and_maximising_noise_raises_it() -> None:
    model, start = network(), torch.randn((2, 6, *SHAPE), generator=generator(0, "noise"))
    classes = torch.tensor([0, 3])

    def error(images: Tensor) -> float:
        with torch.no_grad():
            logits = model(images.flatten(0, 1))
        return nn.functional.cross_entropy(logits, classes.repeat_interleave(6)).item()

    after = {}
    for maximise in (True, False):
        images, objective = learn_noise(
            model,
            start,
            classes,
            maximise=maximise,
            penalty=0.0,
            steps=20,
            optimiser=lambda noise: torch.optim.Adam(noise, lr=0.1),
            chunk=5,
        )
        assert len(objective) == 20
        assert torch.equal(start, torch.randn((2, 6, *SHAPE), generator=generator(0, "noise")))  # left as it was
        after[maximise] = error(images)
    assert after[False] < error(start) < after[True]


def test_noise_of_all_classes_at_once_is_the_noise_of_each_alone() -> None:
    start = torch.randn((2, 4, *SHAPE), generator=generator(0, "noise"))
    classes = torch.tensor([1, 2])
    together, _ = _descend(start, classes)
    apart = torch.cat([_descend(start[k : k + 1], classes[k : k + 1])[0] for k in range(2)])
    assert torch.allclose(together, apart, atol=1e-5)


def _descend(start: Tensor, classes: Tensor) -> tuple[Tensor, list[float]]:
    return learn_noise(
        network(),
        start,
        classes,
        maximise=False,
        penalty=0.01,
        steps=10,
        optimiser=lambda noise: torch.optim.Adam(noise, lr=0.1),
        chunk=3,
    )


def test_a_rate_that_no_longer_improves_is_halved_when_asked_to() -> None:
    rates: list[float] = []

    def sgd(noise: list[Tensor]) -> torch.optim.Optimizer:
        optimiser = torch.optim.SGD(noise, lr=1e-6)  # next to nothing moves: every step is on a plateau
        optimiser.register_step_post_hook(lambda *_: rates.append(optimiser.param_groups[0]["lr"]))
        return optimiser

    start = torch.randn((1, 2, *SHAPE), generator=generator(0, "noise"))
    arguments = {"maximise": False, "penalty": 0.0, "steps": 8, "optimiser": sgd, "chunk": 8}
    learn_noise(network(), start, torch.tensor([0]), plateau=2, **arguments)  # type: ignore[arg-type]
    assert rates[0] == 1e-6
    assert rates[-1] < rates[0]


def test_synthesis_makes_a_bank_for_each_forgotten_class_and_proxies_of_all_others() -> None:
    noise = learned(settings(), forget=(2, 0))
    assert noise.images.shape == (2, 16, *SHAPE)
    assert noise.classes.tolist() == [2, 0]
    assert noise.proxies.shape == (2, 16, *SHAPE)
    assert noise.proxy_classes.tolist() == [1, 3]
    assert noise.probes.shape == (2, 4, *SHAPE)
    assert len(noise.objective) == len(noise.proxy_objective) == 5
    assert noise.objective[-1] < noise.objective[0]
    assert noise.proxy_objective[-1] < noise.proxy_objective[0]
    samples = proxy_samples(noise)
    assert len(samples) == 32
    images, targets = samples.batch(torch.tensor([0, 16, 31]))
    assert targets.tolist() == [1, 3, 3]
    assert torch.equal(images[2], noise.proxies[1, 15])


def test_no_class_to_forget_or_to_keep_is_refused() -> None:
    for forget in ((), (0, 1, 2, 3)):
        with pytest.raises(UsageError, match="needs classes to forget and classes to keep"):
            learned(settings(), forget=forget)


def test_noise_that_blows_up_is_refused() -> None:
    with pytest.raises(FloatingPointError, match="lower noise_learning_rate"):
        learned(settings(noise_learning_rate=1e30))


@pytest.mark.parametrize("variant", ["unsir", "ascent"])
def test_the_stages_change_the_model_touch_no_data_and_leave_their_inputs_alone(variant: str) -> None:
    original = network()
    before = contents(original)
    config = settings(variant=variant, noise_steps=3)
    noise = synthesize(
        original, input_shape=SHAPE, forget_classes=[2], config=config, generator=generator(0, "synthesize")
    )
    images, proxies = noise.images.clone(), noise.proxies.clone()
    impaired, losses = impair(original, noise, Untouchable(), config=config, generator=generator(0, "impair"))
    after_impair = contents(impaired)
    repaired, more = repair(impaired, Untouchable(), noise=noise, config=config, generator=generator(0, "repair"))
    assert contents(original) == before != after_impair == contents(impaired)
    assert torch.equal(images, noise.images)
    assert torch.equal(proxies, noise.proxies)
    # 16 images for each of 4 classes, 16 a batch at least
    assert len(losses) == 4 * config.impair_epochs
    assert len(more) == (3 * config.repair_epochs if variant == "unsir" else 0)
    assert (contents(repaired) != after_impair) == (variant == "unsir")
    assert not repaired.training


def test_batchnorm_keeps_its_statistics_and_trains_its_weights() -> None:
    original, config = network(), settings()
    noise = learned(config)
    impaired, _ = impair(original, noise, None, config=config, generator=generator(0, "impair"))
    repaired, _ = repair(impaired, None, noise=noise, config=config, generator=generator(0, "repair"))
    old, new = original.state_dict(), repaired.state_dict()
    statistics = [name for name in old if "running" in name or "batches" in name]
    assert len(statistics) == 3 * 8
    assert all(torch.equal(old[name], new[name]) for name in statistics)
    assert all(not torch.equal(old[name], new[name]) for name in old if name not in statistics)


def test_fixed_statistics_are_also_what_train_mode_uses_and_other_layers_do_train() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    wrapped = FixedStatistics(model).train()
    assert [module.training for module in model] == [True, False, True]
    assert not any(module.training for module in wrapped.eval().modules())


def test_the_ascent_loss_climbs_for_forgotten_classes_and_descends_for_others() -> None:
    # equal logits of two classes: CE = ln 2 for each; +, +, - of three, over three
    loss = ascent_loss(torch.zeros((3, 2)), torch.tensor([0, 0, 1]), torch.tensor([1]))
    assert loss.item() == pytest.approx(math.log(2) / 3)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    def weights(seed: int) -> dict[str, bytes]:
        config = settings()
        noise = learned(config, seed=seed)
        impaired, _ = impair(network(), noise, None, config=config, generator=generator(seed, "impair"))
        return contents(repair(impaired, None, noise=noise, config=config, generator=generator(seed, "repair"))[0])

    assert weights(0) == weights(0) != weights(1)


def test_the_forget_probability_by_hand() -> None:
    # one sample of two classes with odds 3 to 1, one with even odds
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Dropout(0.9)).train()
    nn.init.eye_(model.get_submodule("0").weight)
    images = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])
    assert forget_probability(model, images, torch.tensor([0])) == pytest.approx((0.75 + 0.5) / 2)
    assert forget_probability(model, images, torch.tensor([0, 1])) == pytest.approx(1)
    assert model.training


@pytest.mark.parametrize(("found", "attempts"), [([0.5, 0.2, 0.01, 0.0], 3), ([0.0], 1), ([0.5] * 9, 4)])
def test_repair_is_tried_at_rising_rates_until_the_probes_are_forgotten(
    found: list[float], attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, phases = iter(found), []
    monkeypatch.setattr("unlearning.methods.emmn.forget_probability", lambda *_: next(answers))
    config = settings(attempts=4)
    noise = learned(config)
    repaired, losses = repair(
        network(),
        None,
        noise=noise,
        config=config,
        generator=generator(0, "repair"),
        progress=lambda phase, done, total, loss: phases.append(phase) if done == 1 else None,
    )
    assert phases == ["repair", *(f"repair, attempt {number}" for number in range(2, attempts + 1))]
    # the same as one attempt at that rate, in the order that its turn draws
    monkeypatch.setattr("unlearning.methods.emmn.forget_probability", lambda *_: 0.0)
    order, alone = generator(0, "repair"), None
    for number in range(attempts):
        rate = config.repair_learning_rate * 2 ** (number / 2)
        one = dataclasses.replace(config, repair_learning_rate=rate)
        alone = repair(network(), None, noise=noise, config=one, generator=order)
    assert alone is not None
    assert contents(repaired) == contents(alone[0])
    assert losses == alone[1]


def test_without_probes_a_repair_is_tried_once() -> None:
    noise = dataclasses.replace(learned(settings()), probes=torch.empty(0, 0))
    phases: set[str] = set()
    arguments = {"config": settings(), "generator": generator(0, "repair")}
    repair(network(), None, noise=noise, progress=lambda phase, *_: phases.add(phase), **arguments)  # type: ignore[arg-type]
    assert phases == {"repair"}


def test_repair_without_noise_is_refused_in_words() -> None:
    with pytest.raises(UsageError, match="pass its noise to repair"):
        repair(network(), None, config=settings(), generator=generator(0, "repair"))
    without = Noise(images=torch.empty(1, 0, *SHAPE), classes=torch.tensor([2]))
    assert len(proxy_samples(without)) == 0
    with pytest.raises(UsageError, match="pass its noise to repair"):
        repair(network(), None, noise=without, config=settings(), generator=generator(0, "repair"))


def test_noise_is_found_where_it_used_to_be() -> None:
    from unlearning.methods import unsir

    assert (unsir.Noise, unsir.NoiseSamples, unsir.noise_objective) == (Noise, NoiseSamples, noise_objective)


def test_defaults_follow_the_variant_and_how_the_model_was_trained_and_a_given_value_wins() -> None:
    assert (configure({}, FACTS).impair_learning_rate, configure({}, FACTS).repair_learning_rate) == RATES["scratch"]
    tuned = dataclasses.replace(FACTS, fine_tuned=True)
    assert configure({}, tuned).impair_learning_rate == RATES["pretrained"][0]
    assert configure({"rates": "scratch"}, tuned).repair_learning_rate == RATES["scratch"][1]
    ascent = configure({"variant": "ascent", "noise_steps": 7}, FACTS)
    assert (ascent.noise_steps, ascent.impair_learning_rate) == (7, ASCENT["impair_learning_rate"])
    assert (ascent.penalty, ascent.impair_epochs) == (0.01, 2)


def test_settings_make_the_round_trip_and_all_mistakes_are_named_at_once() -> None:
    for config in (configure({}, FACTS), configure({"variant": "ascent"}, FACTS)):
        assert build(EmmnConfig, as_plain(config), what="settings") == config
        assert configure(as_plain(config), FACTS) == config
    with pytest.raises(UsageError, match=r'"noise_step"; did you mean "noise_steps"'):
        configure({"noise_step": 3}, FACTS)
    with pytest.raises(UsageError) as caught:
        configure(
            {"noise_batch": 0, "penalty": -1, "forgotten": 0, "repair_learning_rate": math.nan, "batch_size": 1}, FACTS
        )
    for part in (
        "noise_batch must be at least 1",
        "penalty must be >= 0",
        "repair_learning_rate",
        "batch_size must be",
    ):
        assert part in str(caught.value)


@pytest.mark.slow
def test_a_class_of_the_digits_is_forgotten_without_data_as_if_never_seen_and_the_others_mostly_kept() -> None:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    inputs = torch.tensor(pixels / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    targets = torch.tensor(labels)
    samples = TensorSamples(inputs, targets, mean=[0.305], std=[0.376])
    rows = torch.randperm(len(targets), generator=generator(0, "split"))
    seen, held_out = Rows(samples, rows[:1400]), Rows(samples, rows[1400:])

    def trained(on: Rows) -> nn.Module:
        model = build_seeded(lambda: architectures.build("lenet5", {}, input_shape=SHAPE, outputs=10), 0)
        train(model, on, Recipe(epochs=20, learning_rate=0.005, batch_size=64), generator=generator(0, "train"))
        return model

    def accuracies(model: nn.Module) -> tuple[float, float]:
        gone = held_out.targets == 5
        logits = predict(model, held_out)
        return accuracy(logits[gone], held_out.targets[gone]), accuracy(logits[~gone], held_out.targets[~gone])

    original, retrained = trained(seen), trained(Rows(samples, rows[:1400][seen.targets != 5]))
    config = configure({}, FACTS)
    noise = synthesize(
        original, input_shape=SHAPE, forget_classes=[5], config=config, generator=generator(0, "synthesize")
    )
    impaired, _ = impair(original, noise, None, config=config, generator=generator(0, "impair"))
    unlearned, _ = repair(impaired, None, noise=noise, config=config, generator=generator(0, "repair"))
    before, reference, after = accuracies(original), accuracies(retrained), accuracies(unlearned)
    assert min(before) > 0.95
    assert reference[0] == 0
    assert after[0] <= 0.05
    assert after[1] >= 0.85 * reference[1]
