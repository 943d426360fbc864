"""What every method with a distilling stage promises, and what each is for, on real digits."""

import json
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from support.digits import RECIPE, Case, case, score
from torch import nn

from unlearning.config import as_plain
from unlearning.data.samples import TensorSamples
from unlearning.errors import UsageError
from unlearning.methods import (
    Facts,
    amnesiac,
    fine_tune,
    fisher,
    gradient_ascent,
    incompetent_teacher,
    negative_gradient_plus,
    retrain,
)
from unlearning.methods.record import DistillRecord
from unlearning.methods.task import Task
from unlearning.training import build_seeded, generator

NEEDS = {
    incompetent_teacher: ("forget", "retain"),
    retrain: ("retain",),
    fine_tune: ("retain",),
    amnesiac: ("forget", "retain"),
    gradient_ascent: ("forget",),
    negative_gradient_plus: ("forget", "retain"),
    fisher: ("retain",),
}
SHORT: dict[ModuleType, dict[str, Any]] = {
    incompetent_teacher: {"epochs": 4},
    fisher: {"rows": 20},
}
FACTS = Facts(
    retain_rows=60, retain_per_class=20, input_size=16, forget_classes=0, recipe={"epochs": 2, "batch_size": 16}
)

each_method = pytest.mark.parametrize("method", NEEDS, ids=lambda method: method.__name__.rpartition(".")[2])
each_request = pytest.mark.parametrize("classes", [(), (2,)], ids=["rows", "class"])


def blank(seed: int) -> nn.Module:
    """Depends on its mode twice: batch statistics and dropout."""
    layers = (
        lambda: nn.Conv2d(1, 4, 3),
        lambda: nn.BatchNorm2d(4),
        nn.ReLU,
        lambda: nn.Dropout(0.3),
        nn.Flatten,
        lambda: nn.Linear(16, 3),
    )
    return build_seeded(lambda: nn.Sequential(*(layer() for layer in layers)), seed)


def samples(name: str, count: int) -> TensorSamples:
    inputs = torch.rand((count, 1, 4, 4), generator=generator(0, name))
    return TensorSamples(inputs, torch.arange(count) % 3, mean=[0.5], std=[0.3])


def task(classes: tuple[int, ...] = ()) -> Task:
    return Task(
        input_shape=(1, 4, 4),
        outputs=3,
        forget_classes=classes,
        blank=blank,
        forget=samples("forget", 24),
        retain=samples("retain", 60),
        calibration=samples("calibration", 30),
    )


def weights(model: nn.Module) -> dict[str, bytes]:
    return {key: tensor.numpy().tobytes() for key, tensor in model.state_dict().items()}


def run(method: ModuleType, given: Task, *, seed: int = 1, training: bool = False) -> tuple[nn.Module, DistillRecord]:
    model = blank(0).train(training)
    before = weights(model), [module.training for module in model.modules()]
    student, record = method.distill(
        model, given, config=method.configure(SHORT.get(method, {}), FACTS), generator=generator(seed, "distill")
    )
    assert (weights(model), [module.training for module in model.modules()]) == before
    return student, record


