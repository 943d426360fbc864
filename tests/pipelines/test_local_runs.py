"""Whole pipelines on KFP's local runner, as people run them: a process for the run, and one for every stage."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kfp import compiler, dsl
from support.chain import CANARY, DEFAULTS

from unlearning.data.samples import Rows
from unlearning.data.selection import ForgetRequest, as_ranges, rows_meant, select
from unlearning.data.sources import fit_scaling, make_manifest
from unlearning.errors import PipelineError
from unlearning.ledger.checking import check_certificate, ok
from unlearning.ledger.events import moment
from unlearning.ledger.exclusion import check, excluded
from unlearning.ledger.filing import file_requests
from unlearning.ledger.opening import open_ledger
from unlearning.ledger.requests import request_from
from unlearning.ledger.segments import verify_sealed
from unlearning.ledger.signing import public_key
from unlearning.ledger.verification import verify
from unlearning.metrics.accuracy import accuracy
from unlearning.models.bundle import load_bundle, read_bundle
from unlearning.policy.gates import policy_for
from unlearning.storage import download_folder, open_store
from unlearning.tracking import Registry, promote_bundle
from unlearning.training import predict
from unlearning_components.surroundings import fetch_model, open_for, store, tracker
from unlearning_pipelines.compile import COMPILED
from unlearning_pipelines.deployment import train_model
from unlearning_pipelines.local import run_locally
from unlearning_pipelines.preflight import claim_home
from unlearning_pipelines.runs import run_pipeline

pytestmark = pytest.mark.slow

UNLEARN = str(Path(sys.executable).with_name("unlearn"))
MEASURING = {"evaluate", "attack", "gate"}
TRAINING = {"synthesize", "impair", "repair", "distill", "retrain"}
BATCHED = {"claim", "load_model", "select", *TRAINING, *MEASURING, "settle"}
STAGES = BATCHED - {"claim", "settle"} | {"audit", "promote"}


def environment(**changed: str) -> dict[str, str]:
    """This environment without settings of ours or MLflow's."""
    ours = re.compile("UNLEARN_|MLFLOW_")
    kept = {name: value for name, value in os.environ.items() if not ours.match(name)}
    return {**kept, "MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1", **changed}


def processes(home: Path) -> dict[int, str]:
    """The command lines of other processes whose settings name this folder of ours: so this one has started them."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                settings = (entry / "environ").read_bytes().split(b"\0")
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if f"UNLEARN_HOME={home}".encode() in settings:
                found[int(entry.name)] = line
    return found


def _name(pid: int) -> str:
    """What a process calls itself; a stage goes by its own name."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


class Killer:
    """An `on_stage` that kills the processes of one stage, once it has started and a condition holds."""

    def __init__(self, home: Path, victim: str, condition: Callable[[], bool] = lambda: True) -> None:
        self.home, self.victim, self.condition = home, victim, condition
        self.seen: list[tuple[str, str]] = []
        self.killed: list[int] = []

    def __call__(self, stage: str, state: str) -> None:
        self.seen.append((stage, state))
        if (stage, state) == (self.victim, "started"):
            threading.Thread(target=self._kill, daemon=True).start()

    def _kill(self) -> None:
        until = time.monotonic() + 120
        while time.monotonic() < until and not self.killed:
            running = [pid for pid in processes(self.home) if _name(pid) == self.victim[:15]]
            if running and self.condition():
                for pid in running:
                    os.kill(pid, signal.SIGKILL)
                self.killed = running
            time.sleep(0.05)


def whole_bundles(uri: str, scratch: Path) -> set[str]:
    """The digests of the bundles that a reader finds in a store; a broken one fails the test."""
    kept = open_store(uri)
    digests = {key.split("/")[1] for key in kept.keys("models") if key.endswith("/card.json")}
    for digest in digests:
        assert read_bundle(download_folder(kept, f"models/{digest}", scratch / digest)).digest == digest
    assert {key.split("/")[1] for key in kept.keys("models")} == digests, "half a bundle lies in the store"
    return digests


