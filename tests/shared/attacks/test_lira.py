import json
import math
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import logit
from scipy.stats import norm
from support.shadows import ROWS, SEED, SHADOWS, shadows

from unlearning.attacks import lira
from unlearning.attacks.lira import (
    Audit,
    audit_by_shadow,
    audit_curve,
    leave_one_out,
    lira_scores,
    phi,
    taught,
)
from unlearning.attacks.membership import population_attack
from unlearning.metrics.intervals import seed_interval

Array = NDArray[np.float64]


def audit_of(losses: Array, seed: int = SEED) -> Audit:
    audit = Audit(seed=seed, rows=losses.shape[1], planned=len(losses), confidences={})
    for shadow, one in enumerate(losses):
        audit = audit.with_shadow(shadow, one)
    return audit


@cache
def overfitted() -> Audit:
    return audit_of(shadows().losses)


# Confidence and splits


@settings(deadline=None)
@given(st.floats(1e-9, 30))
def test_phi_is_the_logit_of_the_probability(loss: float) -> None:
    assert phi(np.array([loss]))[0] == pytest.approx(-loss - math.log(-math.expm1(-loss)))
    if loss < 20:
        assert phi(np.array([loss]))[0] == pytest.approx(logit(math.exp(-loss)), abs=1e-6)


def test_phi_of_certain_and_impossible_rows_is_finite_and_ordered() -> None:
    found = phi(np.array([0.0, 1e-3, math.log(2), 5.0, math.inf]))
    assert np.isfinite(found).all()
    assert (np.diff(found) < 0).all()
    assert found[2] == pytest.approx(0)


@settings(deadline=None)
@given(st.integers(2, 50), st.integers(0, 20), st.integers(0, 100))
def test_a_pair_of_shadows_takes_a_half_and_its_complement(rows: int, pair: int, seed: int) -> None:
    one, other = (taught(rows, 2 * pair + side, seed=seed) for side in (0, 1))
    assert (one ^ other).all()
    assert one.sum() == rows // 2
    assert (one == taught(rows, 2 * pair, seed=seed)).all()


def test_pairs_and_seeds_differ_and_every_row_has_as_many_shadows_on_either_side() -> None:
    sides = np.stack([taught(101, shadow, seed=0) for shadow in range(32)])
    assert (sides.sum(0) == 16).all()
    assert len({side.tobytes() for side in sides}) == 32
    assert (taught(101, 0, seed=1) != sides[0]).any()
    # rows of a half are drawn apart from each other: two rows share a side about half the time
    assert 0.3 < (sides[:, 0] == sides[:, 1]).mean() < 0.7