@each_method
@each_request
def test_the_original_stays_and_the_student_follows_the_seed_alone(
    method: ModuleType, classes: tuple[int, ...]
) -> None:
    results = []
    for seed, global_seed in ((1, 1), (1, 2), (2, 1)):
        torch.manual_seed(global_seed)
        state = torch.get_rng_state()
        student, record = run(method, task(classes), seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        assert not any(module.training for module in student.modules())
        results.append((weights(student), record.histories, record.notes))
    assert results[0] == results[1]
    assert results[0][0] != results[2][0]
    assert results[0][0] != weights(blank(0))


@each_method
def test_the_mode_that_the_original_comes_in_makes_no_difference(method: ModuleType) -> None:
    assert weights(run(method, task(), training=True)[0]) == weights(run(method, task(), training=False)[0])


@each_method
def test_rows_that_a_method_needs_are_asked_for_by_name(method: ModuleType) -> None:
    name = method.__name__.rpartition(".")[2]
    for part in NEEDS[method]:
        for nothing in (None, samples("none", 0)):
            with pytest.raises(UsageError, match=f"^{name} needs {part} rows, the task has none: "):
                run(method, replace(task(), **{part: nothing}))


@each_method
def test_rows_that_a_method_does_not_need_may_be_missing(method: ModuleType) -> None:
    spare = {part: None for part in ("forget", "retain", "calibration") if part not in NEEDS[method]}
    student, _ = run(method, replace(task(), **spare))
    assert weights(student) != weights(blank(0))


@each_method
def test_settings_go_through_json_and_unknown_ones_are_refused(method: ModuleType) -> None:
    config = method.configure({}, FACTS)
    assert method.configure(json.loads(json.dumps(as_plain(config))), FACTS) == config
    with pytest.raises(UsageError, match='unknown setting "alhpa"'):
        method.configure({"alhpa": 1}, FACTS)


@each_method
def test_numbers_that_cannot_be_used_are_refused_all_at_once(method: ModuleType) -> None:
    numbers = [name for name, value in as_plain(method.configure({}, FACTS)).items() if type(value) in (int, float)]
    for name in numbers:
        with pytest.raises(UsageError, match=f"{name} must be .*, got -1"):
            method.configure({name: -1}, FACTS)
    if method is not retrain:
        with pytest.raises(UsageError) as refused:
            method.configure(dict.fromkeys(numbers, -1), FACTS)
        assert all(f"{name} must be" in str(refused.value) for name in numbers)


@each_method
def test_the_record_holds_finite_numbers_and_progress_ends_at_its_total(method: ModuleType) -> None:
    noted: list[tuple[int, int]] = []
    _, record = method.distill(
        blank(0),
        task(),
        config=method.configure(SHORT.get(method, {}), FACTS),
        generator=generator(0, "distill"),
        progress=lambda phase, done, total, loss: noted.append((done, total)),
    )
    assert [done for done, _ in noted] == sorted({done for done, _ in noted})
    assert len({total for _, total in noted}) == 1
    assert noted[-1][0] == noted[-1][1]
    json.dumps([record.histories, record.notes], allow_nan=False)
    if method is not fisher:
        teacher = record.histories.get("teacher_loss", [])
        assert len(teacher) + len(record.histories["loss"]) == len(noted)


@each_method
def test_a_model_that_was_fine_tuned_is_not_trained_faster_than_one_from_scratch(method: ModuleType) -> None:
    scratch, tuned = (method.configure({}, replace(FACTS, fine_tuned=flag)) for flag in (False, True))
    if method in (retrain, fisher):  # follow the recipe; train nothing
        assert scratch == tuned
    else:
        assert tuned.learning_rate <= scratch.learning_rate / 10


def unlearned(method: ModuleType, request: Case, **settings: Any) -> tuple[nn.Module, DistillRecord]:
    if method is retrain:
        settings = as_plain(RECIPE)
    config = method.configure(settings, request.facts)
    student, record = method.distill(request.original, request.task, config=config, generator=generator(0, "distill"))
    return student, record


@pytest.mark.parametrize(
    "method",
    [incompetent_teacher, retrain, amnesiac, negative_gradient_plus, fisher],
    ids=lambda method: method.__name__.rpartition(".")[2],
)
def test_a_forgotten_digit_is_known_no_better_than_by_a_model_that_never_saw_it(method: ModuleType) -> None:
    digits = case("class")
    assert digits.forget_accuracy(digits.original) == 1.0
    assert digits.forget_accuracy(digits.retrained) == 0.0
    settings = {"rows": 200} if method is fisher else {}
    student, _ = unlearned(method, digits, **settings)
    assert digits.forget_accuracy(student) <= 0.05
    assert score(student, digits.forget_test) <= 0.05
    least = 0.8 if method is negative_gradient_plus else 0.95  # what is climbed has no end
    assert score(student, digits.retain_test) >= least * score(digits.retrained, digits.retain_test)


def test_fine_tuning_alone_leaves_most_of_a_digit() -> None:
    digits = case("class")
    student, _ = unlearned(fine_tune, digits)
    assert digits.forget_accuracy(student) > 0.3
    assert score(student, digits.retain_test) >= 0.98 * score(digits.original, digits.retain_test)


@pytest.mark.parametrize(
    "method",
    [incompetent_teacher, retrain, fine_tune, negative_gradient_plus],
    ids=lambda method: method.__name__.rpartition(".")[2],
)
def test_forgotten_rows_are_still_classified_about_as_well_as_by_a_model_that_never_saw_them(
    method: ModuleType,
) -> None:
    digits = case("rows")
    student, _ = unlearned(method, digits)
    assert abs(digits.forget_accuracy(student) - digits.forget_accuracy(digits.retrained)) <= 0.06
    assert score(student, digits.retain_test) >= 0.97 * score(digits.retrained, digits.retain_test)


def test_with_a_random_teacher_rows_of_digits_are_over_forgotten_unless_they_are_watched() -> None:
    digits = case("rows")
    watched, record = unlearned(incompetent_teacher, digits, teacher="random")
    unwatched, _ = unlearned(incompetent_teacher, digits, teacher="random", watch="never")
    assert record.notes["like_calibration_rows"] == "yes"
    assert digits.forget_auc(unwatched) < 0.35  # stand out as worse than rows never seen
    assert abs(digits.forget_auc(watched) - 0.5) < 0.1
