"""What a guard holds waits for people, says why, and is never lost; a budget that is spent is an alarm."""

from collections.abc import Callable
from typing import Any

import pytest

from unlearning.errors import UsageError
from unlearning.ledger.claims import claim
from unlearning.ledger.events import moment
from unlearning.ledger.figures import alarms
from unlearning.ledger.filing import Filed, Hold, file_requests, hold, release
from unlearning.ledger.guards import (
    APPROVALS,
    DAILY,
    SHARE,
    Guards,
    approve,
    cleared,
    guards_from,
    holds,
    too_few,
)
from unlearning.ledger.ladder import claim_next, set_aside, turn_away
from unlearning.ledger.overview import find, list_requests, status
from unlearning.ledger.promotion import Version, begin, confirm, settle
from unlearning.ledger.requests import DeletionRequest
from unlearning.ledger.store import Ledger
from unlearning.ledger.verification import verify

Make = Callable[..., DeletionRequest]


def filed(ledger: Ledger, guards: Guards, *requests: DeletionRequest) -> list[Filed]:
    return list(file_requests(ledger, requests, actor="intake", hold=holds(ledger, guards)))


def state(ledger: Ledger, ref: str) -> tuple[str, str]:
    found = find(ledger, ref)
    return found["state"], found["reason"]


def settled(ledger: Ledger, number: int) -> None:
    held = claim(ledger, owner="run", base=f"{number:064x}")
    assert held is not None
    begin(ledger, held, Version(f"{number + 1:064x}", held.base, "1"))
    confirm(ledger, held, f"{number + 1:064x}")
    settle(ledger, held, outcome="erased_approx_audited", certificate="c" * 64)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("aprovals=2", 'did you mean "approvals"'),
        ("approvals=two", "approvals"),
        ("daily=-1", "0 or more"),
        ("share=0", "above 0"),
        ("share=nan", "above 0"),
        ("hours=inf", "0 or more"),
    ],
)
def test_a_bound_that_is_none_is_refused(text: str, part: str) -> None:
    with pytest.raises(UsageError, match=part):
        guards_from(text)


def test_bounds_are_read_from_one_line() -> None:
    assert guards_from("") == Guards()
    read = guards_from("approvals=2, daily=500,batch=5,share=0.25,hours=40")
    assert read == Guards(approvals=2, daily=500, batch=5, share=0.25, hours=40.0)


def test_a_class_waits_for_two_roles_that_did_not_file_it(ledger: Ledger, request_of: Make) -> None:
    guards = Guards(approvals=2)
    whole, one = filed(ledger, guards, request_of(1, kind="class", ids=["cat"]), request_of(2))
    assert state(ledger, whole.ref) == ("held", "requests of this kind are approved by 2 roles")
    assert state(ledger, one.ref)[0] == "pending", "a person's rows need nobody's leave"
    with pytest.raises(UsageError, match=r"needs 2 approvals.*requests approve"):
        release(ledger, whole.ref, actor="desk")
    with pytest.raises(UsageError, match='"intake" filed'):
        approve(ledger, whole.ref, actor="intake")
    assert approve(ledger, whole.ref, actor="privacy") == 1
    assert approve(ledger, whole.ref, actor="privacy") == 1, "a role counts once"
    assert state(ledger, whole.ref)[0] == "held"
    assert approve(ledger, whole.ref, actor="models") == 0
    assert state(ledger, whole.ref) == ("pending", "")
    assert cleared(ledger, [whole.ref, one.ref], APPROVALS) == {whole.ref}
    assert cleared(ledger, [whole.ref], SHARE) == set(), "another guard may still hold it"
    with pytest.raises(UsageError, match="not held by a guard"):
        approve(ledger, whole.ref, actor="models")
    assert [event.actor for event in find(ledger, whole.ref)["history"] if event.kind == "approved"] == [
        "privacy",
        "models",
    ]
    assert filed(ledger, guards, request_of(1, kind="class", ids=["cat"]))[0].status == "repeated"
    assert state(ledger, whole.ref)[0] == "pending", "filing it again does not hold it again"
    assert verify(ledger) == []


def test_what_a_person_holds_a_person_releases(ledger: Ledger, request_of: Make) -> None:
    (one,) = filed(ledger, Guards(approvals=2), request_of(1, kind="period", ids=["2017"]))
    for role in ("privacy", "models"):
        approve(ledger, one.ref, actor=role)
    hold(ledger, one.ref, "asked back", actor="desk")
    with pytest.raises(UsageError, match="not held by a guard"):
        approve(ledger, one.ref, actor="privacy")
    release(ledger, one.ref, actor="desk")
    assert state(ledger, one.ref)[0] == "pending"


