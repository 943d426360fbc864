import copy
import json
import math
from collections import Counter
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlearning.config import as_plain, build
from unlearning.data.samples import Rows, TensorSamples
from unlearning.errors import UsageError
from unlearning.methods import Facts
from unlearning.methods.unsir import (
    RATES,
    Noise,
    NoiseSamples,
    UnsirConfig,
    configure,
    effective_penalty,
    impair,
    noise_objective,
    repair,
    synthesize,
)
from unlearning.training import build_seeded, evaluating, generator, optimise, predict, steps_per_epoch

SHAPE = (3, 8, 8)
GONE = [2, 0]  # not in order
STEPS = UnsirConfig().noise_steps


class Recording(nn.Module):
    """A classifier of four classes that notes every input it sees while it trains; copies share the notes."""

    seen: ClassVar[list[Tensor]] = []

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(6 * 4 * 4, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            Recording.seen.append(inputs.detach().clone())
        maps = F.max_pool2d(torch.tanh(self.norm(self.conv(inputs))), 2)  # smooth: sums may be taken in any order
        logits: Tensor = self.head(self.drop(maps.flatten(1)))
        return logits


def pictures(count: int) -> TensorSamples:
    """Four classes, each a fixed pattern in noise."""
    patterns = torch.randn((4, *SHAPE), generator=generator(0, "patterns"))
    targets = torch.arange(count) % 4
    inputs = patterns[targets] + 0.7 * torch.randn((count, *SHAPE), generator=generator(0, "inputs"))
    return TensorSamples(inputs, targets, mean=[0.0] * 3, std=[1.0] * 3)


DATA = pictures(80)
RETAIN = Rows(DATA, torch.tensor([row for row in range(80) if row % 4 not in GONE]))  # 40 rows


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    model = build_seeded(Recording, 0)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    optimise(model, DATA, optimiser=optimiser, epochs=8, batch_size=16, generator=generator(0, "train"))
    return model.eval()


@pytest.fixture
def original(trained: nn.Module) -> nn.Module:
    """A copy with what a careless method would disturb: gradients, and modes and switches of every kind."""
    model = copy.deepcopy(trained)
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, float(number + 1))
    model.train()
    model.norm.eval()
    model.conv.bias.requires_grad_(False)
    Recording.seen.clear()
    return model


def state(model: nn.Module) -> dict[str, Any]:
    parameters = dict(model.named_parameters())
    return {
        "values": {name: tensor.detach().numpy().tobytes() for name, tensor in model.state_dict().items()},
        "gradients": {name: None if p.grad is None else p.grad.numpy().tobytes() for name, p in parameters.items()},
        "trained": {name: p.requires_grad for name, p in parameters.items()},
        "modes": {name: module.training for name, module in model.named_modules()},
    }


def make_noise(model: nn.Module, classes: list[int] = GONE, seed: int = 0, **settings: Any) -> Noise:
    config = UnsirConfig(**{"noise_batch": 16, **settings})
    draws = generator(seed, "synthesize")
    return synthesize(model, input_shape=SHAPE, forget_classes=classes, config=config, generator=draws)


def seen() -> Counter[bytes]:
    """How often each input was trained on since the last look."""
    counts = Counter(image.contiguous().numpy().tobytes() for batch in Recording.seen for image in batch)
    Recording.seen.clear()
    return counts


def images(samples: Rows) -> list[bytes]:
    return [image.contiguous().numpy().tobytes() for image in samples.batch(torch.arange(len(samples)))[0]]


# The objective


def test_the_objective_of_one_image_by_hand() -> None:
    # Equal logits of two classes: CE = ln 2. The image (1, 2): squared norm 5.
    found = noise_objective(torch.zeros(1, 2), torch.tensor([[1.0, 2.0]]), 0, penalty=0.1)
    assert found.item() == pytest.approx(0.5 - math.log(2))


