import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.svm import SVC
from torch import Tensor

from unlearning.attacks.membership import (
    STATISTICS,
    add_gaps,
    balanced_entropy_attack,
    called_by_svc,
    cross_entropy,
    doubt,
    entropy,
    entropy_attack,
    membership_attacks,
    population_attack,
    statistics,
)
from unlearning.metrics.classification import Outputs
from unlearning.metrics.intervals import auc_gap_error

Array = NDArray[np.float64]

few = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=30).map(np.array)  # full of ties
many = st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=30).map(np.array)
sides = st.one_of(st.tuples(few, few), st.tuples(many, many))


def random(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


# Statistics


def test_entropy_by_hand() -> None:
    logits = torch.tensor(
        [
            [0.0, 0.0, 0.0, 0.0],  # uniform: ln 4
            [0.0, 0.0, -1000.0, -1000.0],  # two left: ln 2; 0 ln 0 counts 0
            [1000.0, 0.0, 0.0, 0.0],  # certain: 0
            [math.log(3), 0.0, -1000.0, -1000.0],  # 3/4 and 1/4: 3/4 ln 4/3 + 1/4 ln 4
        ]
    )
    last = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    found = entropy(logits)
    assert found.tolist() == pytest.approx([math.log(4), math.log(2), 0.0, last], abs=1e-6)
    assert found.dtype == np.float64
    assert found.min() >= 0


def test_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0], [math.log(3), 0.0], [1000.0, 0.0]])
    found = cross_entropy(logits, torch.tensor([0, 0, 1, 1]))
    assert found.tolist() == pytest.approx([math.log(2), math.log(4 / 3), math.log(4), 1000.0])


@given(st.lists(st.lists(st.floats(-50, 50), min_size=3, max_size=3), min_size=1, max_size=10))
def test_statistics_stay_in_their_bounds_and_equal_the_slow_sums(rows: list[list[float]]) -> None:
    found = entropy(torch.tensor(rows, dtype=torch.float64))
    losses = cross_entropy(torch.tensor(rows, dtype=torch.float64), torch.zeros(len(rows), dtype=torch.int64))
    for row, value, loss in zip(rows, found, losses, strict=True):
        total = sum(math.exp(z) for z in row)
        p = [math.exp(z) / total for z in row]
        assert value == pytest.approx(-sum(share * math.log(share) for share in p if share), abs=1e-9)
        assert 0 <= value <= math.log(3) + 1e-12
        assert loss == pytest.approx(-math.log(p[0]), abs=1e-9)
        assert loss >= 0

        sure = doubt(torch.tensor([row], dtype=torch.float64))[0]
        assert sure == pytest.approx(1 - max(p), abs=1e-12)
        assert 0 <= sure <= 2 / 3 + 1e-12


def test_doubt_by_hand_and_beyond_the_rounding_of_one() -> None:
    logits = torch.tensor([[math.log(3), 0.0], [0.0, 0.0], [100.0, 0.0]])
    assert doubt(logits).tolist() == pytest.approx([0.25, 0.5, math.exp(-100)], rel=1e-6)


def test_all_statistics_at_once_are_those_that_are_taken_alone() -> None:
    outputs = Outputs(
        logits=torch.randn((40, 5), generator=torch.Generator().manual_seed(0)), targets=torch.arange(40) % 5
    )
    found = statistics(outputs)
    assert set(found) == set(STATISTICS)
    np.testing.assert_array_equal(found["entropy"], entropy(outputs.logits))
    np.testing.assert_array_equal(found["loss"], cross_entropy(outputs.logits, outputs.targets))
    np.testing.assert_array_equal(found["confidence"], doubt(outputs.logits))
    torch_loss = F.cross_entropy(outputs.logits.double(), outputs.targets, reduction="none")
    np.testing.assert_allclose(found["loss"], torch_loss.numpy(), rtol=1e-14)


# The population attack


