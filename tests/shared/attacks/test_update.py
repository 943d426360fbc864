import math

import numpy as np
import pytest
import torch
from torch import Tensor

from unlearning.attacks.membership import population_attack
from unlearning.attacks.update import update_attack


def rows(count: int, seed: int) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    return torch.randn((count, 4), generator=source) * 3, torch.arange(count) % 4


def noisy(logits: Tensor, seed: int, size: float = 0.3) -> Tensor:
    return logits + size * torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed))


def test_the_two_statistics_by_hand() -> None:
    # Two forgotten rows lose their class, ln 1 to ln 4 and ln 2 to ln 4; one unseen row gains, one stays.
    def of(*shares: list[float]) -> Tensor:
        return torch.tensor(shares, dtype=torch.float64).log().clamp_min(-1e4)

    zero = torch.zeros(2, dtype=torch.int64)
    found = update_attack(
        of([1.0, 0.0], [0.5, 0.5]),
        of([0.25, 0.75], [0.25, 0.75]),
        zero,
        of([0.5, 0.5], [0.5, 0.5]),
        of([0.75, 0.25], [0.5, 0.5]),
        zero,
    )
    assert found["loss_rise"].auc == 1.0
    # divergences: (large, d) against (d, 0), d of a half against a quarter either way: 3 pairs won, one tie
    assert found["divergence"].auc == pytest.approx(3.5 / 4)


def test_models_that_agree_give_chance_exactly() -> None:
    (forget, labels), (unseen, others) = rows(50, 0), rows(70, 1)
    found = update_attack(forget, forget, labels, unseen, unseen, others)
    assert [curve.auc for curve in found.values()] == [0.5, 0.5]
    shifted = update_attack(forget, forget + 5, labels, unseen, unseen - 3, others)
    assert shifted["divergence"].auc == 0.5  # a constant added to all of a row's logits is no change


def test_an_update_that_moves_all_rows_alike_is_at_chance_and_one_that_moves_the_forgotten_gives_them_away() -> None:
    (forget, labels), (unseen, others) = rows(400, 0), rows(400, 1)
    alike = update_attack(forget, noisy(forget, 2), labels, unseen, noisy(unseen, 3), others)
    for curve in alike.values():
        assert curve.auc == pytest.approx(0.5, abs=4 * curve.auc_standard_error)
    lowered = noisy(forget, 2).clone()
    lowered[torch.arange(400), labels] -= 2
    told = update_attack(forget, lowered, labels, unseen, noisy(unseen, 3), others)
    assert told["loss_rise"].auc > 0.9
    assert told["divergence"].auc > 0.7


def test_the_loss_statistic_is_the_population_attack_on_the_difference_of_losses() -> None:
    (forget, labels), (unseen, others) = rows(30, 0), rows(40, 1)
    sets = [(forget, noisy(forget, 2), labels), (unseen, noisy(unseen, 3), others)]
    falls = [
        np.array(
            [
                torch.nn.functional.cross_entropy(before[i].double(), y[i]).item()
                - torch.nn.functional.cross_entropy(after[i].double(), y[i]).item()
                for i in range(len(y))
            ]
        )
        for before, after, y in sets
    ]
    assert update_attack(*sets[0], *sets[1])["loss_rise"].auc == pytest.approx(population_attack(*falls).auc)


def test_no_rows_other_shapes_and_nan_are_refused() -> None:
    (forget, labels), (unseen, others) = rows(3, 0), rows(4, 1)
    with pytest.raises(ValueError, match="same rows and classes"):
        update_attack(forget[:0], forget[:0], labels[:0], unseen, unseen, others)
    with pytest.raises(ValueError, match="same rows and classes"):
        update_attack(forget, forget[:2], labels, unseen, unseen, others)
    with pytest.raises(ValueError, match="NaN"):
        update_attack(forget, forget * math.nan, labels, unseen, unseen, others)