def test_the_objective_averages_over_images_and_sums_over_their_values() -> None:
    # Odds 1:1 and 3:1: CE = (ln 2 + ln 4/3) / 2 for class 0. Squared norms 5 and 9: mean 7.
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    noise = torch.tensor([[[1.0], [2.0]], [[3.0], [0.0]]])
    ce = (math.log(2) + math.log(4 / 3)) / 2
    assert noise_objective(logits, noise, 0, penalty=0.1).item() == pytest.approx(0.7 - ce)
    # A label for each image: class 1 has odds 1:3 in the second: CE = (ln 2 + ln 4) / 2.
    own = noise_objective(logits, noise, torch.tensor([0, 1]), penalty=0.0)
    assert own.item() == pytest.approx(-1.5 * math.log(2))


@pytest.mark.parametrize("side", [32, 64, 224])
def test_the_first_penalty_is_the_same_at_every_size_from_3_x_32_x_32(side: int) -> None:
    noise = torch.randn((4, 3, side, side), generator=generator(0, "noise"))
    penalty = effective_penalty(UnsirConfig(), 3 * side * side)
    # The squared norm of n normal values is about n: 0.1 * 3072, within 5 standard deviations, sqrt(2 / n) each.
    first = noise_objective(torch.zeros(4, 2), noise, 0, penalty=penalty).item() + math.log(2)
    assert first == pytest.approx(307.2, rel=5 * math.sqrt(2 / noise.numel()))


def test_the_penalty_stays_lambda_for_small_inputs_and_where_scaling_is_off() -> None:
    assert effective_penalty(UnsirConfig(penalty=0.3), 64) == 0.3
    assert effective_penalty(UnsirConfig(penalty=0.3), 3072) == 0.3
    assert effective_penalty(UnsirConfig(penalty=0.3), 6144) == pytest.approx(0.15)
    assert effective_penalty(UnsirConfig(penalty=0.3, scale_penalty=False), 6144) == 0.3


# Noise