def test_beyond_a_controllers_day_requests_are_kept_and_held(ledger: Ledger, request_of: Make, clock: Any) -> None:
    guards = Guards(daily=3)
    first = filed(ledger, guards, *(request_of(n) for n in range(5)))
    assert [state(ledger, one.ref)[0] for one in first] == ["pending"] * 3 + ["held"] * 2
    assert "more than 3 requests in a day" in state(ledger, first[4].ref)[1]
    filed(ledger, guards, *(request_of(n) for n in range(5)))
    more = filed(ledger, guards, request_of(6), request_of(7, controller="other"))
    assert [state(ledger, one.ref)[0] for one in more] == ["held", "pending"]
    clock.forward(days=1, seconds=1)
    (later,) = filed(ledger, guards, request_of(8, submitted_at=moment(clock())))
    assert state(ledger, later.ref)[0] == "pending"
    assert approve(ledger, first[4].ref, actor="privacy") == 0
    assert cleared(ledger, [first[4].ref], DAILY) == {first[4].ref}
    assert len(list(list_requests(ledger))) == 8, "none is dropped"
    assert verify(ledger) == []


def test_a_batch_that_is_set_aside_by_a_guard_goes_on_once_it_is_approved(ledger: Ledger, request_of: Make) -> None:
    one, two = filed(ledger, Guards(), request_of(1), request_of(2))
    held = claim(ledger, owner="run")
    assert held is not None
    set_aside(ledger, held, Hold("too large a share", SHARE, 1), {one.ref})
    assert [state(ledger, ref.ref)[0] for ref in (one, two)] == ["held", "pending"]
    approve(ledger, one.ref, actor="privacy")
    assert cleared(ledger, [one.ref, two.ref], SHARE) == {one.ref}
    again = claim(ledger, owner="run")
    assert again is not None
    assert again.count == 2
    assert verify(ledger) == []


def test_few_requests_wait_for_more_until_one_is_nearly_due(ledger: Ledger, request_of: Make, clock: Any) -> None:
    guards = Guards(batch=3)
    assert too_few(ledger, "faces", guards, days=21) == 0, "nothing waits"
    filed(ledger, guards, request_of(1), request_of("twin", ids=["user-1"]), request_of(2))
    assert too_few(ledger, "faces", guards, days=21) == 2, "twins are one"
    assert too_few(ledger, "faces", Guards(), days=21) == 0
    clock.forward(days=9)
    assert too_few(ledger, "faces", guards, days=21) == 0, "due on 20 December"
    clock.forward(days=-9)
    filed(ledger, guards, request_of(3, priority="expedite"))
    assert too_few(ledger, "faces", guards, days=21) == 0


def test_a_batch_that_failed_or_was_begun_does_not_wait_for_more(ledger: Ledger, request_of: Make, clock: Any) -> None:
    guards = Guards(batch=5)
    filed(ledger, guards, request_of(1))
    assert claim_next(ledger, owner="a", begin=False) is None
    begun = claim_next(ledger, owner="a", lease_seconds=10)
    assert begun is not None
    clock.forward(seconds=11)
    taken = claim_next(ledger, owner="b", begin=False)
    assert taken is not None, "what was begun is ended"
    turn_away(ledger, taken.claim, outcome="fail", reasons=["m is 2"])
    assert too_few(ledger, "faces", guards, days=21) == 0, "the ladder goes on"


def test_hours_beyond_the_budget_are_an_alarm(ledger: Ledger, request_of: Make, clock: Any) -> None:
    filed(ledger, Guards(), request_of(1))
    held = claim_next(ledger, owner="run", lease_seconds=86_400)
    assert held is not None
    clock.forward(hours=3)
    turn_away(ledger, held.claim, outcome="fail", reasons=["m is 2"])
    settled(ledger, 1)
    now = status(ledger)
    assert (now.batches, now.turned_away, now.batch_hours, now.batch_hours_p95) == (2, 1, 3.0, 3.0)
    assert now.close_days_p50 == 0.0, "served is not closed"
    assert alarms(now, clock(), cadence_days=7, budget_hours=3) == []
    (why,) = alarms(now, clock(), cadence_days=7, budget_hours=2.5)
    assert why.startswith("batches took 3 hours in 30 days, the budget is 2.5")
    clock.forward(days=31)
    assert status(ledger).batches == 0


def test_what_a_batch_takes_counts_towards_the_time_at_risk(ledger: Ledger, request_of: Make, clock: Any) -> None:
    filed(ledger, Guards(), request_of(1))
    held = claim(ledger, owner="run", lease_seconds=3e5)
    assert held is not None
    clock.forward(days=2)
    begin(ledger, held, Version("a" * 64, held.base, "1"))
    confirm(ledger, held, "a" * 64)
    settle(ledger, held, outcome="erased_approx_audited", certificate="c" * 64)
    filed(ledger, Guards(), request_of(2, submitted_at="2026-11-06T12:00:00Z"))  # due on 6 December, in 13 days
    assert status(ledger, days=12).days == 14
    assert status(ledger, days=12).at_risk == 1
