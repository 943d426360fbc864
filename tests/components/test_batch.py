"""A deletion batch's first and last stage around the real ones, on a tiny model, the embedded MLflow and store."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.chain import CANARY, Chain

from unlearning.data.selection import ForgetRequest, as_ranges, rows_meant
from unlearning.data.sources import make_manifest
from unlearning.errors import DataError, StorageError, UsageError
from unlearning.ledger.certificate import PREFIX
from unlearning.ledger.checking import check_certificate, ok
from unlearning.ledger.events import moment
from unlearning.ledger.exclusion import check, excluded
from unlearning.ledger.filing import cancel, file_requests
from unlearning.ledger.guards import approve
from unlearning.ledger.inbox import PREFIX as PREFIX_OF_DROPS
from unlearning.ledger.opening import open_ledger
from unlearning.ledger.overview import find, list_requests
from unlearning.ledger.requests import request_from
from unlearning.ledger.serving import roll_back
from unlearning.ledger.signing import public_key
from unlearning.ledger.verification import verify
from unlearning.models.bundle import load_bundle, read_bundle, save_bundle
from unlearning.policy.gates import policy_for
from unlearning.settings import Settings
from unlearning.storage import download_folder
from unlearning.tracking import Champion, promote_bundle
from unlearning_components import bookkeeping
from unlearning_components.bookkeeping import IDS, end_batch, is_governed, next_batch
from unlearning_components.retesting import measured
from unlearning_components.surroundings import store
from unlearning_pipelines.deployment import train_model
from unlearning_pipelines.preflight import MARKER

SETTINGS = {"noise_steps": 4, "noise_batch": 16}
LADDER = {"class": [{"method": "unsir", "settings": SETTINGS}]}
PASSED = {
    "outcome": "pass",
    "reasons": [],
    "gates": [
        {"metric": "m", "value": 0.5, "standard_error": 0.0, "low": 0.0, "high": 1.0, "outcome": "pass", "why": "w"}
    ],
}
FAILED = {"outcome": "fail", "reasons": ["m is 2, wanted at most 1"], "gates": []}


@pytest.fixture
def name(place: Any, request: pytest.FixtureRequest) -> str:
    """A registered model of this test's own."""
    found = f"tiny-{abs(hash(request.node.name)) % 10**8}"
    promote_bundle(place.tracker, store(), place.original, name=found, run_id="", outcome="pass")
    return found


def asked(name: str, key: str, kind: str, *ids: str) -> str:
    values = {"controller": "shop", "key": f"{name}-{key}", "kind": kind, "ids": list(ids), "model": name}
    ledger = open_ledger(make=True)
    request = request_from({**values, "submitted_at": moment(ledger.clock())})
    (filed,) = file_requests(ledger, [request], actor="intake")
    ledger.close()
    return filed.ref


def state(ref: str) -> tuple[str, str]:
    ledger = open_ledger()
    found = find(ledger, ref)
    ledger.close()
    return found["state"], found["outcome"]


def following(place: Any, name: str, into: Path, **changed: Any) -> Any:
    given = {
        "owner": f"run-{into.name}",
        "limit": 0,
        "lease_hours": 1.0,
        "seed": 0,
        "ladder": LADDER,
        "policies": {},
        **changed,
    }
    return next_batch(name, place.source, into=into, **given)


@pytest.fixture(scope="module")
def without_two(place: Any) -> Chain:
    """The stages between claim and settle, but those that only measure."""
    chain: Chain = place.chain(
        "without-two", model="models:/tiny/1", method="unsir", settings=SETTINGS, targets=["two"]
    )
    for stage in ("load_model", "select", "synthesize", "impair", "repair", "distill"):
        chain.call(stage)
    return chain


@pytest.fixture(autouse=True)
def sound(place: Any) -> Iterator[None]:
    """After each test the ledger verifies, and no id is outside of the vault."""
    yield
    ledger = open_ledger(make=True)
    assert verify(ledger) == []
    ledger.close()
    assert list(store().keys(IDS)) == []
    evidence = [path for path in place.home.rglob("*") if path.is_file() and "evidence" in path.parts]
    assert [path for path in evidence if CANARY.encode() in path.read_bytes()] == []


