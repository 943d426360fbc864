import hashlib
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner

from unlearning.errors import DataError, UsageError
from unlearning.ledger.certificate import PREFIX, Measure, receipts
from unlearning.ledger.checking import check_certificate, check_receipt, ok
from unlearning.ledger.claims import Claim, ClaimLostError, claim
from unlearning.ledger.events import time_of
from unlearning.ledger.exclusion import check, exclude, excluded
from unlearning.ledger.filing import extend, file_requests, purge
from unlearning.ledger.ladder import LADDER, claim_next, rung_of, settings_of, turn_away
from unlearning.ledger.overview import find, list_requests
from unlearning.ledger.promotion import Version, begin, confirm
from unlearning.ledger.requests import DeletionRequest
from unlearning.ledger.settlement import prepare, served_in, settle_batch
from unlearning.ledger.signing import opened, public_key, public_pem
from unlearning.ledger.store import Ledger
from unlearning.ledger.vault import Kept
from unlearning.ledger.verification import verify
from unlearning.storage import FolderStore

Make = Callable[..., DeletionRequest]
SIGNER = CryptoSigner.generate_ed25519()
KEY = public_key(public_pem(SIGNER))
MANIFEST = "d" * 64
DIGESTS = [f"{number:064x}" for number in range(1, 9)]
FACTS: dict[str, Any] = {
    "before": {"version": "1", "digest": DIGESTS[0]},
    "after": {"version": "2", "digest": DIGESTS[1]},
    "files": {"weights.safetensors": "9" * 64},
    "data": {"manifest": MANIFEST, "forgetRows": 3},
    "method": {"name": "unsir", "seed": 0, "rung": 0},
    "measures": [Measure(metric="a", value=0.5, standard_error=0.0, low=0.0, high=1.0, outcome="pass")],
    "policy": "8" * 64,
}
KEEP = {"oldModel": "retired by 2026-11-28"}


def file(ledger: Ledger, *requests: DeletionRequest) -> list[str]:
    return [one.ref for one in file_requests(ledger, requests, actor="intake")]


def claimed(ledger: Ledger) -> Claim:
    held = claim(ledger, owner="a")
    assert held is not None
    return held


def states(ledger: Ledger) -> list[str]:
    return [row["state"] for row in list_requests(ledger)]


def done(ledger: Ledger, store: FolderStore, held: Claim, number: int = 0) -> str:
    begin(ledger, held, Version(DIGESTS[number + 1], DIGESTS[number], "2"))
    confirm(ledger, held, DIGESTS[number + 1])
    return settle_batch(ledger, store, SIGNER, held, outcome="erased_approx_audited", facts=FACTS, obligations=KEEP)


def test_a_batch_asks_for_the_ids_that_there_are_and_closes_what_is_about_nothing(
    ledger: Ledger, request_of: Make
) -> None:
    refs = file(ledger, request_of(1, ids=["a", "b"]), request_of(2, ids=["x"]), request_of(3, ids=["b", "y"]))
    held = claimed(ledger)
    for _ in range(2):
        wanted = prepare(ledger, held, {"a", "b"}.__contains__, evidence=MANIFEST)
        assert (wanted.ids, wanted.requests) == (("a", "b"), 2)
    nothing = find(ledger, refs[1])
    assert (nothing["state"], nothing["outcome"]) == ("closed", "no_data_found")
    assert next(one for one in nothing["history"] if one.kind == "not_found").content == {"manifest_sha256": MANIFEST}
    assert verify(ledger) == []


def test_a_batch_about_nothing_is_dissolved_and_its_requests_closed(ledger: Ledger, request_of: Make) -> None:
    file(ledger, request_of(1), request_of(2))
    wanted = prepare(ledger, claimed(ledger), lambda _: False, evidence=MANIFEST)
    assert (wanted.ids, wanted.missing) == ((), 2)
    assert states(ledger) == ["closed", "closed"]
    assert claim(ledger, owner="b") is None
    assert verify(ledger) == []


