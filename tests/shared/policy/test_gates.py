import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearning.errors import UsageError
from unlearning.policy.gates import (
    CLASS_POLICY,
    COPIES,
    FINDINGS,
    ROWS_POLICY,
    VALUES_POLICY,
    Bound,
    Verdict,
    check_audit,
    judge,
    policy_for,
    policy_with,
    shadows_in,
)

POLICY = {"leak": Bound(high=0.05, why="little is left"), "auc": Bound(low=0.4, high=0.6)}
GOOD = {"leak": 0.01, "auc": 0.5}


def outcome(value: float | None, error: float = 0.0, **ends: float) -> str:
    return judge({"metric": value}, {"metric": error}, {"metric": Bound(**ends)}).outcome


def test_inside_the_bounds_passes_with_both_ends_included() -> None:
    for value in (0.4, 0.5, 0.6):
        assert outcome(value, low=0.4, high=0.6) == "pass"
    assert outcome(-1e9, high=0.6) == "pass"
    assert outcome(1e9, low=0.4) == "pass"


@pytest.mark.parametrize(("value", "side"), [(0.3, "below 0.4"), (0.7, "above 0.6")])
def test_outside_either_side_fails_unless_two_standard_errors_reach_the_bound(value: float, side: str) -> None:
    for error, wanted in ((0.0, "fail"), (0.049, "fail"), (0.051, "inconclusive"), (10.0, "inconclusive")):
        verdict = judge({"auc": value}, {"auc": error}, {"auc": Bound(low=0.4, high=0.6)})
        assert verdict.outcome == wanted
        assert verdict.reasons[0].startswith(f"auc is {value:g}, {side}")
        assert ("by less than two standard errors" in verdict.reasons[0]) == (wanted == "inconclusive")


def test_a_metric_without_a_standard_error_counts_as_exact() -> None:
    assert judge({"leak": 0.0501, "auc": 0.5}, {}, POLICY).outcome == "fail"


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_a_value_that_is_no_finite_number_fails_however_wide_the_bounds_and_the_error(value: float | None) -> None:
    for error in (0.0, 1e6):
        verdict = judge({"leak": value, "auc": 0.5}, {"leak": error}, POLICY)
        assert verdict.outcome == "fail"
        assert verdict.reasons == ["leak was not measured"]
        assert verdict.gates[0].value is None  # JSON has no NaN


def test_a_missing_metric_fails() -> None:
    verdict = judge({"leak": 0.0}, {}, POLICY)
    assert (verdict.outcome, verdict.reasons) == ("fail", ["auc was not measured"])


@pytest.mark.parametrize("error", [math.nan, math.inf, -0.1])
def test_a_standard_error_that_makes_no_sense_fails_even_inside_the_bounds(error: float) -> None:
    verdict = judge(GOOD, {"leak": error}, POLICY)
    assert verdict.outcome == "fail"
    assert math.isfinite(verdict.gates[0].standard_error)


def test_a_verdict_lists_every_gate_with_its_bounds_in_the_policys_order() -> None:
    verdict = judge({**GOOD, "other": 9.0}, {"auc": 0.02}, POLICY)
    assert (verdict.outcome, verdict.reasons) == ("pass", [])
    assert [
        (gate.metric, gate.value, gate.standard_error, gate.low, gate.high, gate.why) for gate in verdict.gates
    ] == [
        ("leak", 0.01, 0.0, None, 0.05, "little is left"),
        ("auc", 0.5, 0.02, 0.4, 0.6, ""),
    ]
    assert [gate.outcome for gate in verdict.gates] == ["pass", "pass"]


@pytest.mark.parametrize(
    ("leak", "auc", "wanted"),
    [
        (0.01, 0.5, "pass"),
        (0.01, 0.61, "inconclusive"),
        (0.06, 0.5, "inconclusive"),
        (0.01, 0.9, "fail"),
        (0.06, 0.9, "fail"),  # inconclusive beside a failure
        (0.9, 0.61, "fail"),
        (None, 0.61, "fail"),
    ],
)
def test_a_failure_outweighs_doubt_and_doubt_outweighs_a_pass(leak: float | None, auc: float, wanted: str) -> None:
    assert judge({"leak": leak, "auc": auc}, {"leak": 0.02, "auc": 0.02}, POLICY).outcome == wanted


def test_no_bounds_give_no_verdict() -> None:
    for empty in ({}, FINDINGS):
        with pytest.raises(UsageError, match="every gate was dropped; a verdict needs at least one"):
            judge(GOOD, {}, empty)


numbers = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True))
ends = st.one_of(st.none(), st.floats(-1, 1))


