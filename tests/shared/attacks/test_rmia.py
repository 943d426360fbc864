import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.shadows import ROWS, SHADOWS, shadows

from unlearning.attacks.membership import Roc, population_attack
from unlearning.attacks.rmia import RmiaConfig, rmia_scores

Array = NDArray[np.float64]


def slow(losses: Array, population: Array, references: Array, theirs: Array, config: RmiaConfig) -> list[float]:
    """The score as it is written, pair by pair."""

    def ratio(loss: float, others: Array) -> float:
        if len(others) == 0:
            return math.exp(-loss)
        out = sum(math.exp(-other) for other in others) / len(others)
        return math.exp(-loss) / (0.5 * ((1 + config.offline) * out + 1 - config.offline))

    z = [ratio(population[i], theirs[:, i]) for i in range(len(population))]
    return [
        sum(ratio(losses[i], references[:, i]) / one >= config.gamma for one in z) / len(z) for i in range(len(losses))
    ]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(0, 12),
    st.integers(1, 12),
    st.integers(0, 4),
    st.floats(1, 4),
    st.floats(0, 1),
)
def test_the_scores_are_those_of_the_slow_loop_and_stay_in_bounds(
    seed: int, rows: int, population: int, models: int, gamma: float, offline: float
) -> None:
    draws = np.random.default_rng(seed)
    config = RmiaConfig(gamma=gamma, offline=offline)
    sets = [draws.exponential(2, shape) for shape in ((rows,), (population,), (models, rows), (models, population))]
    found = rmia_scores(*sets, config=config)
    assert found.tolist() == pytest.approx(slow(*sets, config=config))
    assert ((found >= 0) & (found <= 1)).all()


def test_a_row_by_hand() -> None:
    # r(x) = 0.8 / 0.5 = 1.6 with no shift; population 0.5 / 0.5 = 1, 0.2 / 0.4 = 0.5, 0.9 / 0.9 = 1: one beaten twice.
    losses, population = -np.log([0.8]), -np.log([0.5, 0.2, 0.9])
    references, theirs = -np.log([[0.5]]), -np.log([[0.5, 0.4, 0.9]])
    config = RmiaConfig(gamma=2, offline=1)
    assert rmia_scores(losses, population, references, theirs, config).tolist() == pytest.approx([1 / 3])
    assert rmia_scores(losses, population, references, theirs, RmiaConfig(gamma=1.5, offline=1)).tolist() == [1.0]


def test_without_references_and_with_gamma_one_it_ranks_as_the_population_attack_does() -> None:
    draws = np.random.default_rng(0)
    members, others, population = draws.exponential(1, 50), draws.exponential(2, 60), draws.exponential(2, 5000)
    none, config = np.empty((0, 0)), RmiaConfig(gamma=1)
    scores = [-rmia_scores(side, population, none, none, config) for side in (members, others)]
    assert population_attack(*scores).auc == pytest.approx(population_attack(members, others).auc, abs=0.005)


def test_infinite_losses_are_the_least_likely_and_do_not_break_it() -> None:
    found = rmia_scores(
        np.array([np.inf, 0.0]), np.array([1.0, 2.0]), np.array([[1.0, np.inf]]), np.array([[1.0, np.inf]])
    )
    assert found[0] == 0
    assert found[1] == 1


def attacked(losses: Array, target: int, models: int) -> tuple[Roc, Roc]:
    """RMIA on one network with references that never saw the row, and the population attack on the same rows."""
    found = shadows()
    others = [one for one in range(SHADOWS) if one != target]
    references = np.empty((models, ROWS))
    for row in range(ROWS):
        references[:, row] = losses[[one for one in others if not found.sides[one, row]][:models], row]
    scores = -rmia_scores(losses[target], found.population[target], references, found.population[others[:models]])
    side = found.sides[target]
    return population_attack(scores[side], scores[~side]), population_attack(
        losses[target][side], losses[target][~side]
    )


def test_on_overfitted_networks_one_reference_beats_the_population_attack_and_more_help() -> None:
    aucs = {
        models: np.array([[one.auc for one in attacked(shadows().losses, target, models)] for target in range(SHADOWS)])
        for models in (1, 4)
    }
    assert (aucs[1][:, 0] > aucs[1][:, 1]).mean() > 0.9
    assert aucs[1][:, 0].mean() > aucs[1][:, 1].mean() + 0.04
    assert aucs[4][:, 0].mean() > aucs[1][:, 0].mean()


def test_at_one_percent_false_alarms_it_finds_many_where_the_population_attack_finds_few() -> None:
    found = np.array(
        [[one.tpr_at_1_percent_fpr for one in attacked(shadows().losses, target, 4)] for target in range(SHADOWS)]
    )
    assert found[:, 0].mean() > 0.2
    assert found[:, 1].mean() < 0.05


def test_on_networks_that_never_trained_it_is_at_chance() -> None:
    aucs = np.array([attacked(shadows().untrained, target, 4)[0].auc for target in range(SHADOWS)])
    assert abs(aucs.mean() - 0.5) < 3 * aucs.std(ddof=1) / math.sqrt(SHADOWS)


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (([0.0], [], [[0.0]], [[0.0]]), "wanted population rows"),
        (([0.0], [0.0], [[0.0, 1.0]], [[0.0]]), "same reference models"),
        (([0.0], [0.0], [[0.0]], [[0.0], [0.0]]), "same reference models"),
        (([math.nan], [0.0], [[0.0]], [[0.0]]), "NaN"),
        (([0.0], [0.0], [[0.0]], [[math.nan]]), "NaN"),
    ],
)
def test_what_cannot_be_attacked_is_refused(sets: tuple[list[float], ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        rmia_scores(*(np.array(one) for one in sets))


@pytest.mark.parametrize(("gamma", "offline"), [(0.9, 0.5), (math.inf, 0.5), (2, -0.1), (2, 1.1)])
def test_settings_out_of_range_are_refused(gamma: float, offline: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        RmiaConfig(gamma=gamma, offline=offline)
