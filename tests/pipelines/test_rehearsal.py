"""Before a batch: what it would do, and all of it on copies, with nothing claimed, written or left."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.chain import DEFAULTS

from unlearning.data.sources import make_manifest
from unlearning.errors import PipelineError
from unlearning.ledger.claims import plan
from unlearning.ledger.filing import Hold
from unlearning.ledger.guards import SHARE, approve
from unlearning.ledger.ladder import claim_next, set_aside, turn_away
from unlearning.ledger.opening import open_ledger
from unlearning.ledger.overview import list_requests
from unlearning.settings import Settings
from unlearning.tracking import Registry, promote_bundle
from unlearning_components import previews
from unlearning_components.surroundings import store, tracker
from unlearning_pipelines import rehearsal
from unlearning_pipelines.runs import Result

TEXTS = ("verdict", "model_uri", "report", "summary", "mlflow_run_id")


@pytest.fixture
def source(unlearn: Any, ready: Path, tiny: Any) -> str:
    """The data set of a registered model, "faces"."""
    promote_bundle(tracker(), store(), tiny.bundle, name="faces", run_id="", outcome="pass")
    return str(tiny.source)


def file(unlearn: Any, key: str, kind: str, *ids: str) -> str:
    given = [part for one in ids for part in ("--id", one)]
    ended = unlearn("requests", "add", "--key", key, "--kind", kind, *given, "--model", "faces", "--json")
    assert (ended.code, ended.err) == (0, "")
    return str(json.loads(ended.out.splitlines()[-1])["ref"])


def dry(unlearn: Any, source: str, *more: str) -> dict[str, Any]:
    ended = unlearn("ledger", "plan", "--dry-run", "--model", "faces", "--set", f"manifest={source}", *more, "--json")
    assert (ended.code, ended.err) == (0, "")
    content: dict[str, Any] = json.loads(ended.out.splitlines()[-1])
    return content


def traces() -> tuple[Any, ...]:
    ledger = open_ledger()
    head = ledger.head()
    ledger.close()
    return head, sorted(store().keys()), Registry(tracker()).version("faces", "champion")


def test_a_dry_run_says_what_a_batch_would_do_and_writes_nothing(unlearn: Any, source: str) -> None:
    file(unlearn, "1", "class", "two")
    file(unlearn, "2", "class", "seventeen")
    before = traces()
    found = dry(unlearn, source)
    data = make_manifest(source)
    rows = data.rows("train")
    gone = int((data.targets()[rows] == data.card.classes.index("two")).sum())
    assert (found["requests"], found["without_rows"], found["rows"]) == (2, 1, gone)
    assert found["share"] == pytest.approx(gone / len(rows), abs=1e-6)
    assert found["classes"] == {"two": 1.0}
    assert (found["step"], found["method"], found["in_time"], found["hits"]) == ("first", "unsir", True, [])
    assert "retain_accuracy_drop.test" in found["gates"]
    assert any(place.startswith("models:/faces") for place in found["writes"])
    assert traces() == before
    text = unlearn("ledger", "plan", "--dry-run", "--model", "faces", "--set", f"manifest={source}").out
    assert "2 class requests, 0 of them twins, 1 without rows" in text


def test_a_dry_run_names_what_would_hold_the_batch(unlearn: Any, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_manifest(source)
    half = data.table.take(data.rows("train"))["sample_id"].to_pylist()
    file(unlearn, "1", "sample", *half[: len(half) // 2])
    monkeypatch.setenv("UNLEARN_GUARDS", "share=0.4,batch=3")
    hits = dry(unlearn, source)["hits"]
    assert len(hits) == 2
    assert "1 requests of 3" in hits[0]
    assert "more than 40%" in hits[1]
    assert half[0] not in json.dumps(hits)
    file(unlearn, "2", "sample", *half[len(half) // 2 :])
    (why,) = [hit for hit in dry(unlearn, source)["hits"] if "held for a person" in hit]
    assert half[0] not in why


def test_a_dry_run_knows_the_rung_the_time_that_tries_took_and_what_is_late(
    unlearn: Any, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file(unlearn, "1", "class", "two")
    ledger = open_ledger()
    found = claim_next(ledger, owner="run")
    assert found is not None
    turn_away(ledger, found.claim, outcome="fail", reasons=["m is 2"])
    ledger.close()
    shown = dry(unlearn, source, "--set", 'ladder={"class": [{"method": "unsir"}, {"method": "amnesiac"}]}')
    assert (shown["step"], shown["method"]) == ("stronger", "amnesiac")
    slow = previews.status

    def after_months(*given: Any) -> Any:
        return replace(slow(*given), batch_hours_p95=2000.0)

    monkeypatch.setattr(previews, "status", after_months)
    late = dry(unlearn, source)
    assert (late["in_time"], late["hours"]) == (False, 2000.0)
    assert any(hit.startswith("too late") for hit in late["hits"])


def test_without_requests_there_is_nothing_to_show_or_rehearse(unlearn: Any, source: str) -> None:
    open_ledger(make=True).close()
    assert dry(unlearn, source) == {"requests": 0}
    ended = unlearn("run", "deletion_batch", "--rehearse", "--set", "name=faces", "--set", f"manifest={source}")
    assert (ended.code, "nothing waits" in ended.out) == (0, True)
    ended = unlearn("run", "delete_class", "--rehearse")
    assert (ended.code, "for deletion_batch" in ended.err) == (2, True)


@pytest.mark.parametrize("breaks", [False, True])
def test_a_rehearsal_sees_copies_of_everything_and_leaves_no_ids(
    unlearn: Any, source: str, monkeypatch: pytest.MonkeyPatch, breaks: bool
) -> None:
    data = make_manifest(source)
    half = data.table.take(data.rows("train"))["sample_id"].to_pylist()
    ref = file(unlearn, "1", "sample", *half[: len(half) // 2])
    monkeypatch.setenv("UNLEARN_GUARDS", "share=0.4")
    ledger = open_ledger()
    found = claim_next(ledger, owner="run")
    assert found is not None
    set_aside(ledger, found.claim, Hold("much", SHARE, 1))
    approve(ledger, ref, actor="privacy")
    ledger.close()
    killed, busy = (Settings().home / "rehearsals" / f"rehearsal-{name}" for name in ("killed", "busy"))
    for left in (killed, busy):
        (left / "home").mkdir(parents=True)
    os.utime(killed, (0, 0))
    before, seen = traces(), list[Any]()

    def run(pipeline: str, arguments: Any, **_: Any) -> Result:
        ledger = open_ledger()
        planned = plan(ledger, model="faces")
        assert planned is not None
        seen.append((str(Settings().home), len(planned.refs), arguments["ladder"]))
        assert [row["state"] for row in list_requests(ledger)] == ["pending"]
        ledger.close()
        assert Registry(tracker()).version("faces", "champion").digest == before[2].digest
        if breaks:
            raise KeyboardInterrupt
        page = Settings().home / "report.html"
        page.write_text("<html>")
        nothing: dict[str, Any] = {"metrics": {}, "seconds": {"total": 1.0}}
        told = {"requests": [{"ref": "a" * 64, "state": "closed", "outcome": "", "reason": ""}], "following": ""}
        return Result(pipeline=pipeline, **{**dict.fromkeys(TEXTS, ""), "report": str(page)}, **nothing, deletions=told)

    monkeypatch.setattr(rehearsal, "run_pipeline", run)
    monkeypatch.setattr("unlearning_pipelines.preflight.check_run", lambda *_: None)
    given = ("--rehearse", "--set", "name=faces", "--set", f"manifest={source}")
    ended = unlearn("run", "deletion_batch", *given)
    assert ended.code == (130 if breaks else 0), ended
    ((home, count, ladder),) = seen
    assert (count, list(ladder)) == (1, ["sample"])
    assert "rehearsals" in home
    assert os.environ["UNLEARN_HOME"] == "unlearn-data"
    assert traces() == before
    assert (killed.exists(), busy.exists()) == (False, True), "what a killed one left goes a day later"
    left = {path.suffix for path in (Settings().home / "rehearsals").iterdir() if path != busy}
    assert left == (set() if breaks else {".html"})
    assert breaks or "nothing was claimed, registered, certified or closed" in ended.out


def test_the_log_of_a_rehearsal_that_fails_stays(unlearn: Any, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file(unlearn, "1", "class", "two")

    def run(*_: Any, **__: Any) -> Result:
        log = Settings().home / "runs" / "run-1.log"
        log.parent.mkdir()
        log.write_text("what went wrong")
        raise PipelineError(f"stage repair was stopped; the log is {log}")

    monkeypatch.setattr(rehearsal, "run_pipeline", run)
    monkeypatch.setattr("unlearning_pipelines.preflight.check_run", lambda *_: None)
    ended = unlearn("run", "deletion_batch", "--rehearse", "--set", "name=faces", "--set", f"manifest={source}")
    (log,) = (Settings().home / "rehearsals").iterdir()
    assert (ended.code, log.read_text()) == (1, "what went wrong")
    assert ended.err == f"error: stage repair was stopped; the log is {log.absolute()}\n"


@pytest.mark.slow
def test_a_whole_batch_is_rehearsed_on_copies(unlearn: Any, source: str) -> None:
    file(unlearn, "1", "class", "two")
    before = traces()
    sets = {
        "name": "faces",
        "manifest": source,
        "ladder": json.dumps({"class": [{"method": "unsir", "settings": DEFAULTS["settings"]}]}),
        "policies": json.dumps({"class": DEFAULTS["policy"]}),
    }
    given = [part for name, value in sets.items() for part in ("--set", f"{name}={value}")]
    ended = unlearn("run", "deletion_batch", "--rehearse", *given, "--json")
    assert ended.code == 0, ended
    result = json.loads(ended.out.splitlines()[-1])
    assert (result["verdict"], [one["state"] for one in result["deletions"]["requests"]]) == ("pass", ["closed"])
    assert Path(result["report"]).is_file()
    assert traces() == before
    assert [path.name for path in (Settings().home / "rehearsals").iterdir()] == [Path(result["report"]).name]
