from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlearning.data.samples import Rows, TensorSamples
from unlearning.errors import UsageError
from unlearning.losses import loss_of
from unlearning.methods import Facts
from unlearning.methods.attention import attention_loss, attention_map, recorded
from unlearning.methods.blindspot import BlindspotConfig, blindspot_loss, configure, distill, lesson
from unlearning.methods.task import Task
from unlearning.training import build_seeded, generator, predict

L1, MSE = loss_of("l1"), loss_of("mse")


def random(*shape: int, purpose: str = "values") -> Tensor:
    return torch.randn(shape, generator=generator(0, purpose))


def network(seed: int) -> nn.Module:
    return build_seeded(
        lambda: nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 1)), seed
    )


def rows(count: int, name: str) -> TensorSamples:
    inputs = random(count, 3, purpose=name)
    return TensorSamples(inputs, inputs.sum(1), mean=[0.0], std=[1.0])


def task() -> Task:
    return Task(
        input_shape=(3,),
        outputs=1,
        forget_classes=(),
        blank=network,
        forget=rows(12, "forget"),
        retain=rows(48, "retain"),
        targets="values",
    )


def test_the_loss_by_hand() -> None:
    outputs = torch.tensor([[1.0], [5.0], [2.0], [4.0]])
    forgotten = torch.tensor([False, True, False, False])
    value = blindspot_loss(
        outputs,
        forgotten,
        torch.tensor([0.0, 2.0, 2.0]),  # errors 1, 0, 2: mean 1
        torch.tensor([[8.0]]),  # error 3
        [torch.tensor([[1.0, 0.0]])],
        [torch.tensor([[0.0, 1.0]])],  # mean square 1
        loss=L1,
        answer_loss=F.l1_loss,
        attention_weight=10.0,
    )
    assert value.item() == pytest.approx(0.75 * 1 + 0.25 * (3 + 10 * 1))


@pytest.mark.parametrize("name", ["l1", "mse"])
def test_without_attention_the_loss_is_the_mean_over_all_rows_of_each_rows_own_error(name: str) -> None:
    loss = loss_of(name)
    outputs, answers, targets = random(10, 1), random(4, 1, purpose="answers"), random(6, purpose="targets")
    forgotten = torch.tensor([True, False] * 4 + [False, False])
    value = blindspot_loss(
        outputs,
        forgotten,
        targets,
        answers,
        loss=loss,
        answer_loss=F.mse_loss if name == "mse" else F.l1_loss,
        attention_weight=50.0,
    )
    wanted = torch.empty(10)
    wanted[forgotten], wanted[~forgotten] = answers.squeeze(1), targets
    assert value.item() == pytest.approx(loss(outputs, wanted).item())


@pytest.mark.parametrize("kind", [False, True])
def test_a_batch_of_one_kind_has_its_term_alone(kind: bool) -> None:
    outputs, other = random(5, 1), random(5, 1, purpose="other")
    empty = torch.empty((0, 1))
    value = blindspot_loss(
        outputs,
        torch.full((5,), kind),
        empty.squeeze(1) if kind else other.squeeze(1),
        other if kind else empty,
        loss=MSE,
        answer_loss=F.mse_loss,
        attention_weight=50.0,
    )
    assert value.item() == pytest.approx(F.mse_loss(outputs, other).item())


def test_the_lesson_is_what_the_blind_network_says_in_eval_mode_whatever_the_batches() -> None:
    blind, forget = nn.Sequential(nn.Dropout(0.5), network(0)).train(), rows(11, "forget")
    layers = ("1.1", "1.3")
    answers, maps = lesson(blind, forget, layers, batch_size=4)
    assert torch.allclose(answers, predict(blind, forget))
    with recorded(blind.eval(), layers) as activations, torch.no_grad():
        blind(forget.batch(torch.arange(11))[0])
    assert [tuple(one.shape) for one in maps] == [(11, 32), (11, 16)]
    for ours, activation in zip(maps, activations.values(), strict=True):
        assert torch.allclose(ours, attention_map(activation))


def small(**settings: object) -> BlindspotConfig:
    base = BlindspotConfig(error="mse", blind_epochs=60, blind_batch_size=16, epochs=60, batch_size=16)
    return replace(base, **settings)  # type: ignore[arg-type]


def blind_of(given: Task, config: BlindspotConfig) -> nn.Module:
    """The very blind network of a run: with no teaching to speak of, it is what the student is told to be."""
    kept: list[nn.Module] = []

    def blank(seed: int) -> nn.Module:
        kept.append(network(seed))
        return kept[0]

    distill(
        network(0),
        replace(given, blank=blank),
        config=replace(config, epochs=1, learning_rate=1e-12),
        generator=generator(0, "d"),
    )
    return kept[0]


