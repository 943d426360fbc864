import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.claimers import race

from unlearning.errors import UsageError
from unlearning.ledger.claims import Claim, ClaimLostError, batch_members, claim, dissolve, expire, plan, renew
from unlearning.ledger.events import digest_of
from unlearning.ledger.filing import cancel, close, deny, file_requests, hold, not_found, release
from unlearning.ledger.merkle import root_of_refs
from unlearning.ledger.overview import find, history, list_requests, status
from unlearning.ledger.promotion import (
    Version,
    advise,
    begin,
    confirm,
    not_forgotten,
    reconcile,
    record_rollback,
    settle,
    standing,
    withdraw,
)
from unlearning.ledger.requests import DeletionRequest
from unlearning.ledger.standing import Standing
from unlearning.ledger.store import Ledger
from unlearning.ledger.verification import verify

Make = Callable[..., DeletionRequest]
DIGESTS = [f"{number:064x}" for number in range(1, 9)]
DONE = {"outcome": "erased_exact", "certificate": "c" * 64}


def file(ledger: Ledger, *requests: DeletionRequest) -> list[str]:
    return [one.ref for one in file_requests(ledger, requests, actor="intake")]


def states(ledger: Ledger) -> list[str]:
    return [row["state"] for row in list_requests(ledger)]


def got(held: Claim | None) -> Claim:
    assert held is not None
    return held


def serve(ledger: Ledger, held: Claim, digest: str, parent: str = "") -> None:
    begin(ledger, held, Version(digest, parent, "1"))
    confirm(ledger, held, digest)
    settle(ledger, held, **DONE)


def test_nothing_waits_and_nothing_is_claimed_or_written(ledger: Ledger) -> None:
    start = time.perf_counter()
    assert claim(ledger, owner="a") is None
    assert plan(ledger) is None
    assert time.perf_counter() - start < 1
    assert ledger.head()[0] == 0


def test_a_batch_is_named_by_its_content_and_a_plan_says_what_the_claim_makes(ledger: Ledger, request_of: Make) -> None:
    refs = file(ledger, request_of(1), request_of(2), request_of(3))
    planned = plan(ledger, base=DIGESTS[0], settings={"method": "unsir"})
    assert planned is not None
    assert ledger.head()[0] == 3, "a plan writes nothing"
    assert planned.refs == sorted(refs)
    assert planned.content["members"] == root_of_refs(refs)
    assert planned.batch == digest_of(planned.content)
    assert (planned.overdue, planned.twins, planned.waiting) == (0, 0, 0)
    held = got(claim(ledger, owner="a", base=DIGESTS[0], settings={"method": "unsir"}))
    assert (held.batch, held.count, held.kind, held.model) == (planned.batch, 3, "subject", "faces")
    assert Claim(**held.as_plain()) == held
    assert batch_members(ledger, held) == planned.refs
    assert states(ledger) == ["claimed"] * 3
    dissolve(ledger, held, "the machine is needed")
    assert states(ledger) == ["pending"] * 3
    again = got(claim(ledger, owner="b", base=DIGESTS[0], settings={"method": "unsir"}))
    assert again.batch == held.batch, "the same content is the same batch"
    assert again.token > held.token
    other = plan(ledger, settings={"method": "retrain"})
    assert other is None
    assert verify(ledger) == []


def test_the_most_urgent_go_first_with_their_twins_and_one_kind_and_data_set_alone(
    ledger: Ledger, request_of: Make
) -> None:
    late, calm, twin, expedite, other_kind, other_data = file(
        ledger,
        request_of(1, submitted_at="2026-10-01T00:00:00Z"),
        request_of(2, submitted_at="2026-11-01T00:00:00Z"),
        request_of("twin", ids=["user-1"], submitted_at="2026-11-19T00:00:00Z"),
        request_of(4, submitted_at="2026-11-20T00:00:00Z", priority="expedite"),
        request_of(5, kind="sample"),
        request_of(6, dataset="set-b", submitted_at="2026-11-10T00:00:00Z"),
    )
    planned = plan(ledger, limit=2)
    assert planned is not None
    assert set(planned.refs) == {expedite, late, twin}
    assert (planned.twins, planned.waiting, planned.overdue) == (1, 3, 1)
    everything = plan(ledger)
    assert everything is not None
    assert set(everything.refs) == {late, calm, twin, expedite}
    assert plan(ledger, model="voices") is None
    serve(ledger, got(claim(ledger, owner="a")), DIGESTS[0])
    rest = got(claim(ledger, owner="a"))
    assert (rest.kind, rest.dataset, batch_members(ledger, rest)) == ("subject", "set-b", [other_data])
    assert find(ledger, other_kind)["state"] == "pending"


