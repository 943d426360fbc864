import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from unlearning.errors import TrackingError
from unlearning.tracking import Tracker
from unlearning.tracking.runs import JOB, VERDICT

RED = b'<svg xmlns="http://www.w3.org/2000/svg"/>'


def state(tracker: Tracker, run_id: str) -> str:
    return str(tracker.client.get_run(run_id).info.status)


def children(tracker: Tracker, run_id: str) -> list[Any]:
    return list(tracker.client.search_runs([tracker.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'"))


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_a_stage_that_ends_well_is_a_finished_nested_run(tracker: Tracker, tmp_path: Path) -> None:
    parent = tracker.open_run("delete_class", "run-1", {"method": "unsir", "classes": ["0", "3"]}, {"team": "privacy"})
    layout = tracker.client.get_experiment(tracker.experiment_id).tags["mlflow.experimentKind"]
    assert layout == "custom_model_development", "the UI shows pages of runs, not of prompts"
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("a")
    with tracker.stage(parent, "impair", {"attempt": "1"}) as run:
        assert state(tracker, run.run_id) == "RUNNING"
        run.params({"lr": 0.01})
        run.metrics({"loss": 0.5, "accuracy": 1}, step=3)
        run.history({"train_loss": [3.0, 2.0, 1.0]})
        run.summary({"forget_accuracy": 0.25})
        run.tags({"verdict": "pass"})
        run.figure("figures/loss.svg", RED)
        run.text("all well", "report/verdict.md")
        run.artifact(tmp_path / "notes", "folder")
        run.artifact(tmp_path / "notes" / "a.txt")
        run.dataset("digits", "d" * 64, "forget", rows=178, source="s3://bucket/manifest.parquet")
    assert state(tracker, run.run_id) == "FINISHED"
    assert state(tracker, parent) == "RUNNING", "the pipeline goes on"
    found = tracker.client.get_run(run.run_id)
    assert found.data.params == {"lr": "0.01"}
    assert found.data.tags["mlflow.parentRunId"] == parent
    assert {"verdict", "attempt", "unlearning.stage"} <= set(found.data.tags)
    history = tracker.client.get_metric_history(run.run_id, "train_loss")
    assert sorted((point.step, point.value) for point in history) == [(0, 3.0), (1, 2.0), (2, 1.0)]
    assert [point.step for point in tracker.client.get_metric_history(run.run_id, "loss")] == [3]
    used = found.inputs.dataset_inputs[0]
    assert (used.dataset.name, used.dataset.digest, used.tags[0].value) == ("digits", "d" * 36, "forget")
    assert json.loads(used.dataset.profile) == {"num_rows": 178, "digest": "d" * 64}
    kept = {item.path for folder in ("", "figures", "report", "folder") for item in listed(tracker, run.run_id, folder)}
    assert {"figures/loss.svg", "report/verdict.md", "folder/a.txt", "a.txt"} <= kept
    local = tracker.client.download_artifacts(run.run_id, "figures/loss.svg", str(tmp_path))
    assert Path(local).read_bytes() == RED
    above = tracker.client.get_run(parent)
    assert above.data.params == {"method": "unsir", "classes": '["0", "3"]'}
    assert above.data.tags["team"] == "privacy"
    summary = tracker.summary_of(parent)
    assert set(summary) == {"forget_accuracy", "seconds.impair"}
    assert summary["forget_accuracy"] == 0.25
    assert summary["seconds.impair"] == tracker.summary_of(run.run_id)["seconds"] > 0
    tracker.close(parent, "FINISHED")
    assert state(tracker, parent) == "FINISHED"


def listed(tracker: Tracker, run_id: str, folder: str) -> list[Any]:
    return list(tracker.client.list_artifacts(run_id, folder or None))


@pytest.mark.parametrize("raised", [ValueError("no"), SystemExit(3), KeyboardInterrupt()])
def test_a_stage_that_raises_fails_with_its_parent(embedded: Tracker, raised: BaseException) -> None:
    parent = embedded.open_run("p", "run-1", {}, {})
    with pytest.raises(type(raised)) as caught, embedded.stage(parent, "repair") as run:
        raise raised
    assert caught.value is raised
    assert state(embedded, run.run_id) == "FAILED"
    assert state(embedded, parent) == "FAILED"
    assert "seconds.repair" in embedded.summary_of(parent)


def test_a_server_records_a_failure_too(served: Tracker) -> None:
    parent = served.open_run("p", "run-1", {}, {})
    with pytest.raises(ValueError, match="no"), served.stage(parent, "repair") as run:
        raise ValueError("no")
    assert (state(served, run.run_id), state(served, parent)) == ("FAILED", "FAILED")


def test_a_failure_keeps_its_own_error_when_the_end_cannot_be_recorded(
    embedded: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = embedded.open_run("p", "run-1", {}, {})

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("gone")

    def fail_without_server() -> None:
        with embedded.stage(parent, "repair"):
            monkeypatch.setattr(embedded.client, "log_batch", refuse)
            monkeypatch.setattr(embedded.client, "set_terminated", refuse)
            raise ValueError("the cause")

    with pytest.raises(ValueError, match="the cause") as caught:
        fail_without_server()
    assert "could not be recorded" in caught.value.__notes__[0]


SLOW_STAGE = """
import sys, time
from unlearning.tracking import Tracker
tracker = Tracker(sys.argv[1], sys.argv[2])
parent = tracker.open_run("p", "run-1", {"a": 1}, {})
with tracker.stage(parent, "impair") as run:
    print(parent, run.run_id, flush=True)
    time.sleep(60)
"""


def stopped_stage(tracker: Tracker, by: signal.Signals) -> tuple[int, str, str]:
    """Exit status, pipeline run and stage run of a process that was stopped inside a stage."""
    command = [sys.executable, "-c", SLOW_STAGE, tracker.tracking_uri, tracker.experiment]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        parent, child = process.stdout.readline().split()
        process.send_signal(by)
        return process.wait(30), parent, child


def test_sigterm_closes_the_runs_of_a_stage(embedded: Tracker) -> None:
    embedded.prepare()
    status, parent, child = stopped_stage(embedded, signal.SIGTERM)
    assert status == 143
    assert (state(embedded, parent), state(embedded, child)) == ("FAILED", "FAILED")


def test_what_a_killed_stage_left_open_is_repaired_by_the_retry(embedded: Tracker) -> None:
    embedded.prepare()
    status, parent, child = stopped_stage(embedded, signal.SIGKILL)
    assert status == -signal.SIGKILL
    assert state(embedded, child) == "RUNNING"
    assert embedded.open_run("p", "run-1", {"a": 1}, {}) == parent
    assert (state(embedded, parent), state(embedded, child)) == ("RUNNING", "FAILED")
    with embedded.stage(parent, "impair"):
        pass
    assert sorted(run.info.status for run in children(embedded, parent)) == ["FAILED", "FINISHED"], "one per attempt"


def test_the_signal_handler_is_back_after_the_stage_and_untouched_in_threads(embedded: Tracker) -> None:
    parent = embedded.open_run("p", "run-1", {}, {})
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def inside() -> None:
        with embedded.stage(parent, "a"):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    with embedded.stage(parent, "b"):
        seen.append(signal.getsignal(signal.SIGTERM))
    assert seen[0] is before
    assert seen[1] is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_that_the_scheduler_injected_is_used_and_left_open(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = tracker.open_run("p", "run-1", {}, {})
    given = tracker.client.create_run(tracker.experiment_id).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    with tracker.stage(parent, "evaluate") as run:
        run.metrics({"loss": 1.0})
    assert run.run_id == given
    assert state(tracker, given) == "RUNNING"
    assert children(tracker, parent) == []
    assert tracker.summary_of(given)["loss"] == 1.0
    assert "seconds.evaluate" in tracker.summary_of(parent)
    with pytest.raises(ValueError, match="no"), tracker.stage(parent, "attack"):
        raise ValueError("no")
    assert state(tracker, given) == "RUNNING", "its owner ends it"
    assert state(tracker, parent) == "FAILED"


def test_an_empty_injected_run_means_none(embedded: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "")
    parent = embedded.open_run("p", "run-1", {}, {})
    with embedded.stage(parent, "evaluate"):
        pass
    assert len(children(embedded, parent)) == 1


def test_the_same_key_is_the_same_run_and_another_key_another(tracker: Tracker) -> None:
    first = tracker.open_run("p", "run-1", {"a": 1, "long": "x" * 7000}, {})
    tracker.close(first, "FAILED")
    again = tracker.open_run("p", "run-1", {"a": 1, "long": "x" * 7000, "b": 2}, {"retry": "1"})
    assert again == first
    assert state(tracker, first) == "RUNNING"
    found = tracker.client.get_run(first).data
    assert (found.params["a"], found.params["b"], found.tags["retry"]) == ("1", "2", "1")
    assert len(found.params["long"]) == 6000
    assert found.params["long"].endswith("x…")
    with pytest.raises(TrackingError, match=r'already has the parameter a="1", now "2" came'):
        tracker.open_run("p", "run-1", {"a": 2}, {})
    assert tracker.open_run("p", "run-2", {"a": 2}, {}) != first
    with pytest.raises(TrackingError, match="without quotes"):
        tracker.open_run("p", "run' or 1=1", {}, {})


def test_many_params_and_metrics_go_in_lawful_batches(embedded: Tracker) -> None:
    parent = embedded.open_run("p", "run-1", {f"p{number}": number for number in range(205)}, {})
    assert len(embedded.client.get_run(parent).data.params) == 205
    with embedded.stage(parent, "repair") as run:
        run.history({"loss": [float(number) for number in range(2300)]})
    history = embedded.client.get_metric_history(run.run_id, "loss")
    assert [point.value for point in sorted(history, key=lambda point: point.step)] == list(range(2300))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_metric_that_is_not_finite_is_refused_by_name(embedded: Tracker, bad: float) -> None:
    parent = embedded.open_run("p", "run-1", {}, {})
    with embedded.stage(parent, "evaluate") as run:
        with pytest.raises(TrackingError, match=r'metric "retain_loss" is (nan|inf|-inf)'):
            run.metrics({"fine": 1.0, "retain_loss": bad})
        with pytest.raises(TrackingError, match=r'metric "curve" is .* at step 1'):
            run.history({"curve": [1.0, bad]})
        with pytest.raises(TrackingError, match=r'metric "s"'):
            run.summary({"s": bad})
        assert embedded.summary_of(run.run_id) == {}


@pytest.mark.parametrize("name", ["/x.svg", "../x.svg", "", "a/../../x.svg"])
def test_a_figure_stays_among_the_artifacts(embedded: Tracker, name: str) -> None:
    parent = embedded.open_run("p", "run-1", {}, {})
    with embedded.stage(parent, "evaluate") as run, pytest.raises(TrackingError, match="name of a figure"):
        run.figure(name, RED)


def test_sweep_closes_only_our_own_stale_runs(embedded: Tracker) -> None:
    stale = embedded.open_run("p", "stale", {}, {})
    foreign = embedded.client.create_run(embedded.experiment_id, start_time=0).info.run_id
    old = int(time.time() * 1000) - 7_200_000
    orphan = embedded.client.create_run(embedded.experiment_id, start_time=old, tags={"unlearning.kind": "stage"})
    embedded.client.set_tag(stale, "unlearning.seen", str(old))
    assert embedded.sweep(1.0) == 1, "the orphan: the other run started just now"
    assert state(embedded, orphan.info.run_id) == "FAILED"
    assert state(embedded, stale) == "RUNNING"
    time.sleep(0.01)
    assert embedded.sweep(0.0) == 1
    assert state(embedded, stale) == "FAILED"
    assert state(embedded, foreign) == "RUNNING"


def test_a_retried_run_is_not_stale_though_it_began_long_ago(embedded: Tracker) -> None:
    old = int(time.time() * 1000) - 7_200_000
    tags = {"unlearning.kind": "pipeline", "unlearning.run_key": "run-1"}
    begun = embedded.client.create_run(embedded.experiment_id, start_time=old, tags=tags).info.run_id
    assert embedded.open_run("p", "run-1", {}, {}) == begun
    assert embedded.sweep(1.0) == 0


def test_a_closed_pipeline_leaves_no_stage_running(embedded: Tracker) -> None:
    parent = embedded.open_run("p", "run-1", {}, {})
    tags = {"mlflow.parentRunId": parent, "unlearning.kind": "stage"}
    child = embedded.client.create_run(embedded.experiment_id, tags=tags).info.run_id
    embedded.close(parent, "KILLED")
    assert (state(embedded, parent), state(embedded, child)) == ("KILLED", "FAILED")


def test_an_unknown_run_is_one_line(tracker: Tracker) -> None:
    with pytest.raises(TrackingError, match=r"MLflow at .* could not read a run") as caught:
        tracker.summary_of("0" * 32)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("call", ["check", "prepare"])
@pytest.mark.parametrize("kind", ["closed", "silent"])
def test_a_dead_server_is_reported_within_fifteen_seconds(request: pytest.FixtureRequest, call: str, kind: str) -> None:
    port = request.getfixturevalue(f"{kind}_port")
    tracker = Tracker(f"http://someone:hidden-word@127.0.0.1:{port}", "tests")
    start = time.monotonic()
    with pytest.raises(
        TrackingError, match=rf"http://127\.0\.0\.1:{port} cannot be reached.*MLFLOW_TRACKING_URI"
    ) as caught:
        getattr(tracker, call)()
    assert time.monotonic() - start < 15
    assert "hidden-word" not in str(caught.value)


def test_a_server_that_is_not_mlflow_is_told_apart() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        with pytest.raises(TrackingError, match="no MLflow server"):
            Tracker(f"http://127.0.0.1:{other.server_port}", "tests").check()
        other.shutdown()


def test_check_writes_nothing(tmp_path: Path, served: Tracker) -> None:
    Tracker(f"sqlite:///{tmp_path}/deep/mlflow.db", "tests").check()
    assert list(tmp_path.iterdir()) == []
    served.check()
    assert served.client.get_experiment_by_name(served.experiment) is None


def test_a_file_that_is_no_database_is_reported(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is a plain text")
    with pytest.raises(TrackingError, match="no SQLite file"):
        Tracker(f"sqlite:///{tmp_path}/mlflow.db", "tests").prepare()
    with pytest.raises(TrackingError, match="cannot be written"):
        Tracker(f"sqlite:///{tmp_path}/mlflow.db/x.db", "tests").check()


@pytest.mark.parametrize("uri", ["", "./mlruns", "file:///x", "ftp://user:word@host/x"])
def test_other_addresses_are_refused(uri: str) -> None:
    with pytest.raises(TrackingError, match="set MLFLOW_TRACKING_URI") as caught:
        Tracker(uri, "tests")
    assert "word" not in str(caught.value)


def test_a_deleted_experiment_is_named(embedded: Tracker) -> None:
    embedded.prepare()
    embedded.client.delete_experiment(embedded.experiment_id)
    with pytest.raises(TrackingError, match="was deleted: restore it"):
        Tracker(embedded.tracking_uri, embedded.experiment).prepare()


PREPARE = """
import sys
from unlearning.tracking import Tracker
tracker = Tracker(sys.argv[1], "shared")
sys.stdin.readline()
tracker.prepare()
print(tracker.experiment_id)
print(tracker.open_run("p", "run-" + sys.argv[2], {}, {}))
"""


@pytest.mark.slow
def test_six_processes_prepare_one_fresh_database_quietly(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PREPARE, uri, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for number in range(6)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=100) for process in processes]
    assert [process.returncode for process in processes] == [0] * 6, said
    assert {errors for _, errors in said} == {""}, "neither MLflow nor its migrations talk"
    lines = [output.split() for output, _ in said]
    assert len({experiment for experiment, _ in lines}) == 1
    assert len({run for _, run in lines}) == 6


def test_the_command_that_shows_the_runs(embedded: Tracker, served: Tracker) -> None:
    assert shlex.split(embedded.ui_command()) == ["mlflow", "ui", "--backend-store-uri", embedded.tracking_uri]
    assert served.ui_command() == served.tracking_uri


def test_pickled_models_stay_closed_and_the_import_is_light() -> None:
    code = (
        "import os, sys; from unlearning.tracking import Tracker; Tracker('sqlite:////x', 'e');"
        "print(os.environ['MLFLOW_ALLOW_PICKLE_DESERIALIZATION'], 'mlflow' in sys.modules, 'torch' in sys.modules)"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    said = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["false", "False", "False"]


def test_a_pipeline_that_the_scheduler_tracks_joins_its_run_and_leaves_its_end_to_it(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker.prepare()
    client, experiment = tracker.client, tracker.experiment_id
    parent = client.create_run(experiment, run_name="scheduled").info.run_id
    task = client.create_run(experiment, tags={"mlflow.parentRunId": parent}, run_name="task").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", task)
    run = tracker.open_run("delete_class", "job/1", {"seed": 0}, {"unlearning.pipeline": "delete_class"})
    tracker.close(run, "FINISHED")
    found = client.get_run(parent)
    assert run == parent
    assert found.data.params["seed"] == "0"
    assert found.data.tags["unlearning.pipeline"] == "delete_class"
    assert found.info.status == "RUNNING"
    assert len(client.search_runs([experiment])) == 2


def test_the_verdict_of_a_job_is_found_by_the_key_of_its_run_or_by_its_tag(embedded: Tracker, tmp_path: Path) -> None:
    own = embedded.open_run("p", "name/job-1", {}, {VERDICT: "pass"})
    shared = embedded.open_run("p", "batch/abc", {}, {VERDICT: "fail", JOB: "name/job-2"})
    assert [embedded.verdict_of(f"job-{number}") for number in (1, 2, 3)] == ["pass", "fail", ""]
    assert embedded.tags_of(shared)[JOB] == "name/job-2"
    with embedded.stage(own, "gate") as record:
        record.pipeline.text("<p>", "report.html")
    assert embedded.fetch(own, "report.html", tmp_path / "new").read_text() == "<p>"
    with pytest.raises(TrackingError, match="could not hand out"):
        embedded.fetch(own, "nothing.html", tmp_path / "new")
