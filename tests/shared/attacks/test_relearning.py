import copy
import math

import pytest
import torch
from support.digits import GONE, case, trained
from torch import nn

from unlearning.attacks.relearning import few_shots, relearning_attack
from unlearning.data.samples import Rows, Samples
from unlearning.metrics.relearning import RelearnConfig, anamnesis_index, area_between, relearn
from unlearning.training import generator

CONFIG = RelearnConfig(updates=60, batch_size=64)


def head_only() -> nn.Module:
    """The original, whose output layer alone no longer says the forgotten class."""
    model = copy.deepcopy(case("class").original)
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        head.weight[GONE] = 0
        head.bias[GONE] = -3
    return model


def forget() -> Samples:
    rows = case("class").task.forget
    assert rows is not None
    return rows


def test_a_few_rows_bring_back_what_only_the_output_layer_forgot_and_not_what_was_never_known() -> None:
    digits = case("class")
    shots = few_shots(forget(), 10, generator(0, "shots"))
    never = trained(digits.task.retain, 7)  # type: ignore[arg-type]
    edited, other = (
        relearning_attack(model, digits.retrained, shots, digits.forget_test, CONFIG, seeds=[0, 1])
        for model in (head_only(), never)
    )
    assert edited.unlearned[0].accuracies[0] == edited.reference[0].accuracies[0] == 0
    assert edited.area > 0.15
    assert abs(other.area) < 0.1
    index = [
        anamnesis_index(one.unlearned[0], one.reference[0], original_accuracy=1.0).value for one in (edited, other)
    ]
    assert index[0] is not None
    assert index[1] is not None
    assert index[0] < 0.75 < index[1] < 1.35


def test_retain_rows_bring_nothing_back_where_nothing_is_left_and_the_figures_are_means_over_seeds() -> None:
    digits = case("class")
    assert digits.task.retain is not None
    found = relearning_attack(
        head_only(), digits.retrained, digits.task.retain, digits.forget_test, CONFIG, seeds=[0, 1]
    )
    assert [curve.updates[-1] for curve in (*found.unlearned, *found.reference)] == [60] * 4
    pairs = list(zip(found.unlearned, found.reference, strict=True))
    areas = [area_between(*pair) for pair in pairs]
    assert found.area == pytest.approx(sum(areas) / 2)
    assert found.area_spread == pytest.approx(abs(areas[0] - areas[1]) / math.sqrt(2))
    finals = [one.accuracies[-1] - other.accuracies[-1] for one, other in pairs]
    assert found.final == pytest.approx(sum(finals) / 2)
    again = relearn(digits.retrained, digits.task.retain, digits.forget_test, CONFIG, seed=1)
    assert again == found.reference[1]


def test_the_original_keeps_what_it_knows_while_it_trains_on_retain_rows() -> None:
    digits = case("class")
    assert digits.task.retain is not None
    found = relearning_attack(
        digits.original, digits.retrained, digits.task.retain, digits.forget_test, CONFIG, seeds=[0]
    )
    assert found.area > 0.7
    assert found.final > 0.7
    assert found.area_spread == 0


def test_shots_are_rows_of_every_class_and_follow_the_generator() -> None:
    rows = case("rows").task.forget
    assert rows is not None
    one, same, other = (few_shots(rows, 2, generator(seed, "shots")) for seed in (0, 0, 1))
    counts = torch.bincount(one.targets, minlength=10)
    assert counts.tolist() == torch.bincount(rows.targets, minlength=10).clamp(max=2).tolist()
    everything = torch.arange(len(one))
    assert torch.equal(one.batch(everything)[0], same.batch(everything)[0])
    assert not torch.equal(one.batch(everything)[0], other.batch(everything)[0])


def test_no_seeds_no_rows_and_no_shots_are_refused() -> None:
    digits, model = case("class"), case("class").retrained
    with pytest.raises(ValueError, match="at least one seed"):
        relearning_attack(model, model, forget(), digits.forget_test, CONFIG, seeds=[])
    for rows, shots in ((Rows(forget(), torch.arange(0)), 1), (forget(), 0)):
        with pytest.raises(ValueError, match="at least one shot"):
            few_shots(rows, shots, generator(0, "shots"))