@dataclass(frozen=True)
class Demo:
    """A finished demo, and the folder that it filled."""

    home: Path
    result: dict[str, Any]
    out: str


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    home = tmp_path_factory.mktemp("demo") / "data"
    ended = subprocess.run(
        [UNLEARN, "demo", "--json"],
        capture_output=True,
        text=True,
        timeout=900,
        env=environment(UNLEARN_HOME=str(home)),
        cwd=home.parent,
    )
    assert ended.returncode == 0, ended.stderr + ended.stdout
    return Demo(home, json.loads(ended.stdout.splitlines()[-1]), ended.stdout)


@pytest.fixture
def at_home(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """This process works in the demo's folder, too."""
    with monkeypatch.context() as patch:
        for name in [name for name in os.environ if re.match("UNLEARN_|MLFLOW_", name)]:
            patch.delenv(name)
        patch.setenv("UNLEARN_HOME", str(demo.home))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield demo.home


def test_the_demo_says_all_that_a_script_wants_to_know(demo: Demo) -> None:
    result = demo.result
    assert set(result) == {
        "pipeline", "verdict", "metrics", "model_uri", "report", "summary", "mlflow_run_id", "seconds", "deletions"
    }  # fmt: skip
    assert (result["pipeline"], result["verdict"]) == ("deletion_batch", "pass")
    assert result["metrics"]["forget_accuracy.test.original"] > 0.9
    assert result["metrics"]["forget_accuracy.test.unlearned"] <= 0.05
    assert result["metrics"]["retain_accuracy.test.unlearned"] > 0.9
    assert set(result["seconds"]) == {*BATCHED - {"claim"}, "total"}
    assert sum(value for name, value in result["seconds"].items() if name != "total") < result["seconds"]["total"]
    assert len(demo.out.splitlines()) < 90


def test_the_demo_ends_with_a_request_closed_and_a_certificate_verified(demo: Demo) -> None:
    deletions = demo.result["deletions"]
    (request,) = deletions["requests"]
    assert (request["state"], request["outcome"]) == ("closed", "erased_approx_audited")
    (certificate,) = deletions["certificates"]
    folder = Path(certificate).parent
    assert {"model", "report.html", "signing.pem.pub", Path(certificate).name} == {one.name for one in folder.iterdir()}
    assert Path(demo.result["report"]).parent == folder
    assert folder.is_relative_to(demo.home)
    marks = [line.split()[0] for line in demo.out.splitlines() if line.startswith(("verified", "failed"))]
    assert len(marks) > 10
    assert set(marks) == {"verified"}
    command = [UNLEARN, "certificate", "verify", certificate, "--key", deletions["public_key"]]
    again = subprocess.run(
        [*command, "--model", str(folder / "model")],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment(UNLEARN_HOME=str(demo.home / "elsewhere")),
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout in demo.out


def test_the_demo_registers_what_it_says(demo: Demo, at_home: Path, tmp_path: Path) -> None:
    bundle = fetch_model("models:/digits-demo@champion", tmp_path / "fetched")
    version = Registry(tracker()).version("digits-demo", "champion")
    assert (version.version, version.bundle_uri) == (2, demo.result["model_uri"])
    assert bundle.card.forgotten == ("3",)
    assert len(whole_bundles(str(at_home / "store"), tmp_path / "all")) == 2
    run = tracker().client.get_run(demo.result["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    assert {name: run.data.metrics[name] for name in demo.result["metrics"]} == demo.result["metrics"]


def test_the_report_is_one_page_that_needs_nothing_else(demo: Demo) -> None:
    page = Path(demo.result["report"]).read_text()
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert len(page) < 2_000_000
    loaded = re.findall(r"""(?:\bsrc|<link[^>]*\bhref)\s*=\s*["']([^"']*)""", page)
    assert loaded
    assert [address[:40] for address in loaded if not address.startswith("data:")] == []
    assert re.findall(r"@import|url\((?!['\"]?(?:data:|#))", page) == []


def test_another_class_is_forgotten_by_a_second_run_in_the_same_folder(
    demo: Demo, at_home: Path, tmp_path: Path
) -> None:
    sets = ["model=models:/digits-demo@champion", "register_as=digits-demo", "forget=5"]
    ended = subprocess.run(
        [UNLEARN, "run", "delete_class", "--json", *(word for one in sets for word in ("--set", one))],
        capture_output=True,
        text=True,
        timeout=900,
        env=environment(UNLEARN_HOME=str(demo.home)),
    )
    result = json.loads(ended.stdout.splitlines()[-1])
    assert (ended.returncode, result["verdict"]) in ((0, "pass"), (3, "fail"), (3, "inconclusive"))
    assert result["metrics"]["forget_accuracy.test.unlearned"] < result["metrics"]["forget_accuracy.test.original"]
    newest = Registry(tracker()).version("digits-demo", "candidate")
    assert newest.version == 3
    bundle = fetch_model("models:/digits-demo@candidate", tmp_path / "fetched")
    assert bundle.card.forgotten == ("3", "5")
    # The class that was forgotten first is still forgotten: the second run did not train on its rows.
    network, card = load_bundle(bundle.folder)
    digits = make_manifest("digits")
    seen = digits.rows("test")[digits.targets()[digits.rows("test")] == 3]
    rows = Rows(open_for(card, digits), torch.from_numpy(seen))
    assert len(rows) == 37
    assert accuracy(predict(network, rows), rows.targets) <= 0.05


def _tiny(source: str, model: str, **changed: Any) -> dict[str, Any]:
    """Parameters of a short run."""
    settings, policy = DEFAULTS["settings"], DEFAULTS["policy"]
    return {"model": model, "manifest": source, "forget": ["two"], "settings": settings, "policy": policy, **changed}


def _parents(before: set[str]) -> list[Any]:
    """The pipeline runs that came since, oldest first."""
    runs = tracker()
    query = "tags.`unlearning.kind` = 'pipeline'"
    found = runs.client.search_runs([runs.experiment_id], query, order_by=["attributes.start_time ASC"])
    return [run for run in found if run.info.run_id not in before]


def test_a_run_killed_at_promotion_changes_nothing_and_the_compiled_yaml_completes_it(
    at_home: Path, tiny: Any, tmp_path: Path
) -> None:
    promote_bundle(tracker(), store(), tiny.bundle, name="tiny", run_id="", outcome="pass")
    before = {run.info.run_id for run in _parents(set())}
    arguments = _tiny(tiny.source, "models:/tiny/1", register_as="tiny")
    killer = Killer(at_home, "promote")
    with pytest.raises(PipelineError) as caught:
        run_pipeline("delete_class", arguments, on_stage=killer)
    assert "promote" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert killer.killed
    assert killer.seen[-1] == ("promote", "failed")
    (killed,) = _parents(before)
    assert killed.info.status == "FAILED"
    assert Registry(tracker()).version("tiny", "champion").version == 1

    seen: list[tuple[str, str]] = []
    ended = run_locally(
        str(COMPILED / "delete_class.yaml"),
        arguments,
        root=at_home / "runs",
        on_stage=lambda stage, state: seen.append((stage, state)),
    )
    assert ended.error is None
    assert sorted(seen) == sorted((stage, state) for stage in STAGES for state in ("started", "finished"))
    assert ended.outputs["verdict"] == "pass"
    _, again = _parents(before)
    assert (again.info.run_id, again.info.status) == (ended.mlflow_run, "FINISHED")
    champion = Registry(tracker()).version("tiny", "champion")
    assert (champion.version, champion.bundle_uri) == (2, ended.outputs["model_uri"])
    assert champion.digest in whole_bundles(str(at_home / "store"), tmp_path)

    # Both runs had one seed, and one went through the catalogue, the other through the YAML.
    here = sorted(
        (path.stat().st_mtime_ns, path) for path in at_home.glob("runs/*/distill/unlearned/weights.safetensors")
    )
    first, second = (path.read_bytes() for _, path in here[-2:])
    assert first == second


def _asked(model: str, *ids: str, kind: str = "class") -> str:
    ledger = open_ledger(make=True)
    key = f"{model}-{ids[0]}".replace("/", "-")
    asked = {"controller": "shop", "key": key, "kind": kind, "ids": list(ids), "model": model}
    request = request_from({**asked, "submitted_at": moment(ledger.clock())})
    (filed,) = file_requests(ledger, [request], actor="intake")
    ledger.close()
    return filed.ref


def _batch(name: str, source: str, **changed: Any) -> dict[str, Any]:
    """Parameters of a short batch."""
    ladder = {"class": [{"method": "unsir", "settings": DEFAULTS["settings"]}]}
    policies = {"class": DEFAULTS["policy"]}
    return {"name": name, "manifest": source, "ladder": ladder, "policies": policies, **changed}


def _attempts(run: str) -> dict[str, list[str]]:
    """Stage to the status of each of its attempts, oldest first."""
    runs = tracker()
    query, order = f"tags.`mlflow.parentRunId` = '{run}'", ["attributes.start_time ASC"]
    found: dict[str, list[str]] = {}
    for child in runs.client.search_runs([runs.experiment_id], query, order_by=order):
        found.setdefault(child.data.tags["unlearning.stage"], []).append(child.info.status)
    return found


def test_what_waits_is_served_and_a_batch_that_was_killed_goes_on_where_it_stopped(at_home: Path, tiny: Any) -> None:
    digests, runs = {}, {}
    for name in ("batched", "killed"):
        promote_bundle(tracker(), store(), tiny.bundle, name=name, run_id="", outcome="pass")
        ref, seen = _asked(name, "two"), list[str]()
        if name == "killed":
            killer = Killer(at_home, "repair")
            with pytest.raises(PipelineError, match="repair"):
                run_pipeline("deletion_batch", _batch(name, tiny.source, lease_hours=1e-6), on_stage=killer)
            assert killer.killed
        result = run_pipeline(
            "deletion_batch", _batch(name, tiny.source), on_stage=lambda stage, _, seen=seen: seen.append(stage)
        )
        assert (result.verdict, set(seen)) == ("pass", BATCHED)
        assert [(one["ref"], one["state"]) for one in result.deletions["requests"]] == [(ref, "closed")]
        version = Registry(tracker()).version(name, "champion")
        assert (version.version, version.bundle_uri) == (2, result.model_uri)
        digests[name], runs[name] = version.digest, _attempts(result.mlflow_run_id)
    assert digests["killed"] == digests["batched"], "the same bytes, whatever the interruption"
    assert {name: one for name, one in runs["batched"].items() if one != ["FINISHED"]} == {}
    assert runs["killed"]["synthesize"] == runs["killed"]["impair"] == ["FINISHED"], "not run again"
    again = {name for name, one in runs["killed"].items() if one != ["FINISHED"]}
    assert again <= {"repair", "load_model", "select", "retrain"}, "it was killed; they only fetch, resolve, and pass"
    ledger = open_ledger()
    assert [*verify(ledger), *verify_sealed(ledger, store())] == []
    ledger.close()
    assert not list(store().keys("work"))


def test_a_period_is_forgotten_by_a_batch_and_certified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if re.match("UNLEARN_|MLFLOW_", name)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("UNLEARN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    hours, draw = np.arange(1500), np.random.default_rng(0)
    values = np.stack([np.sin(hours / 24 * 2 * np.pi), np.cos(hours / 24 * 2 * np.pi)]) * 10
    values += draw.normal(0, 2, values.shape)
    times = [datetime(2017, 1, 1) + timedelta(hours=int(hour)) for hour in hours]
    rows = [f"{time},{load:.3f},{heat:.3f}" for time, load, heat in zip(times, *values, strict=True)]
    (tmp_path / "series.csv").write_text("\n".join(["date,load,heat", *rows]) + "\n")
    source = f"windows:{tmp_path / 'series.csv'}?target=heat&encoder=12&horizon=3&unit=C"
    claim_home()
    train_model(name="heat", manifest=source, architecture="", arguments={}, recipe={"epochs": 2}, seed=0)
    period = "2017-01-10/2017-01-15"
    ref = _asked("heat", period, kind="period")
    every = policy_for("regression", "period")
    bounds = dict.fromkeys(set(every) - {"weights_changed", "retain_error_rise.test"}, "none")
    batch = {"name": "heat", "manifest": source, "policies": {"period": bounds}}
    result = run_pipeline("deletion_batch", batch, on_stage=lambda *_: None)
    assert result.verdict == "pass"
    assert [(one["ref"], one["outcome"]) for one in result.deletions["requests"]] == [(ref, "erased_approx_audited")]
    (path,) = result.deletions["certificates"]
    model = fetch_model("models:/heat@champion", tmp_path / "model")
    key = public_key(Path(result.deletions["public_key"]).read_bytes())
    lines = check_certificate(Path(path).read_bytes(), key, model=model.folder)
    assert ok(lines)
    assert [line.mark for line in lines if line.what == "model"] == ["verified"]
    data = make_manifest(source)
    gone = select(data, ForgetRequest("period", (period,)), seed=0).forget
    assert model.card.forgotten_rows == {data.digest: as_ranges(gone)}
    ledger = open_ledger()
    excluded_rows = check(
        ledger.names,
        excluded(store()),
        {},
        dataset=data.card.name,
        rows_in=lambda kind, text: rows_meant(data, ForgetRequest(kind, (text,))).tolist(),
    )
    assert set(gone) <= set(excluded_rows.rows), "no training set may have these windows again"
    assert [*verify(ledger), *verify_sealed(ledger, store())] == []
    ledger.close()


def test_an_empty_queue_ends_after_its_first_stage_and_leaves_no_run_and_no_version(tmp_path: Path) -> None:
    home = tmp_path / "home"
    ended = subprocess.run(
        [UNLEARN, "run", "deletion_batch", "--json"],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment(UNLEARN_HOME=str(home)),
        cwd=tmp_path,
    )
    assert ended.returncode == 0, ended.stderr
    assert "nothing waited" in ended.stdout
    assert [line.split()[1] for line in ended.stdout.splitlines() if line.lstrip().startswith("done")] == ["claim"]
    result = json.loads(ended.stdout.splitlines()[-1])
    assert (result["mlflow_run_id"], result["verdict"], result["deletions"]["requests"]) == ("", "", [])
    assert not list((home / "store").glob("models/*"))


def test_a_run_killed_at_impair_is_run_again_on_a_server_and_s3(served: str, tiny: Any, tmp_path: Path) -> None:
    s3, home = served, tmp_path / "home"
    runs = tracker()
    promote_bundle(runs, store(), tiny.bundle, name=s3, run_id="", outcome="pass")

    def impairing() -> bool:
        query = "tags.`unlearning.stage` = 'impair' and attributes.status = 'RUNNING'"
        return bool(tracker().client.search_runs([runs.experiment_id], query))

    model = f"models:/{s3}@champion"
    endless = {**DEFAULTS["settings"], "impair_epochs": 100_000}
    killer = Killer(home, "impair", impairing)
    with pytest.raises(PipelineError, match="impair"):
        run_pipeline("delete_class", _tiny(tiny.source, model, register_as=s3, settings=endless), on_stage=killer)
    assert killer.killed
    (killed,) = _parents(set())
    assert killed.info.status == "FAILED"
    children = runs.client.search_runs([runs.experiment_id], f"tags.`mlflow.parentRunId` = '{killed.info.run_id}'")
    states = {child.data.tags["unlearning.stage"]: child.info.status for child in children}
    assert states.pop("retrain", "FINISHED") == "FINISHED"  # needs no unlearned model: before or after, as it comes
    assert states == {
        "load_model": "FINISHED",
        "select": "FINISHED",
        "synthesize": "FINISHED",
        "impair": "FAILED",
    }
    assert Registry(runs).version(s3, "champion").version == 1
    assert whole_bundles(f"s3://{s3}/unlearning", tmp_path / "first") == {tiny.bundle.digest}

    result = run_pipeline("delete_class", _tiny(tiny.source, model, register_as=s3), on_stage=lambda *_: None)
    assert result.verdict == "pass"
    champion = Registry(runs).version(s3, "champion")
    assert champion.version == 2
    assert (
        champion.source == champion.bundle_uri == result.model_uri == f"s3://{s3}/unlearning/models/{champion.digest}"
    )
    assert whole_bundles(f"s3://{s3}/unlearning", tmp_path / "second") == {tiny.bundle.digest, champion.digest}
    assert [run.info.status for run in _parents(set())] == ["FAILED", "FINISHED"]
    kept = {entry.path for entry in runs.client.list_artifacts(result.mlflow_run_id)}
    assert "report.html" in kept
    assert {path.name for path in home.iterdir()} == {"kfp-unlearning.json", "runs"}


def _only_change(task: str, request: str) -> dict[str, str]:
    """A policy that asks for changed weights alone: these runs are too short for more."""
    every = policy_for(task, request, reference=task == "regression")
    return dict.fromkeys(set(every) - {"weights_changed"}, "none")


def test_rows_are_forgotten_on_a_server_and_s3_and_a_second_request_adds_to_the_first(
    served: str, tiny: Any, tmp_path: Path
) -> None:
    promote_bundle(tracker(), store(), tiny.bundle, name=served, run_id="", outcome="pass")
    data = make_manifest(tiny.source)
    ids = data.table["sample_id"].take(data.rows("train")).to_pylist()
    store().put("requests/first.txt", "\n".join(ids[:9]).encode())
    store().put("requests/second.txt", "\n".join(ids[6:15]).encode())
    settings = {"epochs": 2, "watch": "never"}
    policy = _only_change("classification", "sample")
    for name in ("first", "second"):
        result = run_pipeline(
            "delete_samples",
            {
                "model": f"models:/{served}@champion",
                "manifest": tiny.source,
                "ids": f"s3://{served}/unlearning/requests/{name}.txt",
                "register_as": served,
                "settings": settings,
                "policy": policy,
            },
            on_stage=lambda *_: None,
        )
        assert result.verdict == "pass"
        assert set(result.seconds) == {*STAGES - {"synthesize", "impair", "repair"}, "total"}
        logged = tracker().client.get_run(result.mlflow_run_id)
        assert logged.info.status == "FINISHED"
        assert CANARY not in str(logged.data) + Path(result.report).read_text()
    card = fetch_model(f"models:/{served}@champion", tmp_path / "fetched").card
    assert card.forgotten_rows == {data.digest: as_ranges(data.rows("train")[:15])}
    files = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("emmn", {"noise_steps": 3, "noise_batch": 8, "proxy_batches": 1, "attempts": 1}),
        ("gated_transfer", {"cycles": 4, "batch_size": 16, "generator_width": 8, "monitor_every": 2, "threshold": 0.9}),
    ],
)
def test_a_class_is_forgotten_without_data_on_a_server_and_s3(
    served: str, tiny: Any, method: str, settings: dict[str, Any]
) -> None:
    promote_bundle(tracker(), store(), tiny.bundle, name=served, run_id="", outcome="pass")
    arguments = _tiny(tiny.source, f"models:/{served}@champion", register_as=served, method=method, settings=settings)
    policy = _only_change("classification", "class")
    result = run_pipeline("delete_class_zero_shot", {**arguments, "policy": policy}, on_stage=lambda *_: None)
    assert result.verdict == "pass"
    assert set(result.seconds) == {*STAGES, "total"}
    assert Registry(tracker()).version(served, "champion").version == 2
    assert not list(store().keys("checkpoints"))


def test_values_are_forgotten_on_a_server_and_s3(served: str, tmp_path: Path) -> None:
    recipe = {"epochs": 5, "learning_rate": 0.005, "batch_size": 64, "loss": "l1"}
    train_model(name=served, manifest="diabetes", architecture="mlp", arguments={"hidden": [8]}, recipe=recipe, seed=0)
    arguments = {"model": f"models:/{served}@champion", "manifest": "diabetes", "forget": [":80", "300:"]}
    settings = {"epochs": 1, "blind_epochs": 1}
    policy = _only_change("regression", "target")
    how = {"register_as": served, "settings": settings, "policy": policy, "reference": "train", "audit": "attacks"}
    result = run_pipeline("delete_regression", {**arguments, **how}, on_stage=lambda *_: None)
    assert result.verdict == "pass"
    assert set(result.seconds) == {*STAGES - {"synthesize", "impair", "repair"}, "total"}
    assert Registry(tracker()).version(served, "champion").version == 2
    card = fetch_model(f"models:/{served}@champion", Path(result.report).parent / "fetched").card
    (gone,) = card.forgotten_rows.values()
    data = make_manifest("diabetes")
    targets, rows = data.targets(), data.rows("train")
    wanted = rows[(targets[rows] < 80) | (targets[rows] >= 300)]
    assert gone == as_ranges(wanted)
    retained = np.setdiff1d(rows, wanted)
    (folder,) = (tmp_path / "home").glob("runs/*/retrain/retrained")
    assert read_bundle(folder).card.scaling == fit_scaling(data, retained) != card.scaling == data.card.scaling
    page = Path(result.report).read_text()
    assert "in the range to forget" in page
    assert "What is left underneath" in page
    assert "no prototypes, no inversion, no RMIA and no shadow models" in page


def test_methods_are_compared_on_a_server_and_s3_and_nothing_is_registered(served: str, tiny: Any) -> None:
    promote_bundle(tracker(), store(), tiny.bundle, name=served, run_id="", outcome="pass")
    result = run_pipeline(
        "compare_methods",
        {
            "model": f"models:/{served}@champion",
            "manifest": tiny.source,
            "forget": ["two"],
            "methods": ["unsir", "fine_tune", "amnesiac"],
            "settings": {"unsir": DEFAULTS["settings"]},
            "seeds": 2,
        },
        on_stage=lambda *_: None,
    )
    assert (result.verdict, result.model_uri) == ("", "")
    assert set(result.seconds) == {"load_model", "select", "retrain", "compare", "total"}
    for name in ("original", "retrained", "unsir", "fine_tune", "amnesiac"):
        assert f"{name}.forgetting_gap" in result.metrics
    assert result.metrics["retrained.forgetting_gap"] == 0
    logged = tracker().client.get_run(result.mlflow_run_id)
    assert logged.info.status == "FINISHED"
    page, text = (Path(path).read_text() for path in (result.report, result.summary))
    for name in ("retrained", "unsir", "fine_tune", "amnesiac"):
        assert name in page
        assert name.replace("_", "\\_") in text
    assert Registry(tracker()).version(served, "champion").version == 1


def test_a_run_that_is_told_to_stop_ends_its_stages_and_its_mlflow_run(at_home: Path, tiny: Any) -> None:
    before = {run.info.run_id for run in _parents(set())}
    settings = json.dumps({**DEFAULTS["settings"], "impair_epochs": 100_000})
    sets = [*tiny.sets, "--set", f"settings={settings}", "--set", "register_as=stopped"]
    with subprocess.Popen(
        [UNLEARN, "run", "delete_class", *sets],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(UNLEARN_HOME=str(at_home), PYTHONUNBUFFERED="1"),
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if "synthesize" in line:
                break
        child.terminate()
        _, err = child.communicate(timeout=120)
    assert child.returncode == 128 + signal.SIGTERM, err
    assert "Traceback" not in err
    (stopped,) = _parents(before)
    assert stopped.info.status in ("KILLED", "FAILED")
    until = time.monotonic() + 30
    while processes(at_home) and time.monotonic() < until:
        time.sleep(0.1)
    assert processes(at_home) == {}


@dsl.component(base_image="test-python", install_kfp_package=False)
def say(word: str = "hello") -> str:
    return word


@dsl.pipeline(name="say-it")
def say_it(word: str = "hello") -> str:
    return say(word=word).output  # type: ignore[no-any-return]


def test_stages_run_where_the_path_of_python_has_a_space(tmp_path: Path) -> None:
    place = tmp_path / "my own folder"
    place.mkdir()
    (place / "env").symlink_to(sys.prefix)
    compiler.Compiler().compile(say_it, str(place / "say.yaml"))
    asked = {
        "pipeline": str(place / "say.yaml"),
        "arguments": {"word": "it's here"},
        "results": str(place / "results.json"),
        "environment": environment(),
    }
    ended = subprocess.run(
        [str(place / "env" / "bin" / "python"), "-m", "unlearning_pipelines.local"],
        input=json.dumps(asked) + "\n",
        capture_output=True,
        text=True,
        timeout=300,
        env=environment(),
        cwd=place,
    )
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    assert json.loads((place / "results.json").read_text()) == {"Output": "it's here"}
