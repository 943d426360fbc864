from dataclasses import fields

import pytest
import torch
from support.digits import RECIPE, case

from unlearning.config import as_plain
from unlearning.errors import UsageError
from unlearning.methods import Facts
from unlearning.methods.retrain import RetrainConfig, configure, distill
from unlearning.training import Recipe, generator, train

FACTS = Facts(retain_rows=90, retain_per_class=10, input_size=64, forget_classes=1)


def test_the_settings_are_the_originals_recipe() -> None:
    assert [field.name for field in fields(RetrainConfig)] == [field.name for field in fields(Recipe)]
    assert as_plain(configure(as_plain(RECIPE), FACTS)) == as_plain(RECIPE)
    assert as_plain(configure({}, FACTS)) == as_plain(Recipe())
    with pytest.raises(UsageError, match=r"^retrain settings: .*epochs must be at least 1, got 0"):
        configure({"epochs": 0}, FACTS)


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
