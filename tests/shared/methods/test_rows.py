import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unlearning.data.samples import TensorSamples
from unlearning.methods.rows import STEPS, Deck, Paired, Relabelled, derived, paced, part_of
from unlearning.training import generator, steps_per_epoch


def samples(values: list[float]) -> TensorSamples:
    inputs = torch.tensor(values)[:, None]
    return TensorSamples(inputs, torch.tensor(values).long() % 5, mean=[0.0], std=[1.0])


@given(rows=st.integers(2, 300_000), epochs=st.integers(1, 5))
def test_the_defaults_take_enough_updates_with_the_largest_batch_that_allows_it(rows: int, epochs: int) -> None:
    batch_size, planned = paced(rows, epochs)
    assert batch_size in (16, 32, 64, 128, 256)
    assert planned >= epochs
    assert planned * rows >= STEPS * batch_size
    if batch_size > 16:
        assert planned == epochs
    if batch_size < 256:
        assert rows * epochs < STEPS * 2 * batch_size
    assert planned * steps_per_epoch(rows, batch_size) > 0.8 * STEPS


def test_a_deck_deals_every_row_before_any_again_and_differently_each_round() -> None:
    deck = Deck(10, generator(0, "deck"))
    dealt = torch.cat([deck.deal(count) for count in (3, 4, 9, 4)])
    rounds = [dealt[:10].tolist(), dealt[10:].tolist()]
    assert [sorted(one) for one in rounds] == [list(range(10))] * 2
    assert rounds[0] != rounds[1]
    assert len(Deck(2, generator(0, "deck")).deal(7)) == 7


def test_generators_derived_one_after_the_other_differ_and_are_derived_again_alike() -> None:
    parent, again = generator(0, "parent"), generator(0, "parent")
    seeds = [derived(parent).initial_seed() for _ in range(3)]
    assert len(set(seeds)) == 3
    assert [derived(again).initial_seed() for _ in range(3)] == seeds


def test_relabelled_samples_keep_their_inputs() -> None:
    soft = torch.tensor([[0.2, 0.8], [0.5, 0.5], [1.0, 0.0]])
    relabelled = Relabelled(samples([7, 8, 9]), soft)
    inputs, targets = relabelled.batch(torch.tensor([2, 0]))
    assert inputs.flatten().tolist() == [9, 7]
    assert torch.equal(targets, soft[[2, 0]])
    assert len(relabelled) == 3
    assert torch.equal(relabelled.targets, soft)
    with pytest.raises(ValueError, match="one target for each of 3 samples, got 2"):
        Relabelled(samples([7, 8, 9]), soft[:2])


@pytest.mark.parametrize(
    ("retain", "forget", "expected"),
    [
        ([0, 1, 2], [10, 11], [[0, 10], [1, 11], [2, 10]]),
        ([0], [10, 11, 12], [[0, 10], [0, 11], [0, 12]]),
    ],
)
def test_pairs_start_the_smaller_set_again(
    retain: list[float], forget: list[float], expected: list[list[float]]
) -> None:
    pairs = Paired(samples(retain), samples(forget))
    assert len(pairs) == len(expected) == len(pairs.targets)
    inputs, targets = pairs.batch(torch.arange(len(pairs)))
    assert inputs.view(2, -1).T.tolist() == expected  # first all retain rows, then all forget rows
    assert targets.tolist() == [value % 5 for value in inputs.flatten().tolist()]


def test_the_progress_of_a_part_counts_on() -> None:
    noted: list[tuple[str, int, int, float]] = []
    part_of(lambda *step: noted.append(step), 20, 100)("distill", 3, 10, 0.5)
    assert noted == [("distill", 23, 100, 0.5)]
