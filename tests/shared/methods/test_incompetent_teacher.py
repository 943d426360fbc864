import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import entropy as relative_entropy
from support.digits import case, score
from torch import Tensor, nn

from unlearning.data.samples import TensorSamples
from unlearning.errors import UsageError
from unlearning.methods import Facts
from unlearning.methods.incompetent_teacher import (
    MORE_TEACHERS,
    MOST_REPEATS,
    IncompetentTeacherConfig,
    configure,
    distill,
    incompetent_lesson,
    incompetent_teacher_loss,
    mean_entropy,
    repeated,
    scale_to_entropy,
    soft_target_loss,
    why_unwatched,
    without,
)
from unlearning.methods.likeness import likeness
from unlearning.methods.task import Task
from unlearning.training import build_seeded, generator, predict

FACTS = Facts(retain_rows=20_000, retain_per_class=2000, input_size=784, forget_classes=0)


def logits(rows: int, classes: int, name: str) -> Tensor:
    return 3 * torch.randn((rows, classes), generator=generator(0, name), dtype=torch.float64)


def test_the_loss_is_the_divergence_from_the_teacher_of_each_row_by_hand() -> None:
    # Student: (1/2, 1/2). Row 0 is retained, its teacher says (3/4, 1/4): 3/4 ln(3/2) + 1/4 ln(1/2).
    # Row 1 is forgotten, its teacher says (1/4, 3/4): the same number. What the other teacher says does not count.
    competent = torch.tensor([[math.log(3), 0.0], [50.0, 0.0]])
    incompetent = torch.tensor([[0.0, 50.0], [0.0, math.log(3)]])
    loss = incompetent_teacher_loss(torch.zeros(2, 2), competent, incompetent, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))


@given(temperature=st.floats(0.5, 4), rows=st.integers(1, 9))
@settings(deadline=None, max_examples=30)
def test_the_loss_is_scipys_relative_entropy_averaged_over_rows(temperature: float, rows: int) -> None:
    S, T_s, T_d = (logits(rows, 4, name) for name in ("S", "T_s", "T_d"))
    gone = torch.arange(rows) % 2
    expected = np.mean(
        [
            relative_entropy(
                softmax((T_d if forgotten else T_s)[row].numpy() / temperature), softmax(S[row].numpy() / temperature)
            )
            for row, forgotten in enumerate(gone.tolist())
        ]
    )
    assert incompetent_teacher_loss(S, T_s, T_d, gone, temperature=temperature).item() == pytest.approx(expected)


def test_the_loss_is_zero_when_the_student_matches_each_rows_teacher_and_cached_targets_give_the_same() -> None:
    T_s, T_d, gone = logits(6, 5, "T_s"), logits(6, 5, "T_d"), torch.tensor([0, 1, 1, 0, 1, 0])
    mixed = torch.where(gone.bool()[:, None], T_d, T_s)
    assert incompetent_teacher_loss(mixed, T_s, T_d, gone).item() == pytest.approx(0, abs=1e-12)
    S = logits(6, 5, "S")
    cached = soft_target_loss(S, (mixed / 2).softmax(1), temperature=2.0)
    assert incompetent_teacher_loss(S, T_s, T_d, gone, temperature=2.0).item() == pytest.approx(cached.item())


def test_logits_of_different_shapes_are_refused_with_their_shapes() -> None:
    with pytest.raises(ValueError, match=r"one \(N, C\) shape, got \(2, 3\), \(2, 3\), \(2, 4\)"):
        incompetent_teacher_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2))


def test_a_class_taken_away_leaves_the_others_in_proportion() -> None:
    p = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])
    torch.testing.assert_close(without(p, (0,)), torch.tensor([[0.0, 0.6, 0.4], [0.0, 0.25, 0.75]]))
    assert without(p, ()) is p
    assert without(p, (0, 1, 2)) is p


def constant(bias: Tensor) -> nn.Module:
    """A network that says the same of every row."""
    layer = nn.Linear(4, len(bias))
    nn.init.zeros_(layer.weight)
    layer.bias.data.copy_(bias)
    return nn.Sequential(nn.Flatten(), layer)


def small(blank: Callable[[int], nn.Module], classes: tuple[int, ...] = ()) -> Task:
    def rows(name: str, count: int) -> TensorSamples:
        inputs = torch.randn((count, 4), generator=generator(0, name))
        return TensorSamples(inputs, torch.arange(count) % 3, mean=[0.0], std=[1.0])

    return Task(
        input_shape=(4,),
        outputs=3,
        forget_classes=classes,
        blank=blank,
        forget=rows("forget", 12),
        retain=rows("retain", 30),
        calibration=rows("calibration", 30),
    )