def test_one_batch_at_a_time_for_each_model(ledger: Ledger, request_of: Make) -> None:
    file(ledger, request_of(1), request_of(2), request_of(3, model="voices"))
    first = got(claim(ledger, owner="a", limit=1))
    second = got(claim(ledger, owner="b", limit=1))
    assert {first.model, second.model} == {"faces", "voices"}
    assert claim(ledger, owner="c") is None
    assert claim(ledger, owner="c", model="faces") is None
    serve(ledger, first, DIGESTS[0])
    assert got(claim(ledger, owner="c")).model == first.model


def test_who_outlived_the_lease_is_refused_everything_once_another_took_over(
    ledger: Ledger, request_of: Make, clock: Any
) -> None:
    file(ledger, request_of(1))
    old = got(claim(ledger, owner="old", lease_seconds=60))
    assert claim(ledger, owner="new") is None
    clock.forward(seconds=61)
    renewed = renew(ledger, old, lease_seconds=60)
    assert renewed.token == old.token, "nobody took over, so nothing is lost"
    clock.forward(seconds=61)
    new = got(claim(ledger, owner="new"))
    assert (new.batch, new.owner, new.token > old.token) == (old.batch, "new", True)
    head = ledger.head()
    late: list[Callable[[], Any]] = [
        lambda: renew(ledger, old),
        lambda: dissolve(ledger, old, "late"),
        lambda: batch_members(ledger, old),
        lambda: begin(ledger, old, Version(DIGESTS[0], "", "1")),
        lambda: confirm(ledger, old, DIGESTS[0]),
        lambda: withdraw(ledger, old, "", "late"),
        lambda: settle(ledger, old, **DONE),
    ]
    for write in late:
        with pytest.raises(ClaimLostError, match="taken over by new"):
            write()
    assert ledger.head() == head
    serve(ledger, new, DIGESTS[0])
    for write in late:
        with pytest.raises(ClaimLostError):
            write()
    assert verify(ledger) == []


def test_a_process_that_is_started_again_goes_on_with_its_own_batch_and_the_old_one_is_refused(
    ledger: Ledger, request_of: Make
) -> None:
    file(ledger, request_of(1))
    first = got(claim(ledger, owner="run-1", resume=True))
    assert claim(ledger, owner="run-2", resume=True) is None
    again = got(claim(ledger, owner="run-1", resume=True))
    assert (again.batch, again.state) == (first.batch, "claimed")
    assert again.token > first.token
    with pytest.raises(ClaimLostError, match="taken over"):
        begin(ledger, first, Version(DIGESTS[0], "", "1"))
    serve(ledger, again, DIGESTS[0])
    assert verify(ledger) == []


def test_a_batch_whose_run_is_dead_is_freed_and_taken_over_at_once(ledger: Ledger, request_of: Make) -> None:
    file(ledger, request_of(1))
    first = got(claim(ledger, owner="dead"))
    assert claim(ledger, owner="next") is None
    for wrong in (first.batch[:5], "f" * 64, "../etc"):
        with pytest.raises(UsageError):
            expire(ledger, wrong, actor="operator")
    assert expire(ledger, first.batch[:12], actor="operator") == "dead"
    second = got(claim(ledger, owner="next"))
    assert second.batch == first.batch
    with pytest.raises(ClaimLostError, match="taken over by next"):
        dissolve(ledger, first, "it was not dead")
    dissolve(ledger, second, "given back")
    with pytest.raises(UsageError, match="no batch at work"):
        expire(ledger, first.batch, actor="operator")
    assert verify(ledger) == []


def test_every_step_may_be_repeated_and_none_skipped(ledger: Ledger, request_of: Make) -> None:
    (ref,) = file(ledger, request_of(1))
    held = got(claim(ledger, owner="a"))
    for early in (lambda: settle(ledger, held, **DONE), lambda: confirm(ledger, held, DIGESTS[0])):
        with pytest.raises(ClaimLostError, match="wanted promoting"):
            early()
    for _ in range(2):
        begin(ledger, held, Version(DIGESTS[0], "", "1"))
    with pytest.raises(ClaimLostError, match="another version"):
        begin(ledger, held, Version(DIGESTS[1], "", "1"))
    with pytest.raises(UsageError, match="not confirmed"):
        settle(ledger, held, **DONE)
    with pytest.raises(UsageError, match="reconcile"):
        confirm(ledger, held, DIGESTS[1])
    for _ in range(2):
        confirm(ledger, held, DIGESTS[0])
    for _ in range(2):
        settle(ledger, held, **DONE)
    with pytest.raises(ClaimLostError, match="another outcome"):
        settle(ledger, held, outcome="erased_exact", certificate="d" * 64)
    with pytest.raises(UsageError, match="settled as"):
        settle(ledger, held, outcome="all gone", certificate="d" * 64)
    found = find(ledger, ref)
    assert (found["state"], found["outcome"]) == ("served", "erased_exact")
    kinds = [one.kind for one in history(ledger, ref)]
    assert kinds == ["received", "claimed", "promoting", "confirmed", "settled"]
    close(ledger, held.batch, obligations={"source": "deleted"}, actor="desk")
    assert find(ledger, ref)["state"] == "closed"
    assert verify(ledger) == []