def test_a_promoted_batch_is_certified_excluded_and_closed_whatever_the_retries(
    ledger: Ledger, store: FolderStore, request_of: Make, clock: Any
) -> None:
    refs = file(ledger, request_of(1), request_of(2), request_of(3, ids=["gone"]))
    held = claimed(ledger)
    prepare(ledger, held, lambda value: value != "gone", evidence=MANIFEST)
    with pytest.raises(UsageError, match="not confirmed"):
        settle_batch(ledger, store, SIGNER, held, outcome="erased_exact", facts=FACTS, obligations=KEEP)
    certificate = done(ledger, store, held)
    count = ledger.head()[0]
    clock.forward(days=1)
    again = settle_batch(ledger, store, SIGNER, held, outcome="erased_approx_audited", facts=FACTS, obligations=KEEP)
    assert (again, ledger.head()[0], states(ledger)) == (certificate, count, ["closed"] * 3)
    data = store.get(f"{PREFIX}/{held.batch}.dsse.json")
    assert hashlib.sha256(data).hexdigest() == certificate
    assert ok(check_certificate(data, KEY))
    predicate = opened(data)[1]["predicate"]
    assert predicate["batch"]["perRequestOutcomeCounts"] == {"erased_approx_audited": 2, "no_data_found": 1}
    assert predicate["times"]["dueDatesMet"] is True
    given = list(receipts(data, served_in(ledger, held.batch, "")))
    assert sorted(one["content"]["request"] for one in given) == sorted(refs)
    assert all(ok(check_receipt(json.dumps(one).encode(), data, KEY)) for one in given)
    assert "user-1" not in data.decode() + json.dumps(given)
    names = ledger.names
    found = check(names, excluded(store), {"subject": ["user-1", None, "user-3", "user-2", "", "gone"]})
    assert (found.rows, found.by_kind, found.looked_at) == ((0, 3), {"subject": 2}, 6)
    assert verify(ledger) == []