def test_an_empty_queue_ends_in_seconds_without_a_version(place: Any, name: str, tmp_path: Path) -> None:
    versions, start = place.registry.version(name, "champion"), time.monotonic()
    assert following(place, name, tmp_path / "batch") is None
    assert time.monotonic() - start < 5
    assert place.registry.version(name, "champion") == versions


def test_a_class_is_forgotten_promoted_certified_and_closed_once(
    place: Any, name: str, without_two: Chain, tmp_path: Path
) -> None:
    ref = asked(name, "class", "class", "two")
    missing = asked(name, "nothing", "class", "seventeen")
    batch = following(place, name, tmp_path / "batch")
    assert (batch["count"], batch["targets"], batch["method"], batch["ids"]) == (1, ["two"], "unsir", "")
    assert state(missing) == ("closed", "no_data_found")
    assert following(place, name, tmp_path / "other") is None, "one batch at a time"
    again = following(place, name, tmp_path / "batch")
    assert {**again, "work": ""} == {**batch, "work": ""}, "a stage that is tried again goes on"
    assert again["work"].partition(":")[0] == batch["work"].partition(":")[0]
    path = Path(without_two.artifacts["unlearned"].path)
    for number in range(2):
        desk = tmp_path / f"desk-{number}"
        assert end_batch(tmp_path / "batch", PASSED, path, run=without_two.run, desk=desk) == "closed"
    assert state(ref) == ("closed", "erased_approx_audited")
    champion = place.registry.version(name, "champion")
    assert (champion.version, champion.digest) == (2, read_bundle(path).digest)
    ledger = open_ledger()
    data = store().get(f"{PREFIX}/{find(ledger, ref)['batch']}.dsse.json")
    ledger.close()
    folder = download_folder(store(), f"models/{champion.digest}", tmp_path / "model")
    key = public_key(Settings().signing_key_file.with_name("signing.pem.pub").read_bytes())
    lines = check_certificate(data, key, model=folder)
    assert ok(lines)
    assert [line.mark for line in lines if line.what == "model"] == ["verified"]
    bundle = read_bundle(path)
    assert is_governed(name)
    assert not is_governed("tiny")
    left = promote_bundle(place.tracker, store(), place.original, name=name, run_id="", outcome="pass", may_serve=False)
    assert (left["champion"], place.registry.version(name, "champion").digest) == ("no", bundle.digest)
    place.registry.set_alias(name, "champion", 1)  # somebody else brings the model back that knows
    ledger = open_ledger()
    alias = Champion(place.registry, name)
    with pytest.raises(UsageError, match="still knows"):
        roll_back(ledger, name, place.original.digest, alias, actor="operator")
    roll_back(ledger, name, bundle.digest, alias, actor="operator")
    assert alias.digest() == bundle.digest
    place.registry.set_alias(name, "champion", 1)
    with pytest.raises(UsageError, match="no batch was ever promoted"):
        roll_back(ledger, "tiny", place.original.digest, Champion(place.registry, "tiny"), actor="operator")
    ledger.close()
    again = asked(name, "again", "class", "two")
    assert following(place, name, tmp_path / "third") is None
    assert state(again) == ("closed", "no_data_found"), "the model forgot it before"
    assert place.registry.version(name, "champion").digest == bundle.digest


def test_what_was_forgotten_before_and_shows_again_is_never_promoted(
    place: Any, name: str, without_two: Chain, tmp_path: Path
) -> None:
    path = Path(without_two.artifacts["unlearned"].path)
    first = asked(name, "relapse-1", "class", "two")
    following(place, name, tmp_path / "first")
    assert end_batch(tmp_path / "first", PASSED, path, run=without_two.run, desk=tmp_path / "desk-1") == "closed"
    assert state(first)[0] == "closed"
    second = asked(name, "relapse-2", "class", "three")
    batch = following(place, name, tmp_path / "second")
    assert batch["forgotten"]["classes"] == ["two"]
    champion, folder = read_bundle(path), tmp_path / "relapsed"
    card = replace(champion.card, parent=champion.digest, forgotten=("two", "three"))
    relapsed = save_bundle(load_bundle(place.original.folder)[0], card, folder)
    desk = tmp_path / "desk-2"
    assert end_batch(tmp_path / "second", PASSED, relapsed.folder, run=without_two.run, desk=desk) == "stronger"
    assert (state(second)[0], place.registry.version(name, "champion").digest) == ("pending", champion.digest)
    ledger = open_ledger()
    (alarm,) = ledger.events_of(name, "eroded")
    assert "retest.class_accuracy" in alarm.content["reasons"][0]
    ledger.close()
    assert following(place, name, tmp_path / "third")["method"] == "retrain"
    desk = tmp_path / "desk-3"
    assert end_batch(tmp_path / "third", FAILED, relapsed.folder, run=without_two.run, desk=desk) == "held"