@pytest.mark.parametrize("act", [cancel, hold, deny])
def test_what_is_taken_back_in_time_dissolves_the_batch_and_the_others_wait_again(
    ledger: Ledger, request_of: Make, act: Any
) -> None:
    one, two = file(ledger, request_of(1), request_of(2))
    held = got(claim(ledger, owner="a"))
    act(ledger, one, "taken back", actor="desk")
    assert find(ledger, two)["state"] == "pending"
    with pytest.raises(ClaimLostError, match="dissolved"):
        begin(ledger, held, Version(DIGESTS[0], "", "1"))
    again = got(claim(ledger, owner="a"))
    assert batch_members(ledger, again) == [two]
    begin(ledger, again, Version(DIGESTS[0], "", "1"))
    with pytest.raises(UsageError, match="point of no return"):
        act(ledger, two, "too late", actor="desk")
    confirm(ledger, again, DIGESTS[0])
    settle(ledger, again, **DONE)
    assert verify(ledger) == []


def test_a_request_that_arrives_meanwhile_waits_for_the_next_batch(ledger: Ledger, request_of: Make) -> None:
    file(ledger, request_of(1))
    held = got(claim(ledger, owner="a"))
    (late,) = file(ledger, request_of(2))
    begin(ledger, held, Version(DIGESTS[0], "", "1"))
    (later,) = file(ledger, request_of("twin", ids=["user-1"]))
    confirm(ledger, held, DIGESTS[0])
    settle(ledger, held, **DONE)
    assert states(ledger) == ["served", "pending", "pending"]
    assert got(claim(ledger, owner="b")).batch != held.batch
    assert {find(ledger, ref)["state"] for ref in (late, later)} == {"claimed"}


def test_rows_that_are_not_there_leave_the_batch_with_their_evidence(ledger: Ledger, request_of: Make) -> None:
    one, two = file(ledger, request_of(1), request_of(2))
    held = got(claim(ledger, owner="a"))
    not_found(ledger, [one], evidence="e" * 64, actor="a")
    assert batch_members(ledger, held) == [two]
    serve(ledger, held, DIGESTS[0])
    assert (find(ledger, one)["outcome"], find(ledger, two)["outcome"]) == ("no_data_found", "erased_exact")
    assert verify(ledger) == []


def test_a_held_request_is_in_no_batch(ledger: Ledger, request_of: Make) -> None:
    (one,) = file(ledger, request_of(1))
    hold(ledger, one, "identity unclear", actor="desk")
    assert claim(ledger, owner="a") is None
    release(ledger, one, actor="desk")
    assert claim(ledger, owner="a") is not None


def chain(ledger: Ledger, request_of: Make, count: int) -> list[Claim]:
    """Batches served one after another, each by a model made from the one before."""
    done = []
    for number in range(count):
        file(ledger, request_of(f"chain-{number}"))
        held = got(claim(ledger, owner="a"))
        serve(ledger, held, DIGESTS[number], DIGESTS[number - 1] if number else "")
        done.append(held)
    return done


def test_a_model_that_knows_deleted_data_is_neither_promoted_nor_restored(ledger: Ledger, request_of: Make) -> None:
    first, second = chain(ledger, request_of, 2)
    assert not_forgotten(ledger, "faces", DIGESTS[1]) == []
    assert not_forgotten(ledger, "faces", DIGESTS[0]) == [second.batch]
    assert not_forgotten(ledger, "faces", "f" * 64) == sorted([first.batch, second.batch])
    for digest in (DIGESTS[0], "f" * 64):
        with pytest.raises(UsageError, match=r"still knows what \d settled batches deleted"):
            record_rollback(ledger, "faces", digest, actor="operator")
    file(ledger, request_of(9))
    held = got(claim(ledger, owner="a"))
    for parent in ("", DIGESTS[0], "f" * 64):
        with pytest.raises(UsageError, match="still knows"):
            begin(ledger, held, Version(DIGESTS[5], parent, "9"))
    assert find(ledger, batch_members(ledger, held)[0])["state"] == "claimed"
    covers = (first.batch, second.batch)
    begin(ledger, held, Version(DIGESTS[5], "", "9", covers))
    with pytest.raises(UsageError, match="being promoted"):
        record_rollback(ledger, "faces", DIGESTS[1], actor="operator")
    confirm(ledger, held, DIGESTS[5])
    settle(ledger, held, **DONE)
    record_rollback(ledger, "faces", DIGESTS[5], actor="operator")
    assert advise(ledger, "faces", DIGESTS[5]).action == "nothing"
    assert verify(ledger) == []