@given(st.data())
def test_nothing_passes_that_is_not_measured_inside_every_bound(data: Any) -> None:
    policy = {}
    for name in data.draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=4, unique=True)):
        low, high = data.draw(st.tuples(ends, ends).filter(lambda pair: pair != (None, None)))
        if low is not None and high is not None:
            low, high = min(low, high), max(low, high)
        policy[name] = Bound(low=low, high=high)
    metrics = data.draw(st.dictionaries(st.sampled_from("abcd"), numbers))
    errors = data.draw(st.dictionaries(st.sampled_from("abcd"), st.floats()))
    verdict: Verdict = judge(metrics, errors, policy)
    inside = {
        name: metrics.get(name) is not None
        and math.isfinite(metrics[name])
        and (bound.low is None or bound.low <= metrics[name])
        and (bound.high is None or metrics[name] <= bound.high)
        for name, bound in policy.items()
    }
    if verdict.outcome == "pass":
        assert all(inside.values())
    for gate in verdict.gates:
        assert gate.outcome != "pass" or inside[gate.metric]
        measured = metrics.get(gate.metric)
        if measured is None or not math.isfinite(measured):
            assert gate.outcome == "fail"
    assert bool(verdict.reasons) == (verdict.outcome != "pass")
    # A measured value on the wrong side never becomes a pass by a larger error.
    assert judge(metrics, dict.fromkeys(policy, 1e9), policy).outcome != "pass" or all(inside.values())


# Bounds and policies


