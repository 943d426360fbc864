"""What people type about deletion requests: every mistake is one line; nothing heavy is loaded."""

import json
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from unlearning.ledger.certificate import PREFIX, Measure
from unlearning.ledger.claims import claim
from unlearning.ledger.figures import page
from unlearning.ledger.opening import open_ledger
from unlearning.ledger.overview import status
from unlearning.ledger.promotion import Version, begin, confirm, settle
from unlearning.ledger.serving import serve
from unlearning.ledger.settlement import settle_batch
from unlearning.ledger.signing import signer_of
from unlearning.models.bundle import load_bundle, save_bundle
from unlearning.settings import Settings
from unlearning.storage import open_store
from unlearning.tracking import Champion, Registry, promote_bundle
from unlearning.tracking.promotion import store_bundle
from unlearning_components.surroundings import store as the_store
from unlearning_components.surroundings import tracker
from unlearning_pipelines.runs import Result

ADD = ("requests", "add", "--model", "faces")
NOW = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


def last(ended: Any) -> dict[str, Any]:
    assert ended.err == "", ended
    content: dict[str, Any] = json.loads(ended.out.splitlines()[-1])
    return content


def refused(ended: Any, code: int, part: str) -> None:
    assert ended.code == code, ended
    assert ended.err.startswith("error: "), ended
    assert ended.err.count("\n") == 1
    assert part in ended.err, ended


def filed(unlearn: Any, key: str, *ids: str, **more: str) -> str:
    options = [part for name, value in more.items() for part in (f"--{name}", value)]
    return str(last(unlearn(*ADD, "--key", key, *(p for i in ids for p in ("--id", i)), *options, "--json"))["ref"])


def served(outcome: str = "erased_approx_audited") -> str:
    """Takes what is pending from claim to closed, as a run would; the batch."""
    ledger, store = open_ledger(), open_store(Settings().store_uri)
    held = claim(ledger, owner="run")
    assert held is not None
    begin(ledger, held, Version("a" * 64, "", "1"))
    confirm(ledger, held, "a" * 64)
    facts: dict[str, Any] = {
        "before": {},
        "after": {"version": "1", "digest": "a" * 64},
        "files": {"weights.safetensors": "9" * 64},
        "data": {"manifest": "d" * 64},
        "method": {"name": "unsir"},
        "measures": [Measure(metric="m", value=0.0, standard_error=0.0, low=None, high=1.0, outcome="pass")],
        "policy": "8" * 64,
    }
    signer = signer_of(Settings().signing_key_file)
    settle_batch(ledger, store, signer, held, outcome=outcome, facts=facts, obligations={})
    ledger.close()
    return held.batch


@pytest.mark.parametrize(
    "command",
    [
        *("requests list", "requests status", "requests hold abcdef why", "requests cancel abcdef why"),
        *("requests release abcdef", "requests extend abcdef why", "requests purge"),
        *("ledger verify", "ledger seal", "ledger plan", "check-manifest digits", "ledger rollback faces 1"),
    ],
)
def test_without_a_ledger_every_command_says_so_and_makes_none(unlearn: Any, desk: Path, command: str) -> None:
    refused(unlearn(*command.split()), 1, "there is no ledger")
    assert list(desk.iterdir()) == []


def test_a_request_is_filed_once_and_listed_without_its_ids(unlearn: Any) -> None:
    ref = filed(unlearn, "k-1", "user-17")
    again = last(unlearn(*ADD, "--key", "k-1", "--id", "user-17", "--json"))
    assert (again["status"], again["ref"]) == ("repeated", ref)
    refused(unlearn(*ADD, "--key", "k-1", "--id", "user-18"), 2, "another content")
    listed = unlearn("requests", "list", "--json")
    (row,) = last(listed)["requests"]
    assert (row["ref"], row["state"]) == (ref, "held")
    shown = unlearn("requests", "status", ref[:8])
    assert shown.code == 0
    assert "conflict" in shown.out
    assert "user-17" not in listed.out + shown.out


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (["--key", "k", "--id", "../x"], "id 1 begins with another character"),
        (["--key", "k", "--id", "x", "--kind", "person"], "kind"),
        (["--key", "k", "--id", "x", "--submitted", "yesterday"], "submitted_at: wanted a time"),
        (["--key", "k k", "--id", "x"], "key"),
        (["--key", "k", "--id", "x", "--submitted", "2999-01-01T00:00:00Z"], "lies in the future"),
    ],
)
def test_a_mistaken_request_is_one_line_that_does_not_repeat_it(unlearn: Any, more: list[str], part: str) -> None:
    ended = unlearn(*ADD, *more)
    refused(ended, 2, part)
    assert "../x" not in ended.err


