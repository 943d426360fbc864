import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from unlearning.attacks.membership import cross_entropy, entropy, population_attack
from unlearning.data.samples import TensorSamples
from unlearning.methods.likeness import Likeness, Watch, likeness
from unlearning.training import generator


def confident(*margins: float) -> Tensor:
    """Logits of two classes, certain of class 0 by these margins."""
    return torch.tensor([[margin, 0.0] for margin in margins])


def zeros(count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.int64)


def test_the_share_of_pairs_in_which_the_forget_row_is_known_better_by_hand() -> None:
    # Losses fall with the margin: of the 4 pairs (3, 2), (3, 1), (1, 2), (1, 1) two are won and one is a tie.
    found = likeness(confident(3, 1), zeros(2), confident(2, 1), zeros(2))
    assert found == Likeness(loss_auc=2.5 / 4, entropy_auc=2.5 / 4, standard_error=math.sqrt(5 / 48))
    assert found.familiarity == pytest.approx(1 / 8)


def test_with_the_same_mix_of_classes_it_is_the_population_attack() -> None:
    draws = generator(0, "logits")
    forget, unseen = torch.randn((60, 3), generator=draws), torch.randn((90, 3), generator=draws)
    mine, theirs = torch.arange(60) % 3, torch.arange(90) % 3
    found = likeness(forget, mine, unseen, theirs)
    assert found is not None
    by_loss = population_attack(cross_entropy(forget, mine), cross_entropy(unseen, theirs))
    by_entropy = population_attack(entropy(forget), entropy(unseen))
    assert found.loss_auc == pytest.approx(by_loss.auc)
    assert found.entropy_auc == pytest.approx(by_entropy.auc)
    assert found.standard_error == pytest.approx(by_loss.auc_standard_error)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 40))
def test_the_aucs_are_those_of_all_pairs_by_a_slow_loop(seed: int, rows: int, unseen_rows: int) -> None:
    draws = generator(seed, "pairs")
    forget, unseen = (torch.randn((count, 3), generator=draws).round() for count in (rows, unseen_rows))  # with ties
    mine, theirs = (torch.randint(0, 3, (count,), generator=draws) for count in (rows, unseen_rows))
    found = likeness(forget, mine, unseen, theirs)
    losses, unseen_losses = cross_entropy(forget, mine), cross_entropy(unseen, theirs)
    shared = set(mine.tolist()) & set(theirs.tolist())
    won = total = 0.0
    for loss, target in zip(losses, mine.tolist(), strict=True):
        for other, of in zip(unseen_losses, theirs.tolist(), strict=True):
            if {target, of} <= shared:
                weight = (mine == of).sum().item() / (theirs == of).sum().item()
                won += weight * ((loss < other) + 0.5 * (loss == other))
                total += weight
    assert (found is None) == (not shared)
    if found is not None:
        assert found.loss_auc == pytest.approx(won / total)


def test_a_harder_class_does_not_pass_for_forgotten() -> None:
    # Class 1 is harder for everyone. All forget rows are of it, few calibration rows are: unweighted, they would win
    # 1/8 of the pairs at best.
    easy, hard = confident(5, 6, 7, 8, 9, 10), torch.tensor([[0.0, 1.0], [0.0, 2.0]])
    unseen, theirs = torch.cat([easy, hard]), torch.tensor([0] * 6 + [1] * 2)
    found = likeness(hard, torch.ones(2, dtype=torch.int64), unseen, theirs)
    assert found is not None
    assert found.loss_auc == pytest.approx(0.5)
    assert found.standard_error == pytest.approx(math.sqrt(5 / 48))  # two rows on each side count


def test_rows_of_classes_that_the_other_set_lacks_are_left_out() -> None:
    forget = torch.cat([confident(3, 1), torch.tensor([[9.0, 0.0]])])
    found = likeness(forget, torch.tensor([0, 0, 1]), confident(2, 1), zeros(2))
    assert found == likeness(confident(3, 1), zeros(2), confident(2, 1), zeros(2))
    assert likeness(confident(1), zeros(1), confident(1), zeros(1) + 1) is None


def test_the_same_rows_are_watched_at_every_look() -> None:
    def rows(name: str) -> TensorSamples:
        inputs = torch.randn((50, 2), generator=generator(0, name))
        return TensorSamples(inputs, torch.arange(50) % 2, mean=[0.0], std=[1.0])

    watch = Watch(rows("forget"), rows("unseen"), 20, generator(0, "watch"))
    model = nn.Linear(2, 2)
    first = watch(model)
    assert first is not None
    assert watch(model) == first
    assert 0.15 < first.standard_error * math.sqrt(3) < 0.2  # 20 rows on each side: sqrt(41 / 4800) = 0.092