def test_the_retest_knows_a_model_that_forgot_from_one_that_did_not(place: Any, without_two: Chain) -> None:
    data = make_manifest(place.source)
    rows = as_ranges(data.rows("train")[:60])
    knows, knows_error = measured(place.original, data, ["two"], rows)
    forgot, _ = measured(read_bundle(Path(without_two.artifacts["unlearned"].path)), data, ["two"], "")
    assert knows["retest.class_accuracy"] > 0.8
    assert forgot["retest.class_accuracy"] < 0.2
    assert set(knows) == set(knows_error) == {"retest.class_accuracy", "retest.seen_gap", "retest.membership_auc"}
    assert set(forgot) == {"retest.class_accuracy"}
    assert abs(knows["retest.seen_gap"]) < 0.2
    assert 0 < knows_error["retest.seen_gap"] < 0.2
    assert 0.2 < knows["retest.membership_auc"] < 0.8


def test_rows_wait_in_the_vault_and_a_refused_batch_climbs_the_ladder(place: Any, name: str, tmp_path: Path) -> None:
    data = make_manifest(place.source)
    ref = asked(name, "rows", "sample", *data.table["sample_id"].take(data.rows("train")[:2]).to_pylist())
    batch = following(place, name, tmp_path / "batch")
    assert (batch["method"], batch["targets"]) == ("incompetent_teacher", [])
    assert batch["ids"].startswith(f"{store().uri}/requests/")
    assert CANARY not in json.dumps(batch) + (tmp_path / "batch" / "claim.json").read_text()
    chain = place.chain(
        "refused", **{key: batch[key] for key in ("model", "method", "ids")}, request="sample", policy={}
    )
    for stage in ("load_model", "select"):
        chain.call(stage)
    assert chain.artifacts["forget"].metadata["forget"] == "2"
    answer = end_batch(tmp_path / "batch", FAILED, tmp_path, run=chain.run, desk=tmp_path / "desk")
    assert (answer, state(ref)) == ("stronger", ("pending", ""))
    for wanted in ("negative_gradient_plus", "amnesiac", "incompetent_teacher", "retrain"):
        batch = following(place, name, tmp_path / wanted)
        assert batch["method"] == wanted
        answer = end_batch(tmp_path / wanted, FAILED, tmp_path, run=chain.run, desk=tmp_path / f"{wanted}-desk")
    assert (answer, state(ref)) == ("held", ("held", ""))


def test_what_was_dropped_in_the_inbox_is_in_the_next_batch(place: Any, name: str, tmp_path: Path) -> None:
    assert not bookkeeping.anything_waits(name)
    store().put(f"{PREFIX_OF_DROPS}/shop/{name}/drop.csv", b"key,kind,ids\nD-1,class,two\nD-2,class,../two\n")
    assert bookkeeping.anything_waits(name)
    batch = following(place, name, tmp_path / "batch")
    assert (batch["count"], batch["targets"]) == (1, ["two"])
    assert not list(store().keys(PREFIX_OF_DROPS))


def test_half_of_a_batch_is_served_while_the_rest_waits(
    place: Any, name: str, without_two: Chain, tmp_path: Path
) -> None:
    two, one = asked(name, "two", "class", "two"), asked(name, "one", "class", "one")
    for number, wanted in enumerate(("unsir", "unsir", "unsir")):
        batch = following(place, name, tmp_path / f"try-{number}")
        assert (batch["method"], batch["count"]) == (wanted, 2)
        end_batch(tmp_path / f"try-{number}", FAILED, tmp_path, run="", desk=tmp_path / f"desk-{number}")
    batch = following(place, name, tmp_path / "half")
    assert (batch["step"], batch["targets"]) == ("bisect", ["two"])
    path = Path(without_two.artifacts["unlearned"].path)
    assert end_batch(tmp_path / "half", PASSED, path, run=without_two.run, desk=tmp_path / "desk") == "closed"
    assert (state(two), state(one)) == (("closed", "erased_approx_audited"), ("pending", ""))
    batch = following(place, name, tmp_path / "rest")
    assert batch["targets"] == ["one"]


