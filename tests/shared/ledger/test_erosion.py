from collections.abc import Callable
from typing import Any

import pytest

from unlearning.errors import UsageError
from unlearning.ledger.claims import Claim, ClaimLostError
from unlearning.ledger.figures import alarms, prometheus
from unlearning.ledger.filing import file_requests
from unlearning.ledger.ladder import claim_next, retested, turn_away
from unlearning.ledger.overview import status
from unlearning.ledger.promotion import Version, begin, confirm, settle, standing
from unlearning.ledger.requests import DeletionRequest
from unlearning.ledger.store import Ledger
from unlearning.ledger.verification import verify
from unlearning.policy.gates import Bound, retest_policy, without_retest

Make = Callable[..., DeletionRequest]
FINE = {
    "metric": "retest.class_accuracy",
    "value": 0.01,
    "standard_error": 0.01,
    "low": None,
    "high": 0.05,
    "outcome": "pass",
    "why": "w",
    "reason": "retest.class_accuracy is 0.01",
}
BACK = {**FINE, "value": 0.4, "outcome": "fail", "reason": "retest.class_accuracy is 0.4, above 0.05"}


def claimed(ledger: Ledger, request: DeletionRequest | None = None, **options: Any) -> tuple[Claim, str]:
    list(file_requests(ledger, [request] if request else [], actor="intake"))
    found = claim_next(ledger, owner="run", **options)
    assert found is not None
    return found.claim, found.step


def settled(ledger: Ledger, held: Claim, number: int, outcome: str = "erased_approx_audited") -> None:
    digest = f"{number:064x}"
    begin(ledger, held, Version(digest, standing(ledger, "faces").expected, str(number)))
    confirm(ledger, held, digest)
    settle(ledger, held, outcome=outcome, certificate="c" * 64)


def test_after_so_many_batches_one_is_trained_again_and_the_count_begins_anew(ledger: Ledger, request_of: Make) -> None:
    steps = []
    for number in range(1, 9):
        held, step = claimed(ledger, request_of(number), reset_every=3)
        steps.append(step)
        settled(ledger, held, number, "erased_exact" if step == "retrain" else "erased_approx_audited")
    assert steps == ["first", "first", "first", "retrain", "first", "first", "first", "retrain"]
    assert claimed(ledger, request_of(9))[1] == "first", "0 means never"


def test_what_comes_back_is_refused_alarmed_and_sends_the_next_batch_to_a_retrain(
    ledger: Ledger, request_of: Make
) -> None:
    held, _ = claimed(ledger, request_of(1))
    settled(ledger, held, 1)
    held, step = claimed(ledger, request_of(2))
    assert step == "first"
    for _ in range(2):
        assert retested(ledger, held, "e" * 64, [FINE, BACK]) == [BACK["reason"]]
    assert turn_away(ledger, held, outcome="fail", reasons=[str(BACK["reason"])]) == "stronger"
    assert standing(ledger, "faces").eroded
    assert "faces" in next(
        why for why in alarms(status(ledger), ledger.clock(), cadence_days=7) if "shows again" in why
    )
    assert "\nunlearning_models_eroded 1\n" in prometheus(status(ledger))
    (one,) = ledger.events_of("faces", "retested")
    assert [measure["value"] for measure in one.content["measures"]] == [0.01, 0.4]
    (alarm,) = ledger.events_of("faces", "eroded")
    assert alarm.content["reasons"] == [BACK["reason"]]
    held, step = claimed(ledger)
    assert step == "retrain", "not merely stronger settings"
    assert retested(ledger, held, "d" * 64, [FINE]) == []
    settled(ledger, held, 2, "erased_exact")
    assert not standing(ledger, "faces").eroded
    assert status(ledger).eroded == []
    assert claimed(ledger, request_of(3))[1] == "first"
    assert verify(ledger) == []


def test_nothing_to_retest_leaves_no_event_and_who_lost_the_claim_writes_none(ledger: Ledger, request_of: Make) -> None:
    held, _ = claimed(ledger, request_of(1))
    head = ledger.head()
    assert retested(ledger, held, "e" * 64, []) == []
    assert ledger.head() == head
    turn_away(ledger, held, outcome="fail", reasons=["no"])
    with pytest.raises(ClaimLostError):
        retested(ledger, held, "e" * 64, [BACK])


def test_a_policy_may_move_or_drop_what_is_asked_of_earlier_deletions() -> None:
    assert set(retest_policy({})) == {"retest.class_accuracy", "retest.seen_gap", "retest.membership_auc"}
    moved = retest_policy(
        {"retest.seen_gap": {"high": 0.2}, "retest.class_accuracy": "none", "weights_changed": "none"}
    )
    assert moved["retest.seen_gap"] == Bound(high=0.2)
    assert "retest.class_accuracy" not in moved
    assert retest_policy(dict.fromkeys(retest_policy({}), "none")) == {}
    assert without_retest({"retest.seen_gap": "none", "weights_changed": "none"}) == {"weights_changed": "none"}
    with pytest.raises(UsageError, match="unknown metric"):
        retest_policy({"retest.sen_gap": {"high": 1}})
    with pytest.raises(UsageError, match="high"):
        retest_policy({"retest.seen_gap": {"hihg": 1}})