@settings(deadline=None)
@given(sides)
def test_the_auc_is_scikit_learns_ties_included(both: tuple[Array, Array]) -> None:
    members, others = both
    labels = np.concatenate([np.ones(len(members)), np.zeros(len(others))])
    wanted = roc_auc_score(labels, -np.concatenate(both))  # low means member
    assert population_attack(members, others).auc == pytest.approx(wanted, abs=1e-12)


@given(sides)
def test_the_auc_is_the_share_of_pairs_in_order(both: tuple[Array, Array]) -> None:
    members, others = both
    won = sum((m < o) + 0.5 * (m == o) for m in members for o in others)
    assert population_attack(members, others).auc == pytest.approx(won / (len(members) * len(others)))


@given(sides)
def test_the_statistic_turned_round_or_the_sides_exchanged_mirror_the_auc(both: tuple[Array, Array]) -> None:
    members, others = both
    auc = population_attack(members, others).auc
    assert population_attack(-members, -others).auc == pytest.approx(1 - auc)
    assert population_attack(others, members).auc == pytest.approx(1 - auc)
    assert population_attack(members, members).auc == pytest.approx(0.5)


def slow_tpr(members: Array, others: Array, most: float) -> float:
    rates = [0.0]
    for threshold in {*members.tolist(), *others.tolist()}:
        if np.mean(others <= threshold) <= most:
            rates.append(float(np.mean(members <= threshold)))
    return max(rates)


@given(st.integers(0, 10_000), st.integers(1, 300), st.integers(1, 300), st.sampled_from([5, 60, 10_000]))
def test_members_found_at_one_percent_false_alarms_equal_the_slow_search(
    seed: int, members: int, others: int, values: int
) -> None:
    draws = random(seed)
    low, high = draws.integers(0, values, members) / 7, draws.integers(0, values, others) / 7 + values / 20
    assert population_attack(low, high).tpr_at_1_percent_fpr == slow_tpr(low, high, 0.01)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 1500))
def test_the_other_rates_equal_the_slow_search_too(seed: int, members: int, others: int) -> None:
    draws = random(seed)
    low, high = draws.integers(0, 60, members) / 7, draws.integers(0, 60, others) / 7
    found = population_attack(low, high)
    assert found.tpr_at_tenth_percent_fpr == slow_tpr(low, high, 0.001)
    assert found.reversed_tpr_at_1_percent_fpr == pytest.approx(slow_tpr(-low, -high, 0.01))
    assert found.told == pytest.approx(max(found.auc, population_attack(-low, -high).auc))


def test_one_false_alarm_in_a_hundred_is_one_percent_and_in_99_is_more() -> None:
    members, others = np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.5, *[9.0] * 99])
    assert population_attack(members, others).tpr_at_1_percent_fpr == 1.0
    assert population_attack(members, others[:-1]).tpr_at_1_percent_fpr == 0.5


@given(sides)
def test_every_point_of_the_curve_is_what_its_threshold_gives(both: tuple[Array, Array]) -> None:
    members, others = both
    curve = population_attack(members, others)
    assert curve.thresholds[0] == -np.inf
    assert curve.thresholds[1:].tolist() == sorted({*members.tolist(), *others.tolist()})
    for threshold, tpr, fpr in zip(
        curve.thresholds, curve.true_positive_rates, curve.false_positive_rates, strict=True
    ):
        assert tpr == np.mean(members <= threshold)
        assert fpr == np.mean(others <= threshold)
    assert (curve.true_positive_rates[-1], curve.false_positive_rates[-1]) == (1, 1)
    assert (curve.members, curve.non_members) == (len(members), len(others))


def test_members_all_lower_are_told_perfectly_and_all_higher_perfectly_the_other_way() -> None:
    low, high = np.linspace(0, 1, 30), np.linspace(2, 3, 50)
    told, turned = population_attack(low, high), population_attack(high, low)
    assert (told.auc, told.tpr_at_1_percent_fpr) == pytest.approx((1.0, 1.0))
    assert (turned.auc, turned.tpr_at_1_percent_fpr) == pytest.approx((0.0, 0.0))


