import math

import pytest
import torch
from support.digits import case

from unlearning.errors import UsageError
from unlearning.methods.amnesiac import configure, distill, wrong_labels
from unlearning.training import generator


def shares(labels: torch.Tensor, classes: int) -> list[float]:
    return (torch.bincount(labels, minlength=classes) / len(labels)).tolist()


def near(shares_found: list[float], expected: list[float], count: int) -> bool:
    """Within five standard errors of a share."""
    return all(
        abs(found - p) <= 5 * math.sqrt(p * (1 - p) / count) for found, p in zip(shares_found, expected, strict=True)
    )


@pytest.mark.parametrize("own", [0, 2, 3])
def test_each_other_class_is_equally_likely_and_the_own_never_drawn(own: int) -> None:
    labels = wrong_labels(torch.full((8000,), own), classes=4, generator=generator(0, "labels"))
    assert near(shares(labels, 4), [0.0 if c == own else 1 / 3 for c in range(4)], 8000)


@pytest.mark.parametrize("own", [1, 3])
def test_no_forgotten_class_is_drawn_for_a_row_of_any_class(own: int) -> None:
    targets = torch.full((8000,), own)
    labels = wrong_labels(targets, classes=5, forget_classes=(1, 4), generator=generator(0, "labels"))
    expected = {1: [1 / 3, 0, 1 / 3, 1 / 3, 0], 3: [1 / 2, 0, 1 / 2, 0, 0]}
    assert near(shares(labels, 5), expected[own], 8000)


def test_rows_draw_independently_of_each_other() -> None:
    labels = wrong_labels(torch.zeros(4000, dtype=torch.int64), classes=3, generator=generator(0, "labels"))
    same_as_next = (labels[1:] == labels[:-1]).double().mean().item()
    assert abs(same_as_next - 0.5) < 5 * math.sqrt(0.25 / 4000)


def test_without_another_class_there_is_no_wrong_label() -> None:
    with pytest.raises(UsageError, match="a wrong label needs a class besides the row's own, 1 classes leave none"):
        wrong_labels(torch.zeros(3, dtype=torch.int64), classes=1, generator=generator(0, "labels"))
    two = wrong_labels(torch.tensor([0, 1, 0]), classes=2, generator=generator(0, "labels"))
    assert two.tolist() == [1, 0, 1]


def test_forgotten_rows_stand_out_as_worse_than_rows_never_seen() -> None:
    digits = case("rows")
    student, _ = distill(
        digits.original, digits.task, config=configure({}, digits.facts), generator=generator(0, "distill")
    )
    assert digits.forget_auc(digits.original) > 0.5
    assert digits.forget_auc(student) < digits.forget_auc(digits.retrained) - 0.05
