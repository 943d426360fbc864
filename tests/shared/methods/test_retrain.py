from dataclasses import fields, replace

import pytest
import torch
from support.digits import RECIPE, case

from unlearning.config import as_plain
from unlearning.errors import UsageError
from unlearning.methods import Facts
from unlearning.methods.retrain import RetrainConfig, configure, distill
from unlearning.training import Recipe, generator, train

FACTS = Facts(retain_rows=90, retain_per_class=10, input_size=64, forget_classes=1)


def test_the_settings_are_those_of_the_models_card_unless_others_are_given() -> None:
    card = {**as_plain(RECIPE), "fine_tuned": False}  # a card says more than a recipe has fields
    facts = replace(FACTS, recipe=card)
    assert [field.name for field in fields(RetrainConfig)] == [field.name for field in fields(Recipe)]
    assert as_plain(configure({}, facts)) == as_plain(RECIPE)
    assert as_plain(configure({"epochs": 3}, facts)) == {**as_plain(RECIPE), "epochs": 3}
    assert as_plain(configure({"epochs": 3}, FACTS)) == {**as_plain(Recipe()), "epochs": 3}
    with pytest.raises(UsageError, match=r"^retrain settings: .*epochs must be at least 1, got 0"):
        configure({"epochs": 0}, facts)


@pytest.mark.parametrize("card", [{}, {"fine_tuned": True}])
def test_a_recipe_that_nobody_knows_is_asked_for(card: dict[str, object]) -> None:
    with pytest.raises(UsageError) as refused:
        configure({}, replace(FACTS, recipe=card))
    assert str(refused.value).startswith("retrain needs the recipe that the model was trained by, its card has none: ")
    assert all(field.name in str(refused.value) for field in fields(Recipe))


def test_no_layer_keeps_what_the_original_knew() -> None:
    digits = case("class")
    config = configure({"epochs": 1}, digits.facts)
    student, record = distill(digits.original, digits.task, config=config, generator=generator(0, "distill"))
    for (name, old), new in zip(digits.original.named_parameters(), student.parameters(), strict=True):
        both = torch.stack([old.detach().flatten(), new.detach().flatten()])
        assert not torch.isclose(*both).any() or old.numel() < 20, name
        if old.numel() >= 100:
            assert abs(torch.corrcoef(both)[0, 1].item()) < 5 / old.numel() ** 0.5, name
    # It is the recipe on the retain rows, and nothing else.
    drawn = generator(0, "distill")
    expected = digits.task.blank(int(torch.randint(2**31, (1,), generator=drawn)))
    assert digits.task.retain is not None
    losses = train(expected, digits.task.retain, config, generator=drawn)
    assert record.histories == {"loss": losses}
    assert all(torch.equal(a, b) for a, b in zip(expected.parameters(), student.parameters(), strict=True))