def test_infinite_statistics_are_ordered_like_others() -> None:
    # Pairs: 0 < inf, 0 < 1, inf = inf, inf > 1: (1 + 1 + 1/2 + 0) / 4.
    assert population_attack(np.array([0.0, np.inf]), np.array([np.inf, 1.0])).auc == 0.625


def test_on_random_statistics_the_attack_is_at_chance_by_its_own_standard_error() -> None:
    scores = [
        population_attack(random(seed).normal(size=300), random(seed + 1000).normal(size=200)) for seed in range(100)
    ]
    z = np.array([(roc.auc - 0.5) / roc.auc_standard_error for roc in scores])
    assert abs(z.mean()) < 0.4  # four standard errors of the mean of 100
    assert 0.7 < z.std() < 1.3
    assert np.abs(z).max() < 5


def test_the_standard_error_of_chance_is_mann_and_whitneys() -> None:
    roc = population_attack(np.arange(3.0), np.arange(4.0))
    assert roc.auc_standard_error == pytest.approx(math.sqrt(8 / 144))
    # Against the exact variance of all 3! = 6 orders of one member among two others: AUC 0, 1/2, 1: 1/6.
    assert population_attack(np.zeros(1), np.zeros(2)).auc_standard_error == pytest.approx(math.sqrt(1 / 6))


@pytest.mark.parametrize("most", [2, 50, 200])
def test_a_thinned_curve_keeps_both_ends_the_scores_and_points_of_the_curve(most: int) -> None:
    draws = random(0)
    curve = population_attack(draws.normal(size=700), draws.normal(size=500))
    thin = curve.thinned(most)
    assert len(thin.thresholds) == len(thin.true_positive_rates) == len(thin.false_positive_rates) == most
    for name in ("thresholds", "true_positive_rates", "false_positive_rates"):
        kept, whole = getattr(thin, name), getattr(curve, name)
        assert (kept[0], kept[-1]) == (whole[0], whole[-1])
        assert set(kept) <= set(whole)
    assert (thin.auc, thin.tpr_at_1_percent_fpr) == (curve.auc, curve.tpr_at_1_percent_fpr)
    assert thin.auc_standard_error == curve.auc_standard_error


def test_a_short_curve_is_not_thinned() -> None:
    curve = population_attack(np.arange(5.0), np.arange(5.0))
    assert curve.thinned(6) is curve


def test_empty_sides_and_nan_are_refused() -> None:
    ok, none = np.zeros(2), np.empty(0)
    with pytest.raises(ValueError, match="wanted members and non-members, got 0 and 2"):
        population_attack(none, ok)
    with pytest.raises(ValueError, match="wanted members and non-members, got 2 and 0"):
        population_attack(ok, none)
    for members, others in ((np.array([0, np.nan]), ok), (ok, np.array([0, np.nan]))):
        with pytest.raises(ValueError, match="holds NaN"):
            population_attack(members, others)


# The published entropy attack


def fits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[float], list[int]]]:
    """What every classifier from here on is fitted on: values and labels."""
    noted: list[tuple[list[float], list[int]]] = []
    real = SVC.fit

    def fit(self: SVC, values: Array, labels: Any) -> Any:
        noted.append((values[:, 0].tolist(), labels.tolist()))
        assert (self.C, self.gamma, self.kernel, self.class_weight) == (3, "auto", "rbf", None)
        return real(self, values, labels)

    monkeypatch.setattr(SVC, "fit", fit)
    return noted


def test_the_published_attack_calls_low_entropies_members_where_members_are_low() -> None:
    retain, holdout = np.linspace(0, 0.2, 60), np.linspace(1.8, 2, 30)
    assert entropy_attack(retain, holdout, np.array([0.05, 0.1, 0.15]), seed=0) == 1.0
    assert entropy_attack(retain, holdout, np.array([1.85, 1.9]), seed=0) == 0.0
    assert entropy_attack(retain, holdout, np.array([0.1, 1.85, 1.9, 1.95]), seed=0) == 0.25
    assert entropy_attack(2 - retain, 2 - holdout, np.array([1.9]), seed=0) == 1.0  # and the other way round