# The scores


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([4, 6, 32, 40]))
def test_scores_are_log_ratios_of_scipys_normal_densities(seed: int, planned: int) -> None:
    draws = np.random.default_rng(seed)
    losses, asked = draws.exponential(1, (planned, 7)) + 1e-3, draws.exponential(1, 7) + 1e-3
    sides = np.stack([taught(7, shadow, seed=seed) for shadow in range(planned)])
    found = lira_scores(audit_of(losses, seed), asked)
    values, own = phi(losses), planned // 2 >= lira.FEWEST_FOR_OWN_SPREAD
    shared = [
        math.sqrt(
            sum(((values[side[:, r], r] - values[side[:, r], r].mean()) ** 2).sum() for r in range(7))
            / (7 * (planned // 2 - 1))
        )
        for side in (sides, ~sides)
    ]
    for row in range(7):
        parts = [values[side[:, row], row] for side in (sides, ~sides)]
        spreads = [part.std(ddof=1) for part in parts] if own else shared
        ratio = [
            norm.logpdf(phi(asked)[row], part.mean(), max(spread, 1e-3))
            for part, spread in zip(parts, spreads, strict=True)
        ]
        assert found[row] == pytest.approx(ratio[0] - ratio[1], rel=1e-6, abs=1e-6)


def test_left_out_shadows_are_judged_by_the_others_alone() -> None:
    draws = np.random.default_rng(0)
    losses = draws.exponential(1, (6, 5)) + 1e-3
    scores, sides = leave_one_out(audit_of(losses))
    full = audit_of(losses)
    without = Audit(seed=SEED, rows=5, planned=6, confidences={k: v for k, v in full.confidences.items() if k != 2})
    assert scores[2] == pytest.approx(lira_scores(without, losses[2]))
    assert (sides[2] == taught(5, 2, seed=SEED)).all()


def test_on_overfitted_networks_it_beats_the_population_attack_and_finds_members_at_one_percent() -> None:
    found = shadows()
    population = [
        population_attack(losses[side], losses[~side]).auc
        for losses, side in zip(found.losses, found.sides, strict=True)
    ]
    assert (audit_by_shadow(overfitted()) > population).all()
    curve = audit_curve(overfitted())
    assert curve.auc > np.mean(population) + 0.08
    assert curve.tpr_at_1_percent_fpr > 0.3


def test_on_networks_that_never_trained_it_is_at_chance() -> None:
    aucs = audit_by_shadow(audit_of(shadows().untrained))
    assert len(aucs) == SHADOWS
    assert seed_interval(aucs.tolist(), level=0.99).holds(0.5)


def test_a_network_outside_the_audit_is_judged_by_it() -> None:
    found = shadows()
    part = Audit(
        seed=SEED,
        rows=ROWS,
        planned=SHADOWS,
        confidences={k: v for k, v in overfitted().confidences.items() if k < SHADOWS - 2},
    )
    assert part.missing == (SHADOWS - 2, SHADOWS - 1)
    scores, side = -lira_scores(part, found.losses[-1]), found.sides[-1]
    assert population_attack(scores[side], scores[~side]).auc > 0.85


# Gathering shadows


def test_an_audit_survives_between_runs_and_takes_shadows_in_any_order() -> None:
    draws = np.random.default_rng(0)
    losses = draws.exponential(1, (6, 5))
    audit = Audit(seed=SEED, rows=5, planned=6, confidences={})
    for shadow in (4, 0, 3, 5, 1, 2):
        audit = Audit.from_json(audit.with_shadow(shadow, losses[shadow]).to_json())
    assert audit.missing == ()
    assert audit.to_json() == audit_of(losses).to_json()
    assert (leave_one_out(audit)[0] == leave_one_out(audit_of(losses))[0]).all()


def test_a_shadow_again_changes_nothing_and_another_in_its_place_is_refused() -> None:
    audit = Audit(seed=0, rows=3, planned=4, confidences={}).with_shadow(1, np.array([1.0, 2.0, 3.0]))
    assert audit.with_shadow(1, np.array([1.0, 2.0, 3.0])).to_json() == audit.to_json()
    with pytest.raises(ValueError, match="shadow 1 is there with other values"):
        audit.with_shadow(1, np.array([1.0, 2.0, 4.0]))
    for shadow, losses, words in (
        (4, np.zeros(3), "shadow below 4"),
        (-1, np.zeros(3), "shadow below 4"),
        (0, np.zeros(2), "wanted 3 losses"),
        (0, np.array([0.0, math.nan, 0.0]), "NaN"),
    ):
        with pytest.raises(ValueError, match=words):
            audit.with_shadow(shadow, losses)


@pytest.mark.parametrize(("rows", "planned"), [(1, 4), (2, 2), (2, 5)])
def test_a_plan_too_small_is_refused(rows: int, planned: int) -> None:
    with pytest.raises(ValueError, match="an audit needs"):
        Audit(seed=0, rows=rows, planned=planned, confidences={})


def test_too_few_shadows_give_no_score() -> None:
    audit = Audit(seed=0, rows=3, planned=6, confidences={})
    with pytest.raises(ValueError, match="none yet"):
        lira_scores(audit, np.zeros(3))
    audit = audit.with_shadow(0, np.ones(3)).with_shadow(1, np.ones(3))
    with pytest.raises(ValueError, match="at least 2 shadows on either side"):
        lira_scores(audit, np.zeros(3))
    with pytest.raises(ValueError, match="3 losses without NaN"):
        lira_scores(audit, np.zeros(2))
    with pytest.raises(ValueError, match="at least 2 rows"):
        taught(1, 0, seed=0)


@pytest.mark.parametrize(
    "change",
    [
        {"more": 1},
        {"confidences": {"9": [0.0, 0.0, 0.0]}},
        {"confidences": {"0": [0.0]}},
        {"planned": 3},
    ],
)
def test_other_json_is_no_audit(change: dict[str, object]) -> None:
    good = json.loads(Audit(seed=0, rows=3, planned=4, confidences={}).to_json())
    with pytest.raises(ValueError, match=r"wanted|needs"):
        Audit.from_json(json.dumps({**good, **change}))