def test_a_file_is_taken_in_row_by_row(unlearn: Any, desk: Path) -> None:
    rows = [
        {"key": "1", "kind": "subject", "ids": ["u1"]},
        {"key": "2", "kind": "subject", "ids": ["../u2"]},
        {"key": "3", "kind": "subject", "ids": ["u1"]},
    ]
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ("requests", "import", "in.jsonl", "--model", "faces", "--controller", "shop")
    report = last(unlearn(*arguments, "--rejects", "rejects.jsonl", "--json"))
    assert (report["accepted"], report["rejected"], report["twins"]) == (2, 1, 1)
    assert json.loads(Path("rejects.jsonl").read_text())["line"] == 2
    assert unlearn(*arguments, "--strict").code == 1
    refused(unlearn("requests", "import", "nowhere.csv"), 1, "nowhere.csv")


def test_hold_release_extend_cancel_and_deny(unlearn: Any) -> None:
    first, second = filed(unlearn, "1", "u1"), filed(unlearn, "2", "u2")
    assert unlearn("requests", "hold", first[:10], "under review").code == 0
    assert last(unlearn("ledger", "plan", "--json"))["requests"] == 1
    assert unlearn("requests", "release", first[:10]).code == 0
    assert last(unlearn("ledger", "plan", "--json"))["requests"] == 2
    assert "tell the person" in unlearn("requests", "extend", first[:10], "complex").out
    refused(unlearn("requests", "extend", first[:10], "again"), 2, "extended before")
    assert unlearn("requests", "cancel", first[:10], "taken back").code == 0
    refused(unlearn("requests", "cancel", first[:10], "taken back"), 2, "it has ended")
    assert unlearn("requests", "deny", second[:10], "no such contract").code == 0
    refused(unlearn("requests", "hold", "abcdef", "why"), 2, "no request begins with abcdef")
    refused(unlearn("requests", "hold", "zz", "why"), 2, "6 to 64 hexadecimal digits")
    refused(unlearn("requests", "deny", second[:10], "line\nbreak"), 2, "it has ended")
    assert "nothing waits" in unlearn("ledger", "plan").out