def lesson(task: Task, **settings: object):  # type: ignore[no-untyped-def]
    assert task.forget is not None
    return incompetent_lesson(
        task,
        task.forget,
        config=IncompetentTeacherConfig(**{"teacher": "random", **settings}),  # type: ignore[arg-type]
        generator=generator(0, "teacher"),
        device=torch.device("cpu"),
    )


def test_an_uncertain_random_network_teaches_alone() -> None:
    bias = torch.tensor([0.2, 0.0, -0.2])
    taught = lesson(small(lambda seed: constant(bias)))
    assert taught.teachers == 1
    torch.testing.assert_close(taught.targets, bias.softmax(0).expand(12, 3))
    expected = relative_entropy(softmax(bias.numpy())) / math.log(3)
    assert taught.entropy == taught.first_entropy == pytest.approx(expected, rel=1e-6)


def test_networks_each_certain_of_another_class_are_averaged() -> None:
    calls: list[int] = []

    def certain(seed: int) -> nn.Module:
        calls.append(seed)
        return constant(20 * torch.eye(3)[len(calls) % 3])

    taught = lesson(small(certain))
    assert taught.teachers == MORE_TEACHERS == len(set(calls))
    # Five networks, certain of classes 1, 2, 0, 1, 2: probabilities 1/5, 2/5, 2/5.
    torch.testing.assert_close(taught.targets, torch.tensor([0.2, 0.4, 0.4]).expand(12, 3), atol=1e-6, rtol=0)
    assert taught.first_entropy < 1e-5
    assert taught.entropy == pytest.approx(relative_entropy([1, 2, 2]) / math.log(3), rel=1e-4)


def test_networks_all_certain_of_one_class_are_replaced_by_the_uniform_teacher() -> None:
    task = small(lambda seed: constant(torch.tensor([20.0, 0.0, 0.0])))
    taught = lesson(task)
    assert (taught.teachers, taught.entropy) == (0, pytest.approx(1.0))
    assert taught.first_entropy < 1e-5
    torch.testing.assert_close(taught.targets, torch.full((12, 3), 1 / 3))
    assert lesson(task, least_entropy=0.0).teachers == 1
    assert lesson(task, teacher="uniform").teachers == 0


def test_the_teacher_of_a_class_request_does_not_name_the_class_unless_asked_to() -> None:
    task = small(lambda seed: constant(torch.zeros(3)), classes=(1,))
    torch.testing.assert_close(lesson(task).targets, torch.tensor([0.5, 0.0, 0.5]).expand(12, 3))
    torch.testing.assert_close(lesson(task, keep_forgotten=True).targets, torch.full((12, 3), 1 / 3))


def other_labels(rows: TensorSamples) -> TensorSamples:
    return TensorSamples(rows.inputs, (rows.targets + 1) % 3, mean=[0.0], std=[1.0])


class Seen(TensorSamples):
    """Counts how often each row is asked for."""

    def __init__(self, rows: TensorSamples) -> None:
        super().__init__(rows.inputs, rows.targets, mean=[0.0], std=[1.0])
        self.counts = torch.zeros(len(rows), dtype=torch.int64)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        self.counts += torch.bincount(rows, minlength=len(self))
        return super().batch(rows)


def test_each_teacher_is_asked_once_about_its_own_rows_and_the_retain_share_is_kept() -> None:
    task = small(lambda seed: build_seeded(lambda: nn.Linear(4, 3), seed), classes=(2,))
    assert isinstance(task.forget, TensorSamples)
    assert isinstance(task.retain, TensorSamples)
    forget, retain = Seen(task.forget), Seen(task.retain)
    config = IncompetentTeacherConfig(
        teacher="random", epochs=4, batch_size=7, retain_fraction=0.5, least_entropy=0.0, forget_share=0.0
    )
    _, record = distill(
        nn.Linear(4, 3), replace(task, forget=forget, retain=retain), config=config, generator=generator(0, "distill")
    )
    assert forget.counts.tolist() == [1 + 4] * 12  # the teacher, and an epoch four times
    assert sorted(retain.counts.tolist()) == [0] * 15 + [1 + 4] * 15
    assert record.notes["retain_rows"] == 15
    assert record.notes["watched"] == "no: whole classes are forgotten"