@pytest.mark.slow
def test_every_rung_runs_its_own_stages_and_the_last_ends_the_obligation(place: Any, name: str, tmp_path: Path) -> None:
    refs = [asked(name, one, "class", one) for one in ("one", "two")]
    rungs = (
        ("first", "unsir", 2),
        ("stronger", "amnesiac", 2),
        ("other_method", "negative_gradient_plus", 2),
        ("bisect", "unsir", 1),
        ("retrain", "retrain", 2),
    )
    short = {"unsir": SETTINGS}
    every = dict.fromkeys(set(policy_for("classification", "class")) - {"weights_changed"}, "none")
    for step, method, count in rungs:
        batch = following(place, name, tmp_path / step, ladder={})
        assert (batch["step"], batch["method"], batch["count"]) == (step, method, count)
        chain: Chain = place.chain(
            f"rung-{step}",
            **{key: batch[key] for key in ("model", "method", "targets", "work")},
            settings=short.get(method, {}),
            policy=every if step == "retrain" else {**every, "weights_changed": {"low": 1e9}},
        )
        for stage in ("load_model", "select", "synthesize", "impair", "repair", "distill", "evaluate", "attack"):
            chain.call(stage)
        assert chain.call("gate") == ("pass" if step == "retrain" else "fail")
        verdict = json.loads(Path(chain.artifacts["verdict"].path, "verdict.json").read_text())
        unlearned = Path(chain.artifacts["unlearned"].path)
        answer = end_batch(tmp_path / step, verdict, unlearned, run=chain.run, desk=tmp_path / f"{step}-desk")
        if step != "retrain":
            assert [state(ref) for ref in refs] == [("pending", "")] * 2, "held back, and never dropped"
            assert place.registry.version(name, "champion").version == 1
    assert answer == "closed"
    assert [state(ref) for ref in refs] == [("closed", "erased_exact")] * 2
    assert place.registry.version(name, "champion").version == 2


def test_what_is_due_before_the_next_run_is_retrained_at_once(place: Any, name: str, tmp_path: Path) -> None:
    asked(name, "due", "class", "two")
    assert following(place, name, tmp_path / "batch", cadence_days=40.0)["method"] == "retrain"


@pytest.fixture(scope="module")
def values_name(place: Any) -> str:
    """A registered model that predicts values."""
    (place.home / MARKER).write_text("{}")
    recipe = {"epochs": 5, "learning_rate": 0.005, "batch_size": 64, "loss": "l1"}
    how = {"architecture": "mlp", "arguments": {"hidden": [8]}, "recipe": recipe, "seed": 0}
    train_model(name="values", manifest="diabetes", **how)
    return "values"