def test_a_settlement_cut_short_anywhere_ends_the_same(
    ledger: Ledger, store: FolderStore, request_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unlearning.ledger import settlement

    for number, name in enumerate(("exclude", "publish", "settle")):
        file(ledger, request_of(f"cut-{number}"))
        held = claimed(ledger)
        begin(ledger, held, Version(DIGESTS[number + 1], DIGESTS[number], "2"))
        confirm(ledger, held, DIGESTS[number + 1])
        for after in (False, True):
            real = getattr(settlement, name)

            def broken(*given: Any, real: Any = real, after: bool = after, **more: Any) -> None:
                if after:
                    real(*given, **more)
                raise InterruptedError

            with monkeypatch.context() as patch:
                patch.setattr(settlement, name, broken)
                with pytest.raises(InterruptedError):
                    settle_batch(
                        ledger, store, SIGNER, held, outcome="erased_approx_audited", facts=FACTS, obligations=KEEP
                    )
        settle_batch(ledger, store, SIGNER, held, outcome="erased_approx_audited", facts=FACTS, obligations=KEEP)
    assert set(states(ledger)) == {"closed"}
    assert len(list(store.keys(PREFIX))) == 3
    certificates = {key: store.get(key) for key in store.keys(PREFIX)}
    chained = {opened(data)[1]["predicate"]["integrity"]["previousCertificateSha256"] for data in certificates.values()}
    assert len(chained & {hashlib.sha256(data).hexdigest() for data in certificates.values()}) == 2
    assert verify(ledger) == []


def test_ids_stay_excluded_after_they_were_removed(
    ledger: Ledger, store: FolderStore, request_of: Make, clock: Any
) -> None:
    file(ledger, request_of(1))
    done(ledger, store, claimed(ledger))
    clock.forward(days=31)
    assert purge(ledger, actor="cleaner") == 1
    assert check(ledger.names, excluded(store), {"subject": ["user-1"], "sample": ["user-1"]}).by_kind == {
        "subject": 1,
        "sample": 0,
    }


def test_exclusion_knows_data_sets_and_finds_damage(ledger: Ledger, store: FolderStore) -> None:
    names = ledger.names
    exclude(store, names, "a" * 64, "mnist", [Kept("r" * 64, "k", "class", ("3",))])
    barred = excluded(store)
    assert check(names, barred, {"class": ["3", "4"]}, dataset="mnist").rows == (0,)
    assert check(names, barred, {"class": ["3", "4"]}, dataset="other").rows == ()
    assert check(names, barred, {"class": ["3"]}).rows == ()
    with pytest.raises(DataError, match="other digests"):
        exclude(store, names, "a" * 64, "mnist", [Kept("r" * 64, "k", "class", ("4",))])
    store.put("evidence/exclusion/x.txt", b"user-17\n")
    with pytest.raises(DataError, match=r"x\.txt is damaged"):
        excluded(store)


def test_the_ladder_goes_up_with_every_refusal_and_ends_with_a_person(ledger: Ledger, request_of: Make) -> None:
    refs = file(ledger, *(request_of(number) for number in range(4)))
    seen = []
    for _ in LADDER:
        found = claim_next(ledger, owner="a", settings={"seed": 1})
        assert found is not None
        seen.append((found.rung, found.step, found.claim.count))
        assert settings_of(ledger, found.claim) == {"seed": 1, "rung": found.rung, "step": found.step}
        turn_away(ledger, found.claim, outcome="fail", reasons=["too far from never seen"])
        if found.step == "bisect":
            assert rung_of(ledger, "faces") == 4
    assert seen[:4] == [(0, "first", 4), (1, "stronger", 4), (2, "other_method", 4), (3, "bisect", 2)]
    assert seen[4] == (4, "retrain", 4)
    assert states(ledger) == ["held"] * 4
    assert "decide what to do" in find(ledger, refs[0])["reason"]
    assert claim_next(ledger, owner="a") is None
    assert [one.content["next"] for one in ledger.events_of("faces", "gated")] == [*LADDER[1:], ""]
    assert verify(ledger) == []


def test_half_of_a_batch_that_passes_leaves_the_rest_to_be_searched(
    ledger: Ledger, store: FolderStore, request_of: Make
) -> None:
    file(ledger, *(request_of(number) for number in range(4)))
    for _ in range(3):
        found = claim_next(ledger, owner="a")
        assert found is not None
        turn_away(ledger, found.claim, outcome="inconclusive", reasons=[])
    half = claim_next(ledger, owner="a")
    assert half is not None
    done(ledger, store, half.claim)
    rest = claim_next(ledger, owner="a")
    assert rest is not None
    assert (rest.step, rest.claim.count, sorted(states(ledger))) == (
        "bisect",
        1,
        ["claimed", "closed", "closed", "pending"],
    )


def test_who_is_nearly_due_and_failed_once_goes_to_the_last_rung(ledger: Ledger, request_of: Make, clock: Any) -> None:
    file(ledger, request_of(1))
    clock.forward(days=25)
    first = claim_next(ledger, owner="a")
    assert first is not None
    assert first.step == "first"
    assert turn_away(ledger, first.claim, outcome="fail", reasons=["x"]) == "stronger"
    second = claim_next(ledger, owner="a")
    assert second is not None
    assert second.step == "retrain"


@pytest.mark.parametrize(("days_left", "step"), [(7.5, "first"), (6.5, "retrain"), (-1.0, "retrain")])
def test_what_is_due_before_the_next_run_has_one_try_which_is_the_last_rung(
    ledger: Ledger, request_of: Make, clock: Any, days_left: float, step: str
) -> None:
    (ref,) = file(ledger, request_of(1))
    due = time_of(find(ledger, ref)["due_at"])
    clock.now = due - timedelta(days=days_left)
    found = claim_next(ledger, owner="a", cadence_days=7)
    assert found is not None
    assert found.step == step


@pytest.mark.parametrize("first_run", range(8))
def test_with_weekly_runs_the_fallback_starts_before_the_due_date_whatever_the_gates_say(
    ledger: Ledger, request_of: Make, clock: Any, first_run: int
) -> None:
    (ref,) = file(ledger, request_of(1))
    due, steps = time_of(find(ledger, ref)["due_at"]), list[str]()
    clock.forward(days=first_run)
    while not steps or steps[-1] != "retrain":
        found = claim_next(ledger, owner="a", cadence_days=7)
        assert found is not None
        steps.append(found.step)
        assert clock.now < due, steps
        turn_away(ledger, found.claim, outcome="fail", reasons=["utility fell"])
        clock.forward(days=7)


def test_others_start_at_the_first_rung_and_a_batch_taken_over_keeps_its_own(
    ledger: Ledger, request_of: Make, clock: Any
) -> None:
    file(ledger, request_of(1))
    first = claim_next(ledger, owner="a")
    assert first is not None
    turn_away(ledger, first.claim, outcome="fail", reasons=[])
    file(ledger, request_of(2, model="voices"))
    voices = claim_next(ledger, owner="a", model="voices")
    assert voices is not None
    assert voices.rung == 0
    faces = claim_next(ledger, owner="a", model="faces")
    assert faces is not None
    assert faces.rung == 1
    clock.forward(hours=2)
    taken = claim_next(ledger, owner="b", model="faces", ladder=LADDER[:1])
    assert taken is not None
    assert (taken.claim.batch, taken.rung, taken.step) == (faces.claim.batch, 1, "stronger")
    with pytest.raises(ClaimLostError):
        turn_away(ledger, faces.claim, outcome="fail", reasons=[])


def test_an_orphaned_batch_goes_before_new_ones_whatever_its_model(
    ledger: Ledger, request_of: Make, clock: Any
) -> None:
    file(ledger, request_of(1, model="voices"))
    orphan = claim_next(ledger, owner="a")
    file(ledger, request_of(2))
    clock.forward(hours=2)
    taken = claim_next(ledger, owner="b")
    assert orphan is not None
    assert taken is not None
    assert taken.claim.batch == orphan.claim.batch


def test_no_due_date_moves_once_the_batch_is_promoted(ledger: Ledger, request_of: Make) -> None:
    (ref,) = file(ledger, request_of(1))
    held = claimed(ledger)
    begin(ledger, held, Version(DIGESTS[1], DIGESTS[0], "2"))
    with pytest.raises(UsageError, match="extended"):
        extend(ledger, ref, "complex", actor="desk")
