import copy
import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from support.digits import GONE, RECIPE, blank, case, trained
from torch import Tensor, nn

from unlearning.data.samples import Joined, Samples
from unlearning.methods.rows import Relabelled
from unlearning.metrics.change import Code, diagnose
from unlearning.metrics.classification import Outputs
from unlearning.metrics.features import output_layer
from unlearning.training import generator, optimise, predict

SEEDS = range(20)
KINDS = ("class", "rows")


@cache
def sets(kind: str) -> dict[str, Samples]:
    digits = case(kind)
    assert digits.task.forget is not None
    unseen = {"forget.test": digits.forget_test} if kind == "class" else {}
    return {"forget.train": digits.task.forget, "retain.test": digits.retain_test, **unseen}


def outputs(model: nn.Module, kind: str) -> dict[str, Outputs]:
    return {name: Outputs(logits=predict(model, rows), targets=rows.targets) for name, rows in sets(kind).items()}


@cache
def known(kind: str, which: str) -> dict[str, Outputs]:
    return outputs(getattr(case(kind), which), kind)


def codes(model: nn.Module, kind: str, *, alone: bool = False) -> list[Code]:
    """What is found; `alone`: without a reference."""
    original = case(kind).original
    found = diagnose(
        original.state_dict(),
        model.state_dict(),
        head=output_layer(original, sets(kind)["retain.test"].batch(torch.arange(1))[0]),
        before=known(kind, "original"),
        after=outputs(model, kind),
        reference=None if alone else known(kind, "retrained"),
    )
    assert all(len(one.sentence) > 20 and "\n" not in one.sentence for one in found)
    return [one.code for one in found]


def edited(edit: Callable[[nn.Linear, torch.Generator], None], seed: int) -> nn.Module:
    """The original with its output layer edited."""
    model = copy.deepcopy(case("class").original)
    head = model.get_submodule("classifier.4")
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        edit(head, generator(seed, "edit"))
    return model


def silenced(head: nn.Linear, draws: torch.Generator) -> None:
    head.bias[GONE] -= 5 + 100 * torch.rand(1, generator=draws).item()


def swapped(head: nn.Linear, draws: torch.Generator) -> None:
    order = torch.randperm(10, generator=draws)
    head.weight.copy_(head.weight[order].clone())
    head.bias.copy_(head.bias[order].clone())


def removed(head: nn.Linear, draws: torch.Generator) -> None:
    head.weight[GONE] = 0.01 * torch.randn(head.weight.shape[1], generator=draws)
    head.bias[GONE] = -5


def redrawn(head: nn.Linear, draws: torch.Generator) -> None:
    head.weight[GONE] = torch.randn(head.weight.shape[1], generator=draws) * head.weight.std()


def unlearned_too_far(kind: str, seed: int) -> nn.Module:
    """The original, taught wrong answers for forget rows, or none at all for a forget class; the others stay right."""
    digits = case(kind)
    forget, retain = digits.task.forget, digits.task.retain
    assert forget is not None
    assert retain is not None
    model = copy.deepcopy(digits.original)
    wrong = F.one_hot((forget.targets + 1) % 10, 10).float() if kind == "rows" else torch.full((len(forget), 10), 0.1)
    right = F.one_hot(retain.targets, 10).float()
    optimise(
        model,
        Relabelled(Joined(forget, retain), torch.cat([wrong, right])),
        optimiser=torch.optim.Adam(model.parameters(), lr=RECIPE.learning_rate / 2),
        epochs=12,
        batch_size=64,
        generator=generator(seed, "wrong"),
    )
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_retrained_model_is_named_with_or_without_a_reference(kind: str) -> None:
    retain = case(kind).task.retain
    assert retain is not None
    for seed in SEEDS:
        model = trained(retain, 100 + seed)
        assert codes(model, kind) == []
        assert codes(model, kind, alone=True) == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_itself_is_not_named(kind: str) -> None:
    assert codes(case(kind).retrained, kind) == []
    assert codes(case(kind).retrained, kind, alone=True) == []


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (silenced, "output_permuted"),
        (swapped, "output_permuted"),
        (removed, "head_only"),
        (redrawn, "head_only"),
    ],
)
def test_edits_of_the_output_layer_are_named_in_every_seed(
    edit: Callable[[nn.Linear, torch.Generator], None], code: Code, alone: bool
) -> None:
    for seed in SEEDS:
        assert codes(edited(edit, seed), "class", alone=alone)[0] == code