def test_the_paper_preset_is_one_epoch_of_adam_on_the_formula() -> None:
    original = build_seeded(lambda: nn.Linear(4, 3), 0)
    task = small(lambda seed: build_seeded(lambda: nn.Linear(4, 3), seed))
    config = configure({"preset": "paper", "retain_fraction": 1.0, "batch_size": 42}, FACTS)
    student, record = distill(original, task, config=config, generator=generator(0, "distill"))
    # One batch holds all rows, so their order does not matter: one step of Adam moves every weight by the rate.
    assert len(record.histories["loss"]) == 1
    drawn = generator(0, "distill")
    torch.randperm(30, generator=drawn)
    teacher = task.blank(int(torch.randint(2**31, (1,), generator=drawn)))
    assert task.forget is not None
    assert task.retain is not None
    inputs = torch.cat([task.forget.batch(torch.arange(12))[0], task.retain.batch(torch.arange(30))[0]])
    with torch.no_grad():
        S, gone = original(inputs), torch.arange(42) < 12
        assert record.histories["loss"][0] == pytest.approx(
            incompetent_teacher_loss(S, S, teacher(inputs), gone).item(), rel=1e-5
        )
    moved = (student.weight - original.weight).abs().flatten()  # type: ignore[operator]
    torch.testing.assert_close(moved, torch.full_like(moved, 1e-4), rtol=0.02, atol=0)


def test_rows_are_watched_only_where_the_comparison_means_something() -> None:
    task = small(lambda seed: nn.Linear(4, 3))
    auto, always = (
        IncompetentTeacherConfig(teacher="random", watch=watch)  # type: ignore[arg-type]
        for watch in ("auto", "calibration")
    )
    blind = IncompetentTeacherConfig()
    forget = task.forget
    assert forget is not None
    one_class = TensorSamples(torch.zeros(20, 4), torch.ones(20, dtype=torch.int64), mean=[0.0], std=[1.0])
    assert why_unwatched(task, forget, auto) == ""
    assert why_unwatched(task, forget, blind) == "the teacher has never seen the forget rows"
    assert why_unwatched(task, forget, replace(blind, watch="calibration")) == ""
    assert why_unwatched(task, forget, IncompetentTeacherConfig(watch="never")) == "switched off"
    assert why_unwatched(replace(task, calibration=None), forget, always) == "no calibration rows"
    assert why_unwatched(replace(task, forget_classes=(1,)), forget, auto) == "whole classes are forgotten"
    assert "all of one class" in why_unwatched(task, one_class, auto)
    assert why_unwatched(task, one_class, always) == ""


def test_rows_without_a_class_in_common_with_the_calibration_rows_are_not_watched() -> None:
    task = small(lambda seed: nn.Linear(4, 3))
    other = TensorSamples(torch.zeros(5, 4), torch.full((5,), 2), mean=[0.0], std=[1.0])
    two = TensorSamples(torch.zeros(6, 4), torch.arange(6) % 2, mean=[0.0], std=[1.0])
    _, record = distill(
        nn.Linear(4, 3),
        replace(task, forget=two, calibration=other),
        config=IncompetentTeacherConfig(teacher="random"),
        generator=generator(0, "distill"),
    )
    assert record.notes["watched"] == "no: no calibration row has a class of the forget rows"


def test_steps_forget_while_forget_rows_look_familiar_and_the_chosen_model_is_the_one_returned() -> None:
    digits = case("rows")
    config = configure({"teacher": "random"}, digits.facts)
    student, record = distill(digits.original, digits.task, config=config, generator=generator(0, "distill"))
    forgetting, loss_auc, entropy_auc = (record.histories[name] for name in ("forgetting", "loss_auc", "entropy_auc"))
    steps = len(record.histories["loss"])
    part = steps // config.looks
    assert len(forgetting) == len(loss_auc) == math.ceil(steps / part)
    familiar = [(loss + spread) / 2 > 0.5 for loss, spread in zip(loss_auc, entropy_auc, strict=True)]
    later = range(math.ceil(steps / 3 / part) + 1, len(forgetting))  # after the first third
    assert [forgetting[look] for look in later] == [float(familiar[look - 1]) for look in later]
    assert forgetting[0] == 1.0
    assert set(forgetting) == {0.0, 1.0}
    look = math.ceil(float(record.notes["chosen_step"]) / part) - 1
    assert record.notes["loss_auc"] == loss_auc[look]
    # Few enough rows that every one is watched: the record's figure is the returned model's own.
    forget, unseen = digits.task.forget, digits.task.calibration
    assert forget is not None
    assert unseen is not None
    again = likeness(predict(student, forget), forget.targets, predict(student, unseen), unseen.targets)
    assert again is not None
    assert again.loss_auc == pytest.approx(loss_auc[look])
    assert record.notes["loss_auc_of_original"] > 0.5  # the control: the original does know them