@pytest.mark.parametrize(
    "ends", [{}, {"low": None, "high": None}, {"low": math.nan}, {"high": math.inf}, {"low": 0.0, "high": math.nan}]
)
def test_a_bound_needs_a_finite_end(ends: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a bound needs a finite low or high"):
        Bound(**ends)


def test_a_bound_that_nothing_can_meet_is_refused() -> None:
    with pytest.raises(ValueError, match=r"low 0\.6 is above high 0\.4"):
        Bound(low=0.6, high=0.4)
    assert outcome(0.5, low=0.5, high=0.5) == "pass"


def test_overrides_replace_single_bounds_and_leave_the_default_as_it_was() -> None:
    before = dict(CLASS_POLICY)
    policy = policy_with(
        {"retain_accuracy_drop.test": {"high": 0.5, "why": "a demonstration"}, "weights_changed": None}
    )
    assert policy["retain_accuracy_drop.test"] == Bound(high=0.5, why="a demonstration")
    assert set(policy) == set(CLASS_POLICY) - {"weights_changed"}
    assert before == CLASS_POLICY
    assert policy_with({}) == before


def test_an_unknown_metric_is_refused_with_the_nearest_and_all_valid_ones() -> None:
    with pytest.raises(UsageError, match='unknown metric "weight_changed"; did you mean "weights_changed"') as caught:
        policy_with({"weight_changed": {"low": 0}})
    assert all(name in str(caught.value) for name in CLASS_POLICY)
    with pytest.raises(UsageError, match="unknown metric"):
        policy_with({"weight_changed": None})  # a misspelt gate is not dropped silently


@pytest.mark.parametrize("bound", [0.5, [0, 1], "0.5", True])
def test_an_override_must_be_a_mapping(bound: Any) -> None:
    with pytest.raises(UsageError, match=r'policy: "weights_changed" wants \{"low": \.\.\., "high": \.\.\.\}, got'):
        policy_with({"weights_changed": bound})


@pytest.mark.parametrize(
    ("bound", "message"),
    [
        ({}, "a bound needs a finite low or high"),
        ({"hihg": 0.5}, 'unknown setting "hihg"; did you mean "high"'),
        ({"low": 1, "high": 0}, "is above high"),
        ({"low": "much"}, "low: "),
        ({"high": math.nan}, "a bound needs a finite low or high"),
    ],
)
def test_an_override_that_makes_no_sense_is_refused_by_name(bound: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        policy_with({"weights_changed": bound})
    assert str(caught.value).startswith('policy "weights_changed": ')


def test_not_every_gate_may_be_dropped() -> None:
    with pytest.raises(UsageError, match="every gate was dropped; a verdict needs at least one"):
        policy_with(dict.fromkeys(CLASS_POLICY))


def test_there_is_a_policy_for_every_kind_of_request_that_tells_forgetting_from_copying_and_from_ruin() -> None:
    for request in ("class", "sample", "subject"):
        policy = policy_for("classification", request)
        assert policy["weights_changed"].low is not None
        assert policy["weights_changed"].low > 0
        assert policy["retain_accuracy_drop.test"].high is not None
        assert {policy[f"membership_auc.{name}.forget.unlearned"].low for name in ("entropy", "loss")} == {0.4}
        assert all(bound.why for bound in policy.values())


def test_the_policy_for_values_is_two_sided_where_forgetting_is_looking_like_unseen_rows() -> None:
    policy = policy_for("regression", "sample")
    assert policy == {**FINDINGS, **VALUES_POLICY, "overlap.forget_in_retain.share": COPIES}
    two_sided = {name for name, bound in policy.items() if bound.low is not None and bound.high is not None}
    assert two_sided == {"seen_advantage.forget.unlearned", "membership_auc.residual.forget.unlearned"}
    assert policy["retain_error_rise.test"].high == 0.1
    assert policy["weights_changed"].low == CLASS_POLICY["weights_changed"].low
    assert all(bound.why for bound in policy.values())


def test_the_rows_policy_holds_the_gap_between_seen_and_unseen_rows_on_both_sides() -> None:
    looks_unseen = {
        "seen_gap.forget.unlearned": 0.01,
        "retain_accuracy_drop.test": 0.01,
        "worst_class_drop.test": 0.02,
        "membership_auc.entropy.forget.unlearned": 0.52,
        "membership_auc.loss.forget.unlearned": 0.48,
        "weights_changed": 0.1,
    }
    assert judge(looks_unseen, {}, ROWS_POLICY).outcome == "pass"
    for gap in (0.2, -0.2):
        assert judge({**looks_unseen, "seen_gap.forget.unlearned": gap}, {}, ROWS_POLICY).outcome == "fail"


def test_the_class_policy_fails_a_model_that_was_only_copied_and_one_that_lost_everything() -> None:
    copied = {
        "forget_accuracy.test.unlearned": 0.95,
        "forget_accuracy.train.unlearned": 1.0,
        "retain_accuracy_drop.test": 0.0,
        "worst_class_drop.test": 0.0,
        "membership_auc.entropy.forget.unlearned": 0.5,
        "membership_auc.loss.forget.unlearned": 0.5,
        "weights_changed": 0.0,
    }
    assert set(copied) == set(CLASS_POLICY)
    failed = {gate.metric for gate in judge(copied, {}, CLASS_POLICY).gates if gate.outcome == "fail"}
    assert failed == {"forget_accuracy.test.unlearned", "forget_accuracy.train.unlearned", "weights_changed"}
    forgotten = {**copied, "weights_changed": 0.1}
    forgotten |= dict.fromkeys(("forget_accuracy.test.unlearned", "forget_accuracy.train.unlearned"), 0.0)
    assert judge(forgotten, {}, CLASS_POLICY).outcome == "pass"
    ruined = {**forgotten, "retain_accuracy_drop.test": 0.8, "worst_class_drop.test": 0.9}
    assert judge(ruined, {}, CLASS_POLICY).outcome == "fail"
    for auc in (0.1, 0.9):  # more sure, or less sure, than of rows never seen
        told = {**forgotten, "membership_auc.entropy.forget.unlearned": auc}
        assert judge(told, {}, CLASS_POLICY).outcome == "fail"


REQUESTS = (
    ("classification", "class"),
    ("classification", "sample"),
    ("classification", "subject"),
    ("regression", "sample"),
)


@pytest.mark.parametrize(("task", "request_"), REQUESTS)
def test_distances_from_a_retrained_model_take_the_place_of_those_from_unseen_rows(task: str, request_: str) -> None:
    alone, beside = policy_for(task, request_), policy_for(task, request_, reference=True)
    gone, added = alone.keys() - beside.keys(), beside.keys() - alone.keys()
    assert gone == {name for name in alone if name.startswith(("seen_", "membership_auc."))}
    assert gone
    assert {"forget_gap.train" if task == "classification" else "forget_error_gap.train"} < added
    assert len([name for name in added if name.startswith("membership_gap.")]) == len(
        [name for name in gone if name.startswith("membership_auc.")]
    )
    for name in added:
        if name.startswith(("forget", "membership")):
            assert beside[name].low is not None  # forgetting too much is a distance as well
            assert beside[name].high == -(beside[name].low or 0)
    assert ("control.negative" in beside) == (request_ == "class")  # only there are unseen rows drawn alike
    assert policy_with({name: {"low": -1, "high": 1} for name in gone}, beside).keys() == beside.keys() | gone


WIDENING = Bound(low=-0.1, high=0.1, chance=3, widest=0.25)


@pytest.mark.parametrize(
    ("value", "error", "wanted", "ends"),
    [
        (0.09, 0.01, "pass", (-0.1, 0.1)),
        (0.11, 0.001, "fail", (-0.1, 0.1)),
        (0.11, 0.03, "inconclusive", (-0.1, 0.1)),
        (0.14, 0.05, "pass", (-0.15, 0.15)),  # what chance alone gives
        (-0.14, 0.05, "pass", (-0.15, 0.15)),
        (0.16, 0.05, "inconclusive", (-0.15, 0.15)),
        (0.21, 0.05, "fail", (-0.15, 0.15)),
        (0.0, 0.09, "inconclusive", (-0.25, 0.25)),  # 3 x 0.09 is more than 0.25: nothing could have been told
        (0.2, 0.09, "inconclusive", (-0.25, 0.25)),
        (0.5, 0.09, "fail", (-0.25, 0.25)),
    ],
)
def test_a_bound_gives_way_to_chance_but_never_so_far_that_it_tells_nothing(
    value: float, error: float, wanted: str, ends: tuple[float, float]
) -> None:
    gate = judge({"gap": value}, {"gap": error}, {"gap": WIDENING}).gates[0]
    assert gate.outcome == wanted
    assert (gate.low, gate.high) == pytest.approx(ends)
    assert ("too few rows to tell" in gate.reason) == (abs(value) <= 0.25 and error == 0.09)


@settings(deadline=None)
@given(st.floats(-1, 1), st.floats(0, 1))
def test_no_value_beyond_the_widest_ends_passes_and_no_error_makes_one_inside_fail(value: float, error: float) -> None:
    outcome = judge({"gap": value}, {"gap": error}, {"gap": WIDENING}).outcome
    assert outcome != "pass" or abs(value) <= 0.25
    assert outcome != "fail" or abs(value) > 0.1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"high": 0.1, "chance": 3, "widest": 0.2}, "chance needs two ends"),
        ({"low": -0.1, "high": 0.1, "chance": -1, "widest": 0.2}, "chance needs two ends and to be above 0"),
        ({"low": -0.1, "high": 0.1, "chance": 3}, "chance needs a finite widest"),
        ({"low": -0.1, "high": 0.1, "chance": 3, "widest": 0.05}, "at least half of high - low"),
    ],
)
def test_a_bound_that_gives_way_says_how_far(more: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Bound(**more)


def test_whatever_is_known_to_be_wrong_fails_and_comes_first_in_its_own_words() -> None:
    metrics = {"weights_changed": 1.0}
    policy = {**FINDINGS, "weights_changed": CLASS_POLICY["weights_changed"]}
    assert judge(metrics, {}, policy, findings=[]).outcome == "pass"
    found = [{"code": "head_only", "sentence": "only the head changed"}]
    verdict = judge(metrics, {}, policy, findings=found)
    assert verdict.outcome == "fail"
    assert verdict.reasons == ["only the head changed"]
    assert [gate.metric for gate in verdict.gates] == ["finding.head_only", "weights_changed"]
    waived = {name: bound for name, bound in policy.items() if name != "finding.head_only"}
    assert judge(metrics, {}, waived, findings=found).outcome == "pass"
    assert judge(metrics, {}, waived, findings=[{"code": "new", "sentence": "of a newer kind"}]).outcome == "fail"


def test_an_audit_is_named_by_a_word_and_needs_a_retrained_model_and_shadows_a_classifier() -> None:
    assert (shadows_in("none"), shadows_in("attacks"), shadows_in("shadows:16")) == (0, 0, 16)
    for wrong in ("", "all", "shadows", "shadows:", "shadows:3", "shadows:4", "shadows:99999", "shadows:\u0664"):
        with pytest.raises(UsageError, match='audit must be "none", "attacks" or "shadows:16"'):
            shadows_in(wrong)
    check_audit("none", task="regression", reference="none")
    check_audit("attacks", task="classification", reference="train")
    check_audit("attacks", task="regression", reference="train")
    with pytest.raises(UsageError, match="shadow models are of classifiers, the model predicts values"):
        check_audit("shadows:16", task="regression", reference="train")
    with pytest.raises(UsageError, match="an audit compares with a retrained model: give reference=train"):
        check_audit("attacks", task="classification", reference="none")


def test_an_audit_of_values_bounds_nothing() -> None:
    plain, audited = (policy_for("regression", "target", reference=True, audit=asked) for asked in (False, True))
    assert plain == audited


def test_bounds_on_what_an_audit_measures_may_be_added_where_there_is_one() -> None:
    wanted = {"audit.prototype_gap": {"high": 0.2}}
    policy = policy_with(wanted, policy_for("classification", "class", reference=True, audit=True))
    assert policy["audit.prototype_gap"].high == 0.2
    assert "audit.relearning_area.retain_only" in policy
    with pytest.raises(UsageError, match=r'unknown metric "audit\.prototype_gap"'):
        policy_with(wanted, policy_for("classification", "class", reference=True))