def test_a_class_is_held_until_two_roles_approved_it(unlearn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNLEARN_GUARDS", "approvals=2")
    ref = filed(unlearn, "1", "cat", kind="class")
    again = unlearn(*ADD, "--key", "1", "--id", "cat", "--kind", "class", "--submitted", NOW)
    assert "held: requests of this kind are approved by 2 roles" in again.out
    assert "held" in unlearn("requests", "list").out
    refused(unlearn("requests", "release", ref[:10]), 2, "requests approve")
    refused(unlearn("requests", "approve", ref[:10], "--by", "desk"), 2, '"desk" filed request')
    assert "1 more role must" in unlearn("requests", "approve", ref[:10], "--by", "privacy").out
    assert "waits for the next batch" in unlearn("requests", "approve", ref[:10], "--by", "models").out
    assert last(unlearn("ledger", "plan", "--json"))["count"] == 1
    monkeypatch.setenv("UNLEARN_GUARDS", "aprovals=2")
    refused(unlearn(*ADD, "--key", "2", "--id", "u"), 2, 'did you mean "approvals"')


def test_what_a_controller_files_beyond_its_day_is_held(
    unlearn: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("UNLEARN_GUARDS", "daily=2")
    path = tmp_path / "drop.csv"
    path.write_text("key,kind,ids\n" + "".join(f"{n},subject,u{n}\n" for n in range(4)))
    given = ("--model", "faces", "--controller", "shop", "--json")
    assert last(unlearn("requests", "import", str(path), *given))["accepted"] == 4
    store = open_store(Settings().store_uri)
    store.put("requests/inbox/shop/faces/b.csv", b"key,kind,ids\n9,subject,u9\n")
    unlearn("requests", "intake")
    assert last(unlearn("requests", "status", "--json"))["counts"]["held"] == 3


def test_status_ends_with_3_when_someone_must_act(unlearn: Any) -> None:
    filed(unlearn, "fresh", "u1")
    assert unlearn("requests", "status").code == 0
    filed(unlearn, "old", "u2", submitted="2026-01-01T00:00:00Z")
    ended = unlearn("requests", "status", "--json")
    assert ended.code == 3
    found = last(ended)
    assert found["overdue"] == 1
    assert any("overdue" in why for why in found["alarms"])
    assert any("schedule runs" in why for why in found["alarms"])
    text = unlearn("requests", "status", "--prometheus").out
    assert 'unlearning_requests{state="pending"} 2\n' in text
    assert "\nunlearning_overdue 1\n" in text
    assert unlearn("requests", "status", "--html", "status.html").code == 3
    shown = Path("status.html").read_text()
    assert "<tr><th>overdue</th><td>1</td></tr>" in shown
    assert "1 requests are overdue" in shown


def test_a_file_that_was_refused_is_said_by_intake_and_alarms_until_a_person_removes_it(unlearn: Any) -> None:
    filed(unlearn, "1", "u1")
    store = open_store(Settings().store_uri)
    store.put("requests/inbox/shop/faces/a.xlsx", b"PK")
    said = unlearn("requests", "intake").out
    moved = next(iter(store.keys("requests/refused")))
    assert "1 files refused" in said
    assert f"it lies at {moved} now" in said
    ended = unlearn("requests", "status")
    assert (ended.code, ended.out.count("ALARM      1 file of requests was refused")) == (3, 1)
    store.delete(moved)
    assert unlearn("requests", "status").code == 0


def test_the_page_shows_names_as_text(unlearn: Any) -> None:
    filed(unlearn, "1", "u1")
    ledger = open_ledger()
    assert claim(ledger, owner="run") is not None
    shown = status(ledger)
    ledger.close()
    active = [{**one, "owner": "<script>alert(1)</script>"} for one in shown.active]
    html = page(replace(shown, active=active), ["<b>act</b>"], "now")
    assert "<script" not in html
    assert "&lt;b&gt;act" in html


def test_the_ledger_is_verified_sealed_and_damage_found(unlearn: Any) -> None:
    filed(unlearn, "1", "u1")
    assert last(unlearn("ledger", "verify", "--json"))["ok"] is True
    sealed = last(unlearn("ledger", "seal", "--json"))
    assert (sealed["events"], len(sealed["head"])) == (1, 64)
    filed(unlearn, "2", "u2")
    assert last(unlearn("ledger", "verify", "--json"))["ok"] is True
    engine = sa.create_engine(Settings().ledger_uri)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE requests SET due_at = '2030-01-01T00:00:00.000000Z'")
    engine.dispose()
    ended = unlearn("ledger", "verify")
    assert ended.code == 1
    assert "due_at differ" in ended.out


def test_a_closed_request_is_certified_receipted_and_kept_out_of_training(unlearn: Any, tmp_path: Path) -> None:
    ref = filed(unlearn, "1", "3", kind="class")
    batch = served()
    out = tmp_path / "out"
    assert unlearn("certificate", "receipts", batch, "--out", str(out)).code == 0
    file, receipt = out / f"certificate-{batch[:12]}.dsse.json", out / f"receipt-{ref[:12]}.json"
    assert file.read_bytes() == open_store(Settings().store_uri).get(f"{PREFIX}/{batch}.dsse.json")
    public = Settings().signing_key_file.with_name("signing.pem.pub")
    verify = ("certificate", "verify", str(file), "--key", str(public))
    ended = unlearn(*verify, "--receipt", str(receipt))
    assert ended.code == 0
    for part in ("verified     signature", "not checked  what remains", "verified     receipt: content, proof"):
        assert part in ended.out
    receipt.write_text(receipt.read_text().replace(ref, "0" * 64))
    ended = unlearn(*verify, "--receipt", str(receipt), "--json")
    assert ended.code == 1
    assert "receipt: content, proof" in [one["what"] for one in last(ended)["lines"] if one["mark"] == "failed"]
    refused(unlearn("certificate", "verify", str(file), "--key", str(file)), 2, "public key")
    refused(unlearn("certificate", "verify", "nowhere", "--key", str(public)), 2, "cannot read nowhere")
    refused(unlearn("certificate", "receipts", "b" * 64, "--out", str(out)), 2, "no batch")
    checked = unlearn("check-manifest", "digits", "--out", str(tmp_path / "rows.txt"), "--json")
    assert checked.code == 3
    assert last(checked)["found"] == 183, "scikit-learn's digits hold 183 threes"
    assert len((tmp_path / "rows.txt").read_text().split()) == 183


def test_a_lost_key_is_no_fresh_one(unlearn: Any) -> None:
    filed(unlearn, "1", "u1")
    Settings().ledger_key_file.unlink()
    for command in (("requests", "status"), (*ADD, "--key", "2", "--id", "u2")):
        refused(unlearn(*command), 1, "ledger.key is missing: restore it")


def test_the_doctor_tries_the_ledger_and_leaves_nothing(unlearn: Any) -> None:
    filed(unlearn, "1", "u1")
    events = last(unlearn("ledger", "verify", "--json"))["events"]
    ended = unlearn("doctor", "--json")
    tried = [one["what"] for one in last(ended)["findings"] if one["what"].startswith("ledger: ")]
    assert {"ledger: one writer wins", "ledger: writers take turns", "ledger: events are append-only"} <= set(tried)
    assert last(unlearn("ledger", "verify", "--json"))["events"] == events
    assert list(open_store(Settings().store_uri).keys("probe")) == []


def test_the_doctor_says_which_guards_are_in_force_and_finds_a_mistake(
    unlearn: Any, ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for text, ok, part in (("approvals=2", True, "approvals=2"), ("aprovals=2", False, 'did you mean "approvals"')):
        monkeypatch.setenv("UNLEARN_GUARDS", text)
        (found,) = [one for one in last(unlearn("doctor", "--json"))["findings"] if one["what"] == "guards"]
        assert (found["ok"], part in found["detail"]) == (ok, True)


def test_status_and_certificate_load_neither_torch_nor_kfp(unlearn: Any, desk: Path) -> None:
    filed(unlearn, "1", "u1")
    code = (
        "import sys\nfrom unlearning_pipelines import cli\nsys.argv = ['unlearn', *sys.argv[1:]]\n"
        "try:\n    cli.main()\nexcept SystemExit as stop:\n    code = stop.code\n"
        "print(sorted({'torch', 'kfp', 'mlflow', 'numpy', 'pandas', 'boto3'} & set(sys.modules)), code or 0)\n"
    )
    import os

    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    for command in (["requests", "status"], ["requests", "list"], ["certificate", "verify", "x", "--key", "x"]):
        ended = subprocess.run(
            [sys.executable, "-c", code, *command], capture_output=True, text=True, env=environment, cwd=desk
        )
        assert ended.stdout.splitlines()[-1].startswith("[] "), ended


@pytest.mark.parametrize(
    ("changed", "code", "part"),
    [
        ("name=nobody", 1, "no model at models:/nobody@champion"),
        ('ladder={"class": [{"method": "unsri"}]}', 2, 'did you mean "unsir"'),
        ('policies={"class": {"worst_clas_drop.test": {"high": 1}}}', 2, "did you mean"),
        ("limit=many", 2, "limit"),
    ],
)
def test_a_batch_that_cannot_run_is_refused_before_it_claims(unlearn: Any, changed: str, code: int, part: str) -> None:
    filed(unlearn, "1", "3", kind="class")
    refused(unlearn("run", "deletion_batch", "--set", changed), code, part)
    assert last(unlearn("ledger", "plan", "--json"))["requests"] == 1


@pytest.fixture
def two_served(unlearn: Any, ready: Path, tiny: Any, tmp_path: Path) -> tuple[str, str]:
    """The digests of a model that served, and of the one that serves since a batch was settled."""
    old = tiny.bundle
    promote_bundle(tracker(), the_store(), old, name="faces", run_id="", outcome="pass")
    filed(unlearn, "1", "two", kind="class")
    ledger, registry = open_ledger(), Registry(tracker())
    held = claim(ledger, owner="run", base=old.digest)
    assert held is not None
    card = replace(old.card, parent=old.digest, forgotten=("two",))
    new = save_bundle(load_bundle(old.folder)[0], card, tmp_path / "new")
    uri = store_bundle(the_store(), new)
    facts = {"bundle_uri": uri, "digest": new.digest, "weights_sha256": new.card.weights_sha256}
    number = registry.register("faces", **facts, run_id="", description="", tags={}, folder=new.folder)
    serve(ledger, held, Version(new.digest, old.digest, str(number)), Champion(registry, "faces"))
    settle(ledger, held, outcome="erased_approx_audited", certificate="c" * 64)
    ledger.close()
    return old.digest, new.digest


def test_old_models_are_removed_by_the_command_when_their_days_are_over(
    unlearn: Any, two_served: tuple[str, str]
) -> None:
    old, new = two_served
    assert last(unlearn("ledger", "retire", "--json")) == {"removed": [], "waiting": [], "days": 7.0}
    shown = unlearn("ledger", "retire", "--days", "0", "--dry-run")
    assert (shown.code, f"faces {old[:12]} would be removed" in shown.out) == (0, True)
    assert the_store().remains(f"models/{old}") != []
    ended = unlearn("ledger", "retire", "faces", "--days", "0", "--json")
    assert "nothing is left" in ended.out
    assert last(ended)["removed"] == [old]
    assert the_store().remains(f"models/{old}") == []
    assert the_store().remains(f"models/{new}") != [], "what serves stays"
    registry = Registry(tracker())
    assert registry.with_digest("faces", old) is None
    assert registry.version("faces", "champion").digest == new
    assert [key for key in the_store().keys("evidence/retired") if old in key] != []
    assert last(unlearn("ledger", "retire", "--days", "0", "--json"))["removed"] == []
    assert "everything holds" in unlearn("ledger", "verify").out


def test_a_worker_that_tidies_removes_old_models_and_ids_after_each_run(
    unlearn: Any, two_served: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing: dict[str, Any] = {"metrics": {}, "seconds": {"total": 1.0}, "deletions": {"requests": []}}
    texts = dict.fromkeys(("verdict", "model_uri", "report", "summary", "mlflow_run_id"), "")
    none = Result(pipeline="deletion_batch", **texts, **nothing)
    monkeypatch.setattr("unlearning_pipelines.runs.run_pipeline", lambda *_, **__: none)
    monkeypatch.setattr("unlearning_pipelines.preflight.check_run", lambda *_: None)
    plain = unlearn("worker", "--every", "1h", "--times", "1", "--set", "name=faces")
    assert (plain.code, "removed" in plain.out) == (0, False)
    monkeypatch.setenv("UNLEARN_RETIRE_DAYS", "0")
    ended = unlearn("worker", "--every", "1h", "--times", "1", "--set", "name=faces", "--tidy")
    assert (ended.code, ended.err) == (0, "")
    assert "1 old models removed, and the ids of 0 requests" in ended.out
    assert the_store().remains(f"models/{two_served[0]}") == []