def test_without_its_mask_the_teacher_leaves_part_of_a_class() -> None:
    digits = case("class")
    for keep, least, most in ((False, 0.0, 0.0), (True, 0.02, 1.0)):
        config = configure({"keep_forgotten": keep, "teacher": "uniform"}, digits.facts)
        student, _ = distill(digits.original, digits.task, config=config, generator=generator(0, "distill"))
        assert least <= digits.forget_accuracy(student) <= most
        assert score(student, digits.retain_test) > 0.95


def test_the_loss_that_is_minimised_falls() -> None:
    original = build_seeded(lambda: nn.Linear(4, 3), 0)
    task = small(lambda seed: build_seeded(lambda: nn.Linear(4, 3), seed), classes=(0,))
    config = IncompetentTeacherConfig(epochs=30, learning_rate=0.02, batch_size=16, retain_fraction=0.3)
    _, record = distill(original, task, config=config, generator=generator(0, "distill"))
    losses = record.histories["loss"]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        # 30% of 20,000 rows: 6,000; three epochs of 128 are 141 updates, of 256 only 71.
        ({}, (0.3, 128, 3)),
        # 5,000 rows: 3,000 of them; 64 gives 141 updates.
        ({"retain_rows": 5000}, (0.6, 64, 3)),
        # 900 rows: all; 16 gives 169.
        ({"retain_rows": 900}, (1.0, 16, 3)),
        # 100 rows: all, and 16 epochs of 6.25 updates.
        ({"retain_rows": 100}, (1.0, 16, 16)),
        # A class of 6,000 more rows: 12,000 in all, 256 gives 141.
        ({"forget_classes": 1, "retain_per_class": 6000}, (0.3, 256, 3)),
    ],
)
def test_retain_share_batch_and_epochs_follow_the_data(facts: dict[str, int], expected: tuple[float, int, int]) -> None:
    config = configure({"teacher": "random"}, replace(FACTS, **facts))  # type: ignore[arg-type]
    assert (config.retain_fraction, config.batch_size, config.epochs) == expected
    assert config.forget_share == 0.0


def test_the_teacher_of_rows_is_blind_and_that_of_classes_random_unless_asked_for() -> None:
    rows, classes = FACTS, replace(FACTS, forget_classes=1)
    assert [configure({}, facts).teacher for facts in (rows, classes)] == ["blind", "random"]
    assert configure({"preset": "paper"}, rows).teacher == "random"
    assert configure({"preset": "paper", "teacher": "blind"}, rows).teacher == "blind"
    blind = configure({}, replace(rows, retain_rows=100))
    # All retain rows, and as many epochs of the teacher as of the student: 16 of 6.25 updates.
    assert (blind.retain_fraction, blind.forget_share, blind.batch_size) == (1.0, 0.2, 16)
    assert (blind.teacher_epochs, blind.epochs) == (16, 16)


@pytest.mark.parametrize(
    ("forget", "retain", "share", "times"),
    [
        (100, 900, 0.25, 3),  # 300 of 1,200
        (100, 901, 0.25, 4),  # 3 would be a little less than a quarter
        (500, 900, 0.25, 1),
        (100, 900, 0.0, 1),
        (1, 9000, 0.25, MOST_REPEATS),
    ],
)
def test_forget_rows_are_repeated_up_to_their_share(forget: int, retain: int, share: float, times: int) -> None:
    assert repeated(forget, retain, share) == times