@pytest.mark.parametrize("kind", KINDS)
def test_an_unchanged_model_is_named(kind: str) -> None:
    assert "no_change" in codes(case(kind).original, kind)
    assert "no_change" in codes(copy.deepcopy(case(kind).original), kind, alone=True)


def test_weights_that_moved_without_moving_any_output_are_no_change() -> None:
    for seed in SEEDS:
        model = copy.deepcopy(case("rows").original)
        one, other = (model.get_submodule(f"classifier.{place}") for place in (2, 4))
        assert isinstance(one, nn.Linear)
        assert isinstance(other, nn.Linear)
        order = torch.randperm(one.out_features, generator=generator(seed, "order"))
        with torch.no_grad():  # hidden units in another order, and twice as strong into a layer half as strong
            one.weight.copy_(2 * one.weight[order].clone())
            one.bias.copy_(2 * one.bias[order].clone())
            other.weight.copy_(other.weight[:, order].clone() / 2)
        assert codes(model, "rows") == ["no_change"]
        with torch.no_grad():
            swapped(other, generator(seed, "swap"))
        assert codes(model, "rows")[0] == "output_permuted"


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_with_random_weights_is_named_in_every_seed(kind: str) -> None:
    for seed in SEEDS:
        assert "randomised" in codes(blank(1000 + seed), kind)
        assert "randomised" in codes(blank(1000 + seed), kind, alone=True)


@pytest.mark.slow
def test_rows_answered_worse_than_unseen_ones_and_classes_without_an_answer_are_named_in_every_seed() -> None:
    for seed in SEEDS:
        model = unlearned_too_far("rows", seed)
        assert codes(model, "rows") == ["over_forgotten"]
        assert codes(model, "rows", alone=True) == ["over_forgotten"]
        assert codes(unlearned_too_far("class", seed), "class") == ["over_forgotten"]


@pytest.mark.parametrize("kind", KINDS)
def test_one_such_model_is_named(kind: str) -> None:
    assert codes(unlearned_too_far(kind, 0), kind) == ["over_forgotten"]


def test_nan_anywhere_is_named_alone() -> None:
    for name, tensor in case("class").original.state_dict().items():
        model = copy.deepcopy(case("class").original)
        model.state_dict()[name].view(-1)[0] = math.nan if tensor.dim() > 1 else math.inf
        assert codes(model, "class") == ["not_finite"]


def states(**changes: Tensor) -> dict[str, Tensor]:
    return {"body.weight": torch.eye(2), "head.weight": torch.eye(2), **changes}


def logits(*rows: list[float]) -> dict[str, Outputs]:
    one = Outputs(logits=torch.tensor(rows), targets=torch.tensor([0, 1]))
    return {"forget.train": one, "retain.test": one}


GOOD = logits([1.0, 0.0], [0.0, 1.0])
OTHER = logits([1.0, 0.1], [0.3, 1.0])


def test_counters_are_no_weights() -> None:
    found = diagnose(
        states(**{"norm.count": torch.tensor(1)}),
        states(**{"norm.count": torch.tensor(999)}),
        head="head",
        before=GOOD,
        after=GOOD,
    )
    assert [one.code for one in found] == ["no_change"]


def test_statistics_of_normalisation_are_part_of_the_body() -> None:
    moved = states(**{"norm.running_mean": torch.ones(2), "head.weight": torch.ones(2, 2)})
    before = states(**{"norm.running_mean": torch.zeros(2)})
    assert diagnose(before, moved, head="head", before=GOOD, after=OTHER) == []


def test_what_does_not_fit_together_is_refused() -> None:
    part = {"forget.train": GOOD["forget.train"]}
    for before, after, reference in ((GOOD, part, None), (part, part, None), (GOOD, GOOD, part)):
        with pytest.raises(ValueError, match=r"wanted every model's outputs on forget\.train"):
            diagnose(states(), states(), head="head", before=before, after=after, reference=reference)
    with pytest.raises(ValueError, match="different parameters"):
        diagnose(states(), {"body.weight": torch.eye(2)}, head="head", before=GOOD, after=OTHER)
    with pytest.raises(ValueError, match="name of the output layer"):
        diagnose(states(), states(**{"head.weight": torch.ones(2, 2)}), head="fc", before=GOOD, after=OTHER)