def test_the_student_ends_near_the_blind_network_on_forget_rows_and_near_the_targets_on_retain_rows() -> None:
    given = task()
    assert given.forget is not None
    assert given.retain is not None
    given = replace(
        given,
        forget=TensorSamples(given.forget.inputs, torch.full((12,), 40.0), mean=[0.0], std=[1.0]),  # type: ignore[attr-defined]
    )
    config = small()
    blind = blind_of(given, config)
    student, record = distill(network(0), given, config=config, generator=generator(0, "d"))
    assert given.forget is not None
    answers, wanted = predict(student, given.forget), predict(blind, given.forget)
    assert (answers - wanted).abs().mean() < 0.3
    assert (answers - 40.0).abs().mean() > 30  # the forget rows' own targets were never used
    assert (predict(student, given.retain).squeeze(1) - given.retain.targets).abs().mean() < 0.3
    assert set(record.histories) == {"loss", "blind_loss"}
    assert record.notes["attended"] == "1, 3"


def test_the_attention_term_pulls_the_students_maps_to_those_of_the_blind_network() -> None:
    given = task()
    assert given.forget is not None
    apart = []
    for weight in (0.0, 2000.0):
        config = small(attention_weight=weight, learning_rate=3e-3)
        blind = blind_of(given, config)
        student, record = distill(network(0), given, config=config, generator=generator(0, "d"))
        maps = [lesson(model, given.forget, ("1", "3"))[1] for model in (student, blind)]
        apart.append(attention_loss(*maps).item())
        assert (record.notes["attended"] == "none") == (weight == 0)
    assert apart[1] < 0.5 * apart[0]


def test_few_forget_rows_are_repeated_and_a_share_of_nothing_repeats_none() -> None:
    given = task()
    assert given.forget is not None
    given = replace(given, forget=Rows(given.forget, torch.arange(2)))
    _, record = distill(
        network(0), given, config=small(epochs=1, blind_epochs=1, forget_share=0.25), generator=generator(0, "d")
    )
    assert record.notes["forget_repeats"] == 8  # 16 of 64
    _, record = distill(
        network(0), given, config=small(epochs=1, blind_epochs=1, forget_share=0.0), generator=generator(0, "d")
    )
    assert record.notes["forget_repeats"] == 1


def test_progress_counts_the_blind_networks_steps_and_the_students_as_one_course() -> None:
    seen = []
    distill(
        network(0),
        task(),
        config=small(epochs=2, blind_epochs=3, forget_share=0.0),
        generator=generator(0, "d"),
        progress=lambda phase, done, total, loss: seen.append((phase, done, total)),
    )
    steps = 3 * 3 + 2 * 4  # 48 retain rows and then 60 rows, 16 at a time
    assert [done for _, done, _ in seen] == list(range(1, steps + 1))
    assert {total for _, _, total in seen} == {steps}
    assert [phase for phase, _, _ in seen] == ["teacher"] * 9 + ["distill"] * 8


def test_the_rule_looks_at_the_recipe_and_at_the_number_of_rows() -> None:
    recipe = {"epochs": 100, "optimiser": "sgd", "learning_rate": 0.1, "weight_decay": 0.0, "batch_size": 512}
    recipe |= {"schedule": "constant", "loss": "l1", "augmentation": "shift", "clip_value": 0.5}
    config = configure({}, Facts.of(rows=50_000, input_shape=(3, 32, 32), recipe=recipe))
    assert (config.blind_epochs, config.blind_optimiser, config.blind_learning_rate) == (30, "sgd", 0.1)
    assert (config.blind_batch_size, config.blind_schedule, config.blind_weight_decay) == (512, "constant", 0.0)
    assert (config.blind_augmentation, config.blind_clip_value, config.error) == ("shift", 0.5, "l1")
    assert (config.epochs, config.batch_size, config.learning_rate) == (5, 256, 3e-3)
    few = configure({}, Facts.of(rows=160, input_shape=(3,)))
    assert (few.batch_size, few.epochs, few.blind_epochs) == (16, 10, 10)
    gentle = {"optimiser": "adam", "learning_rate": 1e-3}
    assert configure({}, Facts.of(rows=160, input_shape=(3,), recipe=gentle)).learning_rate == 1e-3
    backbone = {"optimiser": "adam", "learning_rate": 1e-3, "fine_tuned": True}
    assert configure({}, Facts.of(rows=160, input_shape=(3,), recipe=backbone)).learning_rate == 1e-4


def test_the_published_settings_and_what_is_refused() -> None:
    facts = Facts.of(rows=10_000, input_shape=(6,), recipe={"loss": "l1", "epochs": 100})
    config = configure({"preset": "paper"}, facts)
    assert (config.blind_epochs, config.epochs, config.attention_weight) == (2, 1, 50.0)
    assert (config.learning_rate, config.blind_learning_rate, config.blind_batch_size) == (1e-3, 1e-2, 256)
    assert (config.forget_share, config.schedule) == (0.0, "constant")
    assert configure({"preset": "paper", "blind_epochs": 10}, facts).blind_epochs == 10
    with pytest.raises(UsageError, match="forget_share must be in"):
        configure({"forget_share": 1.0}, facts)
    with pytest.raises(UsageError, match="attention_weight must be >= 0"):
        configure({"attention_weight": -1}, facts)
    with pytest.raises(UsageError, match="blindspot needs retain rows"):
        distill(network(0), replace(task(), retain=None), config=small(), generator=generator(0, "d"))