def test_a_blind_teacher_learns_the_originals_answers_on_retain_rows_and_speaks_of_the_forget_rows_alone() -> None:
    original = build_seeded(lambda: nn.Linear(4, 3), 0)
    task = small(lambda seed: build_seeded(lambda: nn.Linear(4, 3), seed))
    assert isinstance(task.forget, TensorSamples)
    assert isinstance(task.retain, TensorSamples)
    forget, retain = Seen(task.forget), Seen(task.retain)
    config = IncompetentTeacherConfig(teacher_epochs=40, epochs=2, batch_size=30, teacher_learning_rate=0.05)
    _, record = distill(
        original, replace(task, forget=forget, retain=retain), config=config, generator=generator(0, "distill")
    )
    assert forget.counts.tolist() == [1 + 2] * 12  # 12 of 42 are over a fifth already: the teacher once, two epochs
    assert retain.counts.tolist() == [1 + 40 + 2] * 30
    losses = record.histories["teacher_loss"]
    assert len(losses) == 40
    assert losses[-1] < 0.2 * losses[0]
    assert (record.notes["teacher"], record.notes["teachers"], record.notes["forget_repeats"]) == ("blind", 1, 1)


def test_what_a_blind_teacher_says_does_not_depend_on_the_labels_of_any_row() -> None:
    task = small(lambda seed: build_seeded(lambda: nn.Linear(4, 3), seed))
    taught = []
    for turned in (False, True):
        given = task
        if turned:
            given = replace(task, **{part: other_labels(getattr(task, part)) for part in ("forget", "retain")})
        student, _ = distill(
            build_seeded(lambda: nn.Linear(4, 3), 0),
            given,
            config=IncompetentTeacherConfig(),
            generator=generator(0, "distill"),
        )
        taught.append([weight.tolist() for weight in student.parameters()])
    assert taught[0] == taught[1]


def test_logits_are_scaled_to_the_entropy_that_is_wanted() -> None:
    logits = torch.tensor([[0.0, 1.0], [0.5, -0.5]])
    assert mean_entropy(torch.zeros(3, 4)) == pytest.approx(math.log(4))
    assert scale_to_entropy(logits, mean_entropy(2.5 * logits)) == pytest.approx(2.5, rel=1e-4)
    assert scale_to_entropy(logits, 0.0) == pytest.approx(100)  # the nearer end: it never gets there
    assert scale_to_entropy(logits, math.log(2)) == pytest.approx(0.01)
    assert scale_to_entropy(torch.ones(5, 3), 0.3) == 1.0  # nothing to scale


def test_a_blind_teacher_is_made_as_certain_of_calibration_rows_as_the_original() -> None:
    digits = case("rows")
    records = {}
    for match in (True, False):
        config = configure({"match_certainty": match}, digits.facts)
        _, records[match] = distill(digits.original, digits.task, config=config, generator=generator(0, "distill"))
    assert records[True].notes["teacher_scale"] > 1  # after few epochs it is less certain than a trained network
    assert records[True].notes["teacher_entropy"] < records[False].notes["teacher_entropy"]
    assert records[False].notes["teacher_scale"] == 1
    without_any = replace(digits.task, calibration=None)
    _, record = distill(
        digits.original, without_any, config=configure({}, digits.facts), generator=generator(0, "distill")
    )
    assert record.notes["teacher_scale"] == 1


def test_a_blind_teacher_without_rows_to_learn_from_is_refused() -> None:
    with pytest.raises(UsageError, match="a blind teacher learns from retain rows, none were given"):
        lesson(small(lambda seed: nn.Linear(4, 3)), teacher="blind")


def test_by_default_rows_are_known_about_as_well_as_by_a_model_that_never_saw_them() -> None:
    digits = case("rows")
    student, record = distill(
        digits.original, digits.task, config=configure({}, digits.facts), generator=generator(0, "distill")
    )
    assert record.notes["teacher"] == "blind"
    assert abs(digits.forget_accuracy(student) - digits.forget_accuracy(digits.retrained)) <= 0.06
    assert abs(digits.forget_auc(student) - digits.forget_auc(digits.retrained)) <= 0.1


def test_rates_and_presets_give_way_to_what_is_asked_for_by_name() -> None:
    assert configure({}, FACTS).learning_rate == 3e-3
    assert configure({}, replace(FACTS, fine_tuned=True)).learning_rate == 1e-4
    assert configure({"rates": "pretrained"}, FACTS).learning_rate == 1e-4
    assert configure({"preset": "paper"}, FACTS).learning_rate == 1e-4
    assert configure({"preset": "paper", "rates": "scratch"}, FACTS).learning_rate == 3e-3
    asked = configure({"preset": "paper", "learning_rate": 0.5, "epochs": 7}, FACTS)
    assert (asked.learning_rate, asked.epochs, asked.batch_size, asked.watch) == (0.5, 7, 256, "never")
