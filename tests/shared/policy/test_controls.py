import pytest

from unlearning.policy.controls import controls
from unlearning.policy.gates import judge, policy_for, policy_with

ROWS = {
    "seen_gap.forget.original": 0.2,
    "membership_auc.loss.forget.original": 0.8,
    "membership_auc.entropy.forget.original": 0.8,
    "seen_gap.forget.retrained": 0.0,
    "membership_auc.loss.forget.retrained": 0.5,
    "membership_auc.entropy.forget.retrained": 0.5,
    "control.forget_gap.train": 0.2,
    "control.membership_gap.loss.forget": 0.3,
    "control.membership_gap.entropy.forget": 0.3,
}
CLASS = {
    "forget_accuracy.train.original": 1.0,
    "forget_accuracy.test.original": 0.98,
    "forget_accuracy.train.retrained": 0.0,
    "forget_accuracy.test.retrained": 0.0,
    **ROWS,
}
ERRORS = dict.fromkeys(CLASS, 0.02)


def held(metrics: dict[str, float], request: str, *, reference: bool) -> dict[str, float]:
    return controls(metrics, ERRORS, task="classification", request=request, reference=reference).metrics


@pytest.mark.parametrize("reference", [False, True])
def test_the_positive_control_holds_where_the_original_would_have_been_refused(reference: bool) -> None:
    assert held(CLASS, "class", reference=reference)["control.positive"] == 1
    assert held(ROWS, "sample", reference=reference)["control.positive"] == 1
    blind = dict.fromkeys(ROWS, 0.0) | {name: 0.5 for name in ROWS if "auc" in name}
    found = controls(blind, ERRORS, task="classification", request="sample", reference=reference)
    assert found.metrics["control.positive"] == 0
    assert "they cannot tell whether rows were learned" in found.sentences[0]


def test_what_was_not_measured_of_the_original_is_no_control() -> None:
    assert held({}, "class", reference=False) == {"control.positive": 0}


def test_the_negative_control_is_about_a_retrained_model_that_looks_as_if_it_had_seen_the_rows() -> None:
    assert "control.negative" not in held(CLASS, "class", reference=False)
    assert held(CLASS, "class", reference=True)["control.negative"] == 1
    seen = {**CLASS, "forget_accuracy.train.retrained": 0.9}
    found = controls(seen, ERRORS, task="classification", request="class", reference=True)
    assert found.metrics["control.negative"] == 0
    assert any("it may have seen them" in sentence for sentence in found.sentences)


@pytest.mark.parametrize(("auc", "class_", "sample"), [(0.8, 0, 0), (0.2, 0, 1), (0.55, 1, 1)])
def test_rows_that_someone_picked_may_be_harder_by_themselves_those_of_a_class_may_not(
    auc: float, class_: int, sample: int
) -> None:
    there = {**CLASS, "membership_auc.loss.forget.retrained": auc}
    assert held(there, "class", reference=True)["control.negative"] == class_
    assert held(there, "sample", reference=True)["control.negative"] == sample


def test_a_control_that_does_not_hold_leaves_the_verdict_open_where_the_policy_asks_for_it() -> None:
    policy = {name: bound for name, bound in policy_for("classification", "class").items() if name.startswith("contr")}
    found = controls({}, {}, task="classification", request="class", reference=False)
    assert judge(found.metrics, found.standard_errors, policy).outcome == "inconclusive"
    holds = controls(CLASS, ERRORS, task="classification", request="class", reference=False)
    assert judge(holds.metrics, holds.standard_errors, policy).outcome == "pass"
    rows = policy_for("classification", "sample", reference=True)
    assert "control.positive" not in rows
    assert "control.positive" in policy_with({"control.positive": {"low": 1}}, rows)


def test_values_have_controls_as_classes_have() -> None:
    metrics = {
        "seen_advantage.forget.original": 0.6,
        "membership_auc.residual.forget.original": 0.9,
        "control.forget_error_gap.train": -0.6,
        "control.membership_gap.residual.forget": 0.4,
        "seen_advantage.forget.retrained": 0.0,
        "membership_auc.residual.forget.retrained": 0.5,
    }
    for request in ("sample", "target", "subject"):
        found = controls(metrics, {}, task="regression", request=request, reference=True)
        assert found.metrics == {"control.positive": 1, "control.negative": 1}