def test_ranges_of_values_are_forgotten_and_what_they_do_not_meet_is_closed_or_held(
    place: Any, values_name: str, tmp_path: Path
) -> None:
    given = {"limit": 0, "lease_hours": 1.0, "seed": 0, "ladder": {}, "policies": {}, "owner": "run-values"}
    low, none = asked(values_name, "low", "target", ":80"), asked(values_name, "none", "target", "900:")
    into = tmp_path / "batch"
    batch = next_batch(values_name, "diabetes", into=into, **given)
    assert batch is not None
    assert (batch["kind"], batch["targets"], batch["method"], batch["ids"]) == ("target", [":80"], "blindspot", "")
    assert state(none) == ("closed", "no_data_found")
    policy = dict.fromkeys(set(policy_for("regression", "target")) - {"weights_changed"}, "none")
    chain = Chain(
        tmp_path,
        manifest="diabetes",
        job="test/values",
        **{key: batch[key] for key in ("model", "method", "targets", "work")},
        request="target",
        settings={"epochs": 1, "blind_epochs": 1},
        policy=policy,
    )
    for stage in ("load_model", "select", "synthesize", "impair", "repair", "distill", "evaluate", "attack", "gate"):
        chain.call(stage)
    verdict = json.loads(Path(chain.artifacts["verdict"].path, "verdict.json").read_text())
    unlearned = Path(chain.artifacts["unlearned"].path)
    assert end_batch(into, verdict, unlearned, run=chain.run, desk=tmp_path / "desk") == "closed"
    assert state(low) == ("closed", "erased_approx_audited")
    data = make_manifest("diabetes")
    gone = data.rows("train")[data.targets()[data.rows("train")] < 80]
    assert read_bundle(unlearned).card.forgotten_rows == {data.digest: as_ranges(gone)}
    names = open_ledger()
    found = check(
        names.names,
        excluded(store()),
        {},
        dataset=data.card.name,
        rows_in=lambda kind, text: rows_meant(data, ForgetRequest(kind, (text,))).tolist(),
    )
    names.close()
    assert {int(row) for row in gone} <= set(found.rows)
    assert max(data.targets()[list(found.rows)]) < 80
    again, every = asked(values_name, "again", "target", ":75"), asked(values_name, "all", "target", "0:1e9")
    assert next_batch(values_name, "diabetes", into=tmp_path / "next", **given) is None
    assert (state(again), state(every)[0]) == (("closed", "no_data_found"), "held")


def test_a_period_is_claimed_and_one_that_the_data_cannot_tell_is_left_to_a_person(place: Any, tmp_path: Path) -> None:
    start = datetime(2017, 1, 30, 5)
    lines = [f"{start + timedelta(hours=step)},{step % 7},{step % 24}" for step in range(200)]
    (tmp_path / "s.csv").write_text("\n".join(["date,load,heat", *lines]) + "\n")
    source = f"windows:{tmp_path / 's.csv'}?target=heat&encoder=6&horizon=3"
    (place.home / MARKER).write_text("{}")
    train_model(name="heat", manifest=source, architecture="", arguments={}, recipe={"epochs": 1}, seed=0)
    given = {"limit": 0, "lease_hours": 1.0, "seed": 0, "ladder": {}, "policies": {}, "owner": "run-heat"}
    day = asked("heat", "day", "period", "2017-02-01")
    batch = next_batch("heat", source, into=tmp_path / "batch", **given)
    assert batch is not None
    assert (batch["kind"], batch["targets"], batch["method"]) == ("period", ["2017-02-01"], "blindspot")
    end_batch(tmp_path / "batch", FAILED, tmp_path, run="", desk=tmp_path / "desk")
    assert state(day) == ("pending", "")
    ledger = open_ledger()
    cancel(ledger, day, "taken back", actor="desk")
    ledger.close()
    edge = asked("heat", "edge", "period", "2019")
    assert next_batch("heat", source, into=tmp_path / "edge", **given) is None
    assert state(edge)[0] == "held"