def test_noise_makes_the_original_more_wrong_and_its_objective_falls(original: nn.Module) -> None:
    learned = make_noise(original)
    start = torch.randn((2, 16, *SHAPE), generator=generator(0, "synthesize"))
    with evaluating(original), torch.no_grad():
        for k, c in enumerate(GONE):
            labels = torch.full((16,), c)
            before = F.cross_entropy(original(start[k]), labels)
            after = F.cross_entropy(original(learned.images[k]), labels)
            assert after > before + 1
    assert len(learned.objective) == STEPS
    assert learned.objective[-1] < learned.objective[STEPS // 2] < learned.objective[0]
    assert learned.classes.tolist() == GONE
    assert learned.images.shape == (2, 16, *SHAPE)
    assert learned.buffers == {}


def test_the_first_objective_is_that_of_the_gaussian_start(original: nn.Module) -> None:
    start = torch.randn((2, 16, *SHAPE), generator=generator(0, "synthesize"))
    with evaluating(original), torch.no_grad():
        wanted = [
            0.1 * start[k].square().sum((1, 2, 3)).mean() - F.cross_entropy(original(start[k]), torch.full((16,), c))
            for k, c in enumerate(GONE)
        ]
    assert make_noise(original, noise_steps=1).objective == [pytest.approx(sum(wanted).item() / 2, rel=1e-5)]


def test_noise_for_all_classes_at_once_is_the_noise_of_each_class_alone(original: nn.Module) -> None:
    together = make_noise(original)
    draws = generator(0, "synthesize")  # gives the second class the second half of the draws
    alone = [
        synthesize(original, input_shape=SHAPE, forget_classes=[c], config=UnsirConfig(noise_batch=16), generator=draws)
        for c in GONE
    ]
    torch.testing.assert_close(together.images, torch.cat([one.images for one in alone]), atol=1e-5, rtol=0)
    mean = [sum(step) / 2 for step in zip(*(one.objective for one in alone), strict=True)]
    assert together.objective == pytest.approx(mean, abs=1e-4)


@pytest.mark.parametrize("chunk", [1, 7, 16, 31])
def test_noise_in_chunks_is_the_noise_in_one_pass(original: nn.Module, chunk: int) -> None:
    whole, parts = make_noise(original), make_noise(original, noise_chunk=chunk)
    torch.testing.assert_close(parts.images, whole.images, atol=1e-5, rtol=0)
    assert parts.objective == pytest.approx(whole.objective, abs=1e-4)


def test_noise_that_diverges_stops_and_says_what_to_lower(original: nn.Module) -> None:
    for norm in ("frozen", "training"):
        with pytest.raises(FloatingPointError, match=r"synthesize: .* at step 2; lower noise_learning_rate"):
            make_noise(original, noise_learning_rate=1e30, noise_batchnorm=norm)


def test_without_noise_the_banks_are_empty_and_the_model_impairs_on_retain_data_alone(original: nn.Module) -> None:
    empty = make_noise(original, noise="none")
    assert empty.images.shape == (2, 0, *SHAPE)
    assert empty.classes.tolist() == GONE
    assert (empty.objective, empty.buffers) == ([], {})
    config = UnsirConfig(noise="none", batch_size=16)
    _, losses = impair(original, empty, RETAIN, config=config, generator=generator(0, "impair"))
    assert len(losses) == steps_per_epoch(len(RETAIN), 16)
    assert seen() == Counter(images(RETAIN))


# The impair set


def banks() -> Noise:
    """Two banks of five images, each filled with its class and its number."""
    values = torch.tensor(GONE)[:, None] * 10 + torch.arange(5)
    return Noise(images=values.float()[..., None, None, None].expand(2, 5, *SHAPE), classes=torch.tensor(GONE))


def test_each_class_keeps_its_own_label_and_its_bank_is_cycled_through() -> None:
    bank = NoiseSamples(banks(), per_class=7)
    inputs, targets = bank.batch(torch.arange(len(bank)))
    assert targets.tolist() == [2] * 7 + [0] * 7
    assert torch.equal(targets, bank.targets)
    assert inputs[:, 0, 0, 0].tolist() == [20, 21, 22, 23, 24, 20, 21, 0, 1, 2, 3, 4, 0, 1]
    some, labels = bank.batch(torch.tensor([13, 0, 7]))
    assert (some[:, 0, 0, 0].tolist(), labels.tolist()) == ([1, 20, 0], [0, 2, 0])


def test_the_first_label_for_all_and_few_distinct_images_are_there_when_asked_for() -> None:
    bank = NoiseSamples(banks(), per_class=6, distinct=3, labels="first")
    inputs, targets = bank.batch(torch.arange(len(bank)))
    assert targets.tolist() == [2] * 12
    assert inputs[:, 0, 0, 0].tolist() == [20, 21, 22] * 2 + [0, 1, 2] * 2


def test_more_distinct_images_than_there_are_means_all() -> None:
    assert NoiseSamples(banks(), per_class=10, distinct=99).batch(torch.arange(20))[0].unique().numel() == 10


def test_the_impair_set_is_noise_for_every_class_and_the_retain_data(original: nn.Module) -> None:
    learned = make_noise(original)
    config = UnsirConfig(noise_images=32, batch_size=16, impair_epochs=2)
    impaired, losses = impair(original, learned, RETAIN, config=config, generator=generator(0, "impair"))
    assert len(losses) == 2 * steps_per_epoch(2 * 32 + 40, 16)
    bank = [image.contiguous().numpy().tobytes() for image in learned.images.flatten(0, 1)]
    assert seen() == Counter(images(RETAIN) * 2 + bank * 2 * 2)  # two epochs; 32 of a bank of 16 is twice each
    assert not impaired.training


def test_repair_reads_retain_data_alone(original: nn.Module) -> None:
    config = UnsirConfig(batch_size=16, repair_epochs=3)
    repaired, losses = repair(original, RETAIN, config=config, generator=generator(0, "repair"))
    assert len(losses) == 3 * steps_per_epoch(40, 16)
    assert seen() == Counter(images(RETAIN) * 3)
    assert not repaired.training


def test_impairing_teaches_the_noise_its_label(original: nn.Module) -> None:
    learned = make_noise(original)
    config = UnsirConfig(noise_images=32, batch_size=8, impair_epochs=4)
    impaired, losses = impair(original, learned, RETAIN, config=config, generator=generator(0, "impair"))
    bank = NoiseSamples(learned, per_class=16)
    right = [(predict(model, bank).argmax(1) == bank.targets).double().mean() for model in (original, impaired)]
    assert right[0] < 0.1
    assert right[1] > 0.9
    assert sum(losses[-5:]) < sum(losses[:5])


# What must not change


def test_no_stage_changes_the_model_it_is_given(original: nn.Module) -> None:
    before = state(original)
    for settings in ({}, {"noise_batchnorm": "training"}):
        learned = make_noise(original, **settings)
        assert state(original) == before
    config = UnsirConfig(noise_images=20, batch_size=16)
    impaired, _ = impair(original, learned, RETAIN, config=config, generator=generator(0, "impair"))
    assert state(original) == before
    impaired.train()
    before_repair = state(impaired)
    repaired, _ = repair(impaired, RETAIN, config=config, generator=generator(0, "repair"))
    assert state(impaired) == before_repair
    assert len({state(model)["values"]["conv.weight"] for model in (original, impaired, repaired)}) == 3


def test_the_same_seed_gives_the_same_bytes_whatever_the_global_generator(original: nn.Module) -> None:
    results = []
    for seed, elsewhere in ((4, 1), (4, 2), (5, 1)):
        torch.manual_seed(elsewhere)
        for norm in ("frozen", "training"):
            learned = make_noise(original, seed=seed, noise_batchnorm=norm)
            config = UnsirConfig(noise_images=20, batch_size=16)
            impaired, impair_losses = impair(
                original, learned, RETAIN, config=config, generator=generator(seed, "impair")
            )
            repaired, repair_losses = repair(impaired, RETAIN, config=config, generator=generator(seed, "repair"))
            results.append(
                [
                    learned.images.numpy().tobytes(),
                    learned.objective,
                    state(impaired)["values"],
                    impair_losses,
                    state(repaired)["values"],
                    repair_losses,
                ]
            )
    assert results[:2] == results[2:4]
    assert all(one != other for one, other in zip(results[0], results[4], strict=True))


@pytest.mark.parametrize("stage", ["impair", "repair"])
def test_each_stage_trains_at_its_own_rate(original: nn.Module, stage: str) -> None:
    config = UnsirConfig(
        impair_learning_rate=1e-3, repair_learning_rate=1e-5, noise_images=5, impair_epochs=1, repair_epochs=1
    )
    if stage == "impair":
        trained, _ = impair(original, banks(), RETAIN, config=config, generator=generator(0, stage))
    else:
        trained, _ = repair(original, RETAIN, config=config, generator=generator(0, stage))
    moved = (trained.head.weight - original.head.weight).abs().max().item()
    # One batch, and the first step of Adam moves a weight by the rate.
    assert moved == pytest.approx({"impair": 1e-3, "repair": 1e-5}[stage], rel=0.02)


def test_every_stage_notes_its_steps(original: nn.Module) -> None:
    noted: list[tuple[str, int, int]] = []

    def note(phase: str, done: int, total: int, loss: float) -> None:
        noted.append((phase, done, total))

    config = UnsirConfig(noise_batch=4, noise_steps=2, noise_images=12, batch_size=32)
    common: dict[str, Any] = {"config": config, "generator": generator(0, "all"), "progress": note}
    learned = synthesize(original, input_shape=SHAPE, forget_classes=GONE, **common)
    impaired, _ = impair(original, learned, RETAIN, **common)
    repair(impaired, RETAIN, **common)
    assert noted == [
        ("synthesize", 1, 2),
        ("synthesize", 2, 2),
        ("impair", 1, 2),  # 24 noise images and 40 retain rows
        ("impair", 2, 2),
        ("repair", 1, 2),
        ("repair", 2, 2),
    ]


def test_a_loss_that_is_not_finite_stops_the_stage(original: nn.Module) -> None:
    broken = TensorSamples(torch.full((20, *SHAPE), math.nan), torch.ones(20).long(), mean=[0.0] * 3, std=[1.0] * 3)
    config, draws = UnsirConfig(noise_images=5), generator(0, "any")
    with pytest.raises(FloatingPointError, match=r"^impair: the loss became nan at step 1"):
        impair(original, banks(), broken, config=config, generator=draws)
    with pytest.raises(FloatingPointError, match=r"^repair: the loss became nan at step 1"):
        repair(original, broken, config=config, generator=draws)


# Settings


def facts(retain_rows: int = 8000, per_class: int = 1000, classes: int = 2, fine_tuned: bool = False) -> Facts:
    return Facts(
        retain_rows=retain_rows,
        retain_per_class=per_class,
        input_size=192,
        forget_classes=classes,
        fine_tuned=fine_tuned,
    )


@pytest.mark.parametrize(
    ("retain_rows", "per_class", "classes", "batch", "epochs"),
    [
        (23_600, 1000, 2, 256, 1),  # 25,600 rows: 100 batches of 256
        (23_599, 1000, 2, 128, 1),  # one row fewer
        (8000, 1000, 2, 64, 1),
        (1170, 130, 1, 16, 2),  # 1,300 rows: 82 batches of 16 an epoch
        (90, 10, 1, 16, 16),  # 100 rows: 6.25 batches of 16 an epoch
    ],
)
def test_the_rule_plans_at_least_a_hundred_updates_and_balanced_noise(
    retain_rows: int, per_class: int, classes: int, batch: int, epochs: int
) -> None:
    config = configure({}, facts(retain_rows, per_class, classes))
    assert (config.batch_size, config.impair_epochs, config.noise_images) == (batch, epochs, per_class)
    assert config.repair_epochs == 1
    rows = retain_rows + classes * per_class
    assert epochs * rows / batch >= 100


def test_the_rule_asks_for_one_noise_image_at_least() -> None:
    assert configure({}, facts(per_class=0)).noise_images == 1


@pytest.mark.parametrize(
    ("settings", "fine_tuned", "rates"),
    [
        ({}, False, RATES["scratch"]),
        ({}, True, (1e-4, 1e-4)),
        ({"rates": "scratch"}, True, RATES["scratch"]),
        ({"rates": "pretrained"}, False, (1e-4, 1e-4)),
        ({"preset": "code"}, False, (0.02, 0.01)),
        ({"preset": "code", "rates": "pretrained"}, False, (1e-4, 1e-4)),
        ({"preset": "paper"}, True, (1e-4, 1e-4)),
        ({"preset": "code", "rates": "pretrained", "repair_learning_rate": 0.5}, False, (1e-4, 0.5)),
        ({"impair_learning_rate": 0.5}, True, (0.5, 1e-4)),
    ],
)
def test_rates_follow_the_model_then_the_preset_then_what_was_asked_for(
    settings: dict[str, Any], fine_tuned: bool, rates: tuple[float, float]
) -> None:
    config = configure(settings, facts(fine_tuned=fine_tuned))
    assert (config.impair_learning_rate, config.repair_learning_rate) == rates


def test_what_is_asked_for_wins_over_the_preset_and_the_rule() -> None:
    asked = {"noise_images": 7, "batch_size": 33, "impair_epochs": 5, "repair_epochs": 4, "noise_labels": "own"}
    for preset in ("default", "paper", "code"):
        config = configure({"preset": preset, **asked}, facts())
        assert {name: getattr(config, name) for name in asked} == asked


def test_the_paper_preset_has_twenty_batches_of_256_images_with_their_own_labels() -> None:
    config = configure({"preset": "paper"}, facts())
    assert (config.noise_images, config.noise_batch, config.distinct_images) == (5120, 256, 0)
    assert (config.noise_labels, config.noise_batchnorm, config.penalty) == ("own", "frozen", 0.1)
    assert (config.batch_size, config.impair_epochs, config.repair_epochs) == (256, 1, 1)


def test_the_code_preset_is_what_the_notebook_runs(original: nn.Module) -> None:
    config = configure({"preset": "code", "noise_batch": 16, "noise_steps": 5, "batch_size": 40}, facts())
    assert (config.impair_learning_rate, config.repair_learning_rate) == (0.02, 0.01)
    assert effective_penalty(config, 3 * 224 * 224) == 0.1
    learned = synthesize(
        original, input_shape=SHAPE, forget_classes=GONE, config=config, generator=generator(0, "synthesize")
    )
    assert len(learned.objective) == 5
    assert learned.objective[-1] < learned.objective[0]
    # BatchNorm follows the noise, 5 steps for each of 2 classes, and hands its statistics over.
    old, new = original.norm, learned.buffers
    assert new["norm.num_batches_tracked"] == old.num_batches_tracked + 10
    assert not torch.allclose(new["norm.running_mean"], old.running_mean, atol=1e-3)
    seen()
    impaired, losses = impair(original, learned, RETAIN, config=config, generator=generator(0, "impair"))
    assert len(losses) == 4  # 2 * 60 noise images and 40 retain rows
    assert impaired.norm.num_batches_tracked == old.num_batches_tracked + 10 + 4
    counts = seen()
    wanted = [image.contiguous().numpy().tobytes() for bank in learned.images for image in bank[:3]]
    assert {image: count for image, count in counts.items() if count > 1} == dict.fromkeys(wanted, 20)
    assert set(counts) == {*wanted, *images(RETAIN)}
    bank = NoiseSamples(
        learned, per_class=config.noise_images, distinct=config.distinct_images, labels=config.noise_labels
    )
    assert bank.targets.tolist() == [GONE[0]] * 120


def test_settings_go_through_json_and_stay_what_they_are_for_other_data() -> None:
    for preset in ("default", "paper", "code"):
        config = configure({"preset": preset, "noise": "none", "penalty": 1}, facts())
        plain = json.loads(json.dumps(as_plain(config)))
        floats = {
            name: float(value) if type(value) is int else value for name, value in plain.items()
        }  # as protobuf's numbers come back
        for values in (plain, floats):
            again = configure(values, facts(90, 10, 1, fine_tuned=True))
            assert again == config
            assert build(UnsirConfig, values, what="unsir settings") == config
            assert [type(value) for value in as_plain(again).values()] == [type(value) for value in plain.values()]


def test_every_bad_setting_is_named_at_once() -> None:
    bad: dict[str, Any] = {
        **dict.fromkeys(("noise_batch", "noise_steps", "noise_chunk", "noise_images"), 0),
        **dict.fromkeys(("impair_epochs", "repair_epochs"), 0),
        **dict.fromkeys(("noise_learning_rate", "impair_learning_rate"), 0),
        "repair_learning_rate": math.nan,
        "distinct_images": -1,
        "batch_size": 1,
        "penalty": -0.1,
    }
    with pytest.raises(UsageError) as caught:
        configure({**bad, "noise_step": 3}, facts())
    message = str(caught.value)
    assert message.startswith("unsir settings: ")
    assert "\n" not in message
    assert 'unknown setting "noise_step"; did you mean "noise_steps"?' in message
    for name, value in bad.items():
        assert f"{name} must be " in message
        assert f", got {float(value) if 'rate' in name else value}" in message


def test_every_setting_of_the_wrong_kind_is_named_at_once() -> None:
    bad = {"noise_steps": 1.5, "noise": "loud", "preset": "notebook", "scale_penalty": "perhaps"}
    with pytest.raises(UsageError) as caught:
        configure(bad, facts())
    assert all(f"{name}: " in str(caught.value) for name in bad)