def test_the_published_attack_tells_members_of_random_entropies_no_better_than_chance() -> None:
    draws = random(0)
    retain, holdout, members, others = (draws.random(600) for _ in range(4))
    called = [entropy_attack(retain, holdout, asked, seed=0) for asked in (members, others)]
    accuracy = (called[0] + 1 - called[1]) / 2
    assert accuracy == pytest.approx(0.5, abs=0.05)


def test_the_forget_rows_are_never_among_those_it_is_fitted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    noted = fits(monkeypatch)
    retain, holdout, forget = random(0).random(40), random(1).random(30), random(2).random(20)
    whole = entropy_attack(retain, holdout, forget, seed=0)
    assert noted == [([*retain, *holdout], [1] * 40 + [0] * 30)]
    parts = [entropy_attack(retain, holdout, part, seed=0) for part in (forget[:5], forget[5:])]
    assert whole == pytest.approx((5 * parts[0] + 15 * parts[1]) / 20)


def test_many_rows_are_cut_to_a_seeded_draw_of_about_the_same_proportion(monkeypatch: pytest.MonkeyPatch) -> None:
    noted = fits(monkeypatch)
    retain, holdout, forget = random(0).random(900), random(1).random(300), np.array([0.5])
    for seed in (1, 1, 2):
        entropy_attack(retain, holdout, forget, seed=seed, most=200)
    assert [len(values) for values, _ in noted] == [200, 200, 200]
    assert noted[0] == noted[1]
    assert noted[0] != noted[2]
    member = dict.fromkeys(retain, 1) | dict.fromkeys(holdout, 0)
    for values, labels in noted:
        assert len(set(values)) == 200  # none twice
        assert labels == [member[value] for value in values]
        assert 120 <= sum(labels) <= 180  # 150 are expected; the standard deviation is 5.6


def test_as_many_rows_as_allowed_are_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    noted = fits(monkeypatch)
    entropy_attack(random(0).random(60), random(1).random(40), np.array([0.5]), seed=0, most=100)
    assert len(noted[0][0]) == 100


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 80), st.integers(1, 80), st.sampled_from([0.01, 1.0, 50.0]))
def test_the_classifier_calls_members_what_scikit_learns_predict_calls_so(
    seed: int, members: int, others: int, scale: float
) -> None:
    draws = random(seed)
    values = scale * np.concatenate([draws.gamma(1, size=members), draws.gamma(2, size=others)])
    label = np.repeat([1, 0], [members, others])
    asked = scale * draws.gamma(1.5, size=1500)  # more than are asked about at once
    fitted = SVC(C=3, gamma="auto", kernel="rbf").fit(values[:, None], label)
    unsure = np.abs(fitted.decision_function(asked[:, None])) < 1e-9  # the last digits of a sum decide there
    wanted = fitted.predict(asked[:, None])
    assert called_by_svc(values, label, asked) == pytest.approx(wanted.mean(), abs=unsure.mean() + 1e-12)
    sure = asked[~unsure]
    if len(sure):
        assert called_by_svc(values, label, sure) == pytest.approx(wanted[~unsure].mean(), abs=1e-12)


@pytest.mark.parametrize("empty", [0, 1, 2])
def test_the_published_attack_refuses_an_empty_set(empty: int) -> None:
    sets = [np.zeros(0) if place == empty else np.linspace(0, 1, 5) for place in range(3)]
    with pytest.raises(ValueError, match=r"wanted retain, holdout and forget rows, got .*0"):
        entropy_attack(*sets, seed=0)


def test_a_draw_of_one_kind_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="3 rows drawn for the entropy attack are all of one kind"):
        entropy_attack(np.linspace(0, 1, 5000), np.ones(1), np.ones(1), seed=0, most=3)