@pytest.mark.parametrize("where", ["serve", "settle_batch", "seal"])
def test_a_batch_cut_short_at_its_end_is_ended_by_the_next_run(
    place: Any, name: str, without_two: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    ref = asked(name, f"cut-{where}", "class", "two")
    following(place, name, tmp_path / "batch", lease_hours=1e-9)
    path = Path(without_two.artifacts["unlearned"].path)
    real = getattr(bookkeeping, where)

    def broken(*given: Any, **more: Any) -> Any:
        if where == "serve":
            bookkeeping.begin(*given[:3])  # type: ignore[attr-defined]
        elif where == "seal":
            real(*given, **more)
        raise StorageError("the store is away")

    with monkeypatch.context() as patch:
        from unlearning.ledger.promotion import begin

        patch.setattr(bookkeeping, "begin", begin, raising=False)
        patch.setattr(bookkeeping, where, broken)
        with pytest.raises(StorageError, match="away"):
            end_batch(tmp_path / "batch", PASSED, path, run=without_two.run, desk=tmp_path / "desk")
    assert following(place, name, tmp_path / "next") is None
    assert state(ref) == ("closed", "erased_approx_audited")
    assert Champion(place.registry, name).digest() == read_bundle(path).digest


def test_a_batch_that_cannot_be_served_is_held_for_a_person(place: Any, name: str, tmp_path: Path) -> None:
    ref = asked(name, "all", "class", "one", "two", "three")
    assert following(place, name, tmp_path / "batch") is None
    assert state(ref)[0] == "held"
    ledger = open_ledger()
    (row,) = [one for one in list_requests(ledger) if one["ref"] == ref]
    ledger.close()
    assert "all 3 classes" in row["reason"]


def test_a_share_that_is_too_large_is_held_until_it_is_approved(
    place: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNLEARN_GUARDS", "share=0.4,approvals=2")
    data = make_manifest(place.source)
    rows = data.table.take(data.rows("train"))
    half = rows["sample_id"].to_pylist()[: len(rows) // 2]
    ref, few = asked(name, "half", "sample", *half), asked(name, "few", "sample", *rows["sample_id"].to_pylist()[-2:])
    assert following(place, name, tmp_path / "batch") is None
    assert (state(ref)[0], state(few)[0]) == ("held", "held"), "nobody can tell which of them is too much"
    ledger = open_ledger()
    assert "more than 40%" in find(ledger, ref)["reason"]
    for one in (ref, few):
        assert approve(ledger, one, actor="privacy") == 1
        assert approve(ledger, one, actor="models") == 0
    ledger.close()
    batch = following(place, name, tmp_path / "again")
    assert batch["count"] == 2, "what was approved is not held again"
    end_batch(tmp_path / "again", FAILED, tmp_path, run="", desk=tmp_path / "desk")


def test_every_row_of_a_class_goes_by_its_name_or_by_leave(place: Any, name: str, tmp_path: Path) -> None:
    data = make_manifest(place.source)
    rows = data.table.take(data.rows("train"))
    pairs = zip(rows["sample_id"].to_pylist(), rows["target"].to_pylist(), strict=True)
    ref = asked(name, "quietly", "sample", *(row for row, target in pairs if target == "two"))
    assert following(place, name, tmp_path / "batch") is None
    ledger = open_ledger()
    assert "every row of a class" in find(ledger, ref)["reason"]
    ledger.close()


def test_a_batch_waits_for_enough_requests_and_says_so(
    place: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UNLEARN_GUARDS", "batch=3")
    ref = asked(name, "one", "class", "two")
    assert following(place, name, tmp_path / "batch", cadence_days=7.0) is None
    assert "1 requests wait for 2 more, or until one is due in 21 days" in capsys.readouterr().out
    assert state(ref)[0] == "pending"
    batch = following(place, name, tmp_path / "due", cadence_days=15.0)
    assert batch["count"] == 1, "it is due before two more runs"
    end_batch(tmp_path / "due", FAILED, tmp_path, run="", desk=tmp_path / "desk")


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"ladder": {"person": []}}, "no kind of request is called 'person'"),
        ({"ladder": {"class": {}}}, "wanted a list"),
        ({"ladder": {"sample": [{"method": "unsir"}]}}, "unsir"),
        ({"ladder": {"class": [{"method": "unsri"}]}}, 'did you mean "unsir"'),
        ({"policies": {"class": {"worst_clas_drop.test": {"high": 1}}}}, "did you mean"),
    ],
)
def test_a_mistake_is_refused_before_anything_is_claimed(
    place: Any, name: str, tmp_path: Path, changed: Any, part: str
) -> None:
    ref = asked(name, name, "class", "one")
    with pytest.raises(UsageError, match=part):
        following(place, name, tmp_path / "batch", **changed)
    assert state(ref) == ("pending", "")


def test_a_manifest_that_is_not_there_leaves_the_requests_waiting(place: Any, name: str, tmp_path: Path) -> None:
    ref = asked(name, name, "class", "one")
    given = {"owner": "run", "limit": 0, "lease_hours": 1.0, "seed": 0, "ladder": {}, "policies": {}}
    with pytest.raises(DataError, match="no manifest at"):
        next_batch(name, "nowhere.parquet", into=tmp_path / "batch", **given)
    assert state(ref) == ("pending", "")
    asked("nobody", "nobody", "class", "one")
    with pytest.raises(UsageError, match='"nobody" has no champion'):
        next_batch("nobody", place.source, into=tmp_path / "batch", **given)
