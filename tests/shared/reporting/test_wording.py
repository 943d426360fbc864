from __future__ import annotations

import pytest

from unlearning.policy.gates import AUDIT_POLICY, AUDITED, CLASS_POLICY, FINDINGS, Bound, judge
from unlearning.reporting.wording import allowed, amount, clean, closing, finding, label, listed, percent, plain, points


@pytest.mark.parametrize("metric", CLASS_POLICY)
def test_every_gated_metric_has_plain_words(metric: str) -> None:
    assert label(metric) != metric
    assert "_" not in label(metric)


def test_an_unknown_metric_keeps_its_name() -> None:
    assert label("zrf") == "zrf"
    assert label("forget_accuracy.moon") == "forget_accuracy.moon"


def test_each_kind_of_metric_has_its_own_unit() -> None:
    assert amount("forget_accuracy.test", 0.9725) == "97.2%"
    assert amount("retain_accuracy_drop.test", 0.0064) == "0.6 points"
    assert amount("retain_accuracy_drop.test", -0.01) == "\u22121.0 points"
    assert amount("membership_auc.forget", 0.5) == "0.500"
    assert amount("weights_changed", 0.0371) == "0.0371"
    assert amount("weights_changed", None) == "not measured"


def test_nearly_nothing_and_nearly_all_do_not_look_like_nothing_and_all() -> None:
    assert (percent(0.0), percent(0.0004), percent(0.99999), percent(1.0)) == ("0.0%", "<0.1%", ">99.9%", "100.0%")
    assert percent(None) == "\u2013"


def test_a_value_never_looks_like_the_bound_that_it_misses() -> None:
    assert amount("forget_accuracy.test", 0.050004, against=0.05) == "5.0004%"
    assert amount("membership_auc", 0.6504, against=0.65) == "0.6504"
    assert amount("forget_accuracy.test", 0.05, against=0.05) == "5.0%"


def test_ranges_read_as_words() -> None:
    assert allowed("forget_accuracy.test", None, 0.05) == "at most 5%"
    assert allowed("forget_accuracy.test", None, 0.07) == "at most 7%"
    assert allowed("retain_accuracy_drop.test", None, 0.05) == "at most 5 points"
    assert allowed("membership_auc", 0.35, 0.65) == "0.35 to 0.65"
    assert allowed("retain_accuracy", 0.9, None) == "at least 90%"
    assert allowed("membership_auc", 0.12345, None) == "at least 0.12345"
    assert allowed("weights_changed", 1e-6, None) == "at least 1e\u221206"


def test_a_bound_that_was_computed_has_four_digits() -> None:
    assert allowed("membership_gap.loss.forget", -0.2074131234, 0.2074131234) == "\u22120.2074 to 0.2074"
    assert allowed("forget_gap.train", None, 0.0712345678) == "at most 7.123 points"


def test_a_change_has_its_sign_and_none_when_it_rounds_to_nothing() -> None:
    assert points(0.9, 0.8) == "\u221210.0"
    assert points(0.8, 0.9) == "+10.0"
    assert points(0.9, 0.8999) == "0.0"
    assert points(None, 0.9) == "\u2013"


def test_a_name_becomes_one_short_line_without_tricks() -> None:
    assert clean("a\nb\tc\x00d") == "a b c d"
    assert clean("exe\u202egnp") == "exegnp"
    assert clean("\ud800") == "\ufffd"
    assert clean("x" * 10_000) == "x" * 59 + "…"
    assert clean(" " * 10_000 + "hidden") == "…"
    clean("\ud800\u202e" * 5000).encode()


def test_lists_of_classes_stay_short() -> None:
    assert plain(listed(["3"])) == "class 3"
    assert plain(listed(["a", "b", "c"])) == "classes a, b and c"
    assert plain(listed([str(n) for n in range(12)])) == "classes 0, 1, 2, 3, 4 and 7 more"


def test_only_names_that_turn_the_line_keep_their_isolation() -> None:
    assert plain(listed(["chat é…"])) == "class chat é…"
    assert plain(listed(["\u05d0\u05d1"])) == "class \u2068\u05d0\u05d1\u2069"


def test_a_missing_metric_is_said_to_be_missing() -> None:
    verdict = judge({}, {}, {"forget_accuracy.test.unlearned": Bound(high=0.05)})
    expected = "accuracy of the unlearned model on unseen examples of the forgotten classes was not measured"
    assert plain(finding(verdict.gates[0])) == expected


def test_the_closing_names_the_first_failure_even_after_a_doubt() -> None:
    policy = {"retain_accuracy.test": Bound(low=0.9), "membership_auc": Bound(high=0.6), "extra": Bound(high=1)}
    verdict = judge({"retain_accuracy.test": 0.89, "membership_auc": 0.9}, {"retain_accuracy.test": 0.02}, policy)
    assert [gate.outcome for gate in verdict.gates] == ["inconclusive", "fail", "fail"]
    said = plain(closing(verdict))
    assert said == "Membership-attack AUC on examples is 0.900, above the allowed 0.6. One more gate failed."


def test_a_finding_is_told_in_its_own_words() -> None:
    verdict = judge(
        {"weights_changed": 1.0},
        {},
        {**FINDINGS, "weights_changed": CLASS_POLICY["weights_changed"]},
        findings=[{"code": "head_only", "sentence": "only head changed"}],
    )
    gate = verdict.gates[0]
    assert label(gate.metric) == "signs of a change of the output layer alone"
    assert (amount(gate.metric, gate.value), allowed(gate.metric, gate.low, gate.high)) == ("found", "none")
    assert closing(verdict) == "Only head changed."


def test_what_an_audit_measured_is_told_in_words_too() -> None:
    assert label("audit.probe_auc.retrained") == "AUC of a linear probe of the features of the retrained model"
    assert label("audit.prototype_gap") == "accuracy of nearest means of a few rows less the retrained model's"
    area = "area between the relearning curves and the retrained model's, retained rows alone"
    assert label("audit.relearning_area.retain_only") == area
    assert all(label(name) != name for name in (*AUDIT_POLICY, *AUDITED))
    assert label("audit.new_auc.unlearned") == "audit.new_auc.unlearned"
    assert label("audit") == "audit"