# The balanced entropy attack


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 60), st.integers(2, 60), st.floats(-3, 3))
def test_the_balanced_attack_calls_what_scikit_learns_logistic_regression_calls(
    seed: int, members: int, others: int, apart: float
) -> None:
    draws = random(seed)
    retain, holdout = draws.normal(size=members), draws.normal(apart, size=others)
    asked = draws.normal(apart / 2, 2, size=50)
    order = np.random.default_rng(seed)
    mine, theirs = order.permutation(retain), order.permutation(holdout)
    fitted = LogisticRegression(class_weight="balanced", tol=1e-10, max_iter=10_000).fit(
        np.concatenate([mine[::2], theirs[::2]])[:, None],
        np.concatenate([np.ones(len(mine[::2])), np.zeros(len(theirs[::2]))]),
    )
    margins = fitted.decision_function(asked[:, None])
    found = balanced_entropy_attack(retain, holdout, asked, seed=seed)
    unsure = np.mean(np.abs(margins) < 1e-5)
    assert found.called == pytest.approx(np.mean(margins > 0), abs=unsure + 1e-12)


def test_the_balanced_attack_is_blind_to_how_many_rows_a_side_has() -> None:
    draws = random(0)
    retain, holdout, asked = draws.normal(0, 1, 4000), draws.normal(1, 1, 200), draws.normal(1, 1, 1000)
    found = balanced_entropy_attack(retain, holdout, asked, seed=0)
    assert found.called == pytest.approx(0.31, abs=0.06)  # P(N(1, 1) < 1/2) = 0.309
    assert found.accuracy == pytest.approx(0.69, abs=0.06)


def test_the_balanced_attack_reports_chance_on_random_entropies_and_certainty_apart() -> None:
    draws = random(1)
    chance = balanced_entropy_attack(draws.random(2000), draws.random(2000), draws.random(10), seed=0)
    assert chance.accuracy == pytest.approx(0.5, abs=0.05)
    apart = balanced_entropy_attack(np.linspace(0, 1, 40), np.linspace(90, 91, 9), np.array([0.5, 90.0]), seed=0)
    assert (apart.called, apart.accuracy) == (0.5, 1.0)


def test_the_balanced_attack_refuses_too_few_rows_and_nan() -> None:
    ok = np.zeros(2)
    with pytest.raises(ValueError, match="got 1, 2, 2"):
        balanced_entropy_attack(np.zeros(1), ok, ok, seed=0)
    with pytest.raises(ValueError, match="NaN"):
        balanced_entropy_attack(ok, ok, np.array([np.nan]), seed=0)


# The report


def confident(count: int, sure: float, seed: int) -> Outputs:
    """Right predictions whose certainty varies about `sure`."""
    targets = torch.arange(count) % 3
    certainty = sure + torch.rand((count, 1), generator=torch.Generator().manual_seed(seed))
    logits: Tensor = certainty * F.one_hot(targets, 3)
    return Outputs(logits=logits, targets=targets)


def sets(forget_train: float, forget_test: float) -> dict[str, Outputs]:
    return {
        "retain.train": confident(60, 5, 0),
        "retain.test": confident(40, 3, 1),
        "forget.train": confident(30, forget_train, 2),
        "forget.test": confident(20, forget_test, 3),
    }


def test_the_report_asks_both_questions_of_both_models_with_every_statistic() -> None:
    found = membership_attacks({"original": sets(5, 3), "unlearned": sets(1, 3)}, seed=0)
    keys = {
        f"{name}.{asked}.{m}"
        for name in STATISTICS
        for asked in ("forget", "retain")
        for m in ("original", "unlearned")
    }
    assert set(found.curves) == keys
    assert set(found.standard_errors) == {f"membership_auc.{key}" for key in keys}
    assert set(found.metrics) == (
        {
            f"membership_{score}.{key}"
            for score in ("auc", "tpr_at_1_percent_fpr", "tpr_at_tenth_percent_fpr")
            for key in keys
        }
        | {"entropy_attack.forget.original", "entropy_attack.forget.unlearned"}
    )
    for name in STATISTICS:
        assert found.metrics[f"membership_auc.{name}.forget.original"] == pytest.approx(1.0)
        assert found.metrics[f"membership_auc.{name}.forget.unlearned"] == pytest.approx(
            0.0
        )  # less sure than unseen rows: as telling
        assert found.metrics[f"membership_auc.{name}.retain.unlearned"] == pytest.approx(1.0)
    assert found.metrics["entropy_attack.forget.original"] == 1.0
    assert found.metrics["entropy_attack.forget.unlearned"] < 0.2
    curve = found.curves["loss.forget.original"]
    assert (curve.members, curve.non_members) == (30, 20)
    error = math.sqrt(51 / (12 * 30 * 20))
    assert found.standard_errors["membership_auc.loss.forget.original"] == pytest.approx(error)