def test_reconcile_says_what_is_left_after_an_interruption_anywhere(ledger: Ledger, request_of: Make) -> None:
    base = DIGESTS[7]
    file(ledger, request_of(1))
    held = got(claim(ledger, owner="a"))
    assert advise(ledger, "faces", base).action == "nothing"
    begin(ledger, held, Version(DIGESTS[0], base, "1"))
    for alias in (base, ""):
        advice = advise(ledger, "faces", alias)
        assert (advice.action, advice.digest, advice.batch) == ("move_alias", DIGESTS[0], held.batch)
    assert advise(ledger, "faces", "f" * 64).action == "alarm"
    assert advise(ledger, "faces", DIGESTS[0]).action == "confirm"
    confirm(ledger, held, DIGESTS[0])
    assert advise(ledger, "faces", DIGESTS[0]).action == "settle"
    assert advise(ledger, "faces", base).action == "put_back"
    settle(ledger, held, **DONE)
    assert advise(ledger, "faces", DIGESTS[0]).action == "nothing"
    for alias in (base, "", "f" * 64):
        advice = advise(ledger, "faces", alias)
        assert (advice.action, advice.digest) == ("put_back", DIGESTS[0])
    chain_of_two = got_second(ledger, request_of)
    advice = advise(ledger, "faces", DIGESTS[0])
    assert (advice.action, advice.digest) == ("put_back", chain_of_two)
    assert "deleted data" in advice.reason
    assert reconcile(Standing(), "").action == "nothing"


def got_second(ledger: Ledger, request_of: Make) -> str:
    file(ledger, request_of(2))
    serve(ledger, got(claim(ledger, owner="a")), DIGESTS[1], DIGESTS[0])
    return DIGESTS[1]


def test_an_intent_is_withdrawn_only_while_its_model_does_not_serve(ledger: Ledger, request_of: Make) -> None:
    file(ledger, request_of(1), request_of(2))
    held = got(claim(ledger, owner="a"))
    begin(ledger, held, Version(DIGESTS[0], "", "1"))
    with pytest.raises(UsageError, match="serves already"):
        withdraw(ledger, held, DIGESTS[0], "registry refused")
    withdraw(ledger, held, "", "registry refused")
    assert states(ledger) == ["pending", "pending"]
    assert standing(ledger, "faces").open_batch == ""
    again = got(claim(ledger, owner="a"))
    assert (again.batch, again.state) == (held.batch, "claimed")
    serve(ledger, again, DIGESTS[1])
    assert verify(ledger) == []


def test_hostile_versions_and_limits_are_refused(ledger: Ledger) -> None:
    for bad in ("", "x", "A" * 64, "../" + "a" * 61):
        with pytest.raises(UsageError, match="64 hexadecimal"):
            Version(bad, "", "1")
        if bad:
            with pytest.raises(UsageError, match="64 hexadecimal"):
                Version(DIGESTS[0], bad, "1")
        with pytest.raises(UsageError, match="64 hexadecimal"):
            Version(DIGESTS[0], "", "1", (bad,))
    for call in (lambda: claim(ledger, owner="a", limit=-1), lambda: claim(ledger, owner="a", lease_seconds=0)):
        with pytest.raises(UsageError, match="limit"):
            call()
    with pytest.raises(UsageError, match="limit"):
        plan(ledger, limit=-1)


def test_eight_claimers_that_die_and_oversleep_serve_every_request_exactly_once(url: str, tmp_path: Path) -> None:
    assert race(url, tmp_path / "round", requests=24, seconds=150)["died"] > 0


def test_status_shows_who_is_at_work(ledger: Ledger, request_of: Make) -> None:
    file(ledger, request_of(1))
    held = got(claim(ledger, owner="pod-7"))
    (active,) = status(ledger).active
    assert (active["batch"], active["owner"], active["state"]) == (held.batch, "pod-7", "claimed")
    assert status(ledger).last_settled == ""
    serve(ledger, held, DIGESTS[0])
    assert (status(ledger).active, status(ledger).last_settled) == ([], "2026-11-21T12:00:00.000000Z")