def test_forgotten_rows_like_rows_never_seen_are_at_chance() -> None:
    found = membership_attacks({"unlearned": sets(2, 2)}, seed=0)
    for name in STATISTICS:
        error = found.standard_errors[f"membership_auc.{name}.forget.unlearned"]
        assert found.metrics[f"membership_auc.{name}.forget.unlearned"] == pytest.approx(0.5, abs=3 * error)


def test_held_out_retain_rows_stand_in_for_held_out_forget_rows() -> None:
    outputs = sets(5, 1)
    del outputs["forget.test"]
    curve = membership_attacks({"original": outputs}, seed=0).curves["entropy.forget.original"]
    assert (curve.members, curve.non_members) == (30, 40)


def test_of_a_further_retrained_model_the_gap_alone_is_wanted() -> None:
    known = {"original": sets(5, 3), "unlearned": sets(1, 3), "retrained": sets(3, 3)}
    one, more = (membership_attacks(models, seed=0) for models in (known, {**known, "retrained_2": sets(2, 3)}))
    further = {name for name in more.metrics if name.endswith(".retrained_2")}
    assert further == {name for name in more.metrics if ".forget.retrained_2" in name and "entropy_attack" not in name}
    gaps = {name for name in one.metrics if "gap" in name}
    assert gaps
    for name, value in one.metrics.items():
        if name in gaps:
            assert more.metrics[name] != value
        else:
            assert more.metrics[name] == value


def test_broken_outputs_are_refused() -> None:
    outputs = sets(5, 3)
    outputs["forget.train"].logits[0, 0] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        membership_attacks({"original": outputs}, seed=0)


def test_the_gap_to_a_retrained_model_is_the_difference_of_the_attacks() -> None:
    metrics = {
        "membership_auc.loss.forget.unlearned": 0.55,
        "membership_auc.loss.forget.retrained": 0.5,
        "membership_auc.entropy.forget.unlearned": 0.5,
    }
    metrics["membership_auc.loss.forget.original"] = 0.9
    errors: dict[str, float] = {}
    draws = np.random.default_rng(0)
    sides = {name: (draws.normal(size=20), draws.normal(size=30)) for name in ("original", "unlearned", "retrained")}
    add_gaps(metrics, errors, {"loss": sides, "entropy": {"unlearned": sides["unlearned"]}})
    assert metrics["membership_gap.loss.forget"] == pytest.approx(0.05)
    assert errors["membership_gap.loss.forget"] == auc_gap_error(sides["unlearned"], sides["retrained"])
    assert metrics["control.membership_gap.loss.forget"] == pytest.approx(0.4)
    assert "membership_gap.entropy.forget" not in metrics  # the retrained model was not attacked
    metrics["membership_auc.loss.forget.retrained 2"] = 0.7
    add_gaps(metrics, errors, {"loss": {**sides, "retrained 2": sides["original"]}}, ["retrained 2"])
    assert metrics["membership_gap.loss.forget"] == pytest.approx(0.55 - 0.6)
    spread = math.sqrt(0.02 * 1.5)  # of 0.5 and 0.7, for the mean of two
    assert errors["membership_gap.loss.forget"] == pytest.approx(
        math.hypot(auc_gap_error(sides["unlearned"], sides["retrained"]), spread)
    )
