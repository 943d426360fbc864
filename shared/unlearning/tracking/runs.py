"""One MLflow run per pipeline run, one nested run per attempt of a stage."""

import fcntl
import json
import math
import os
import re
import shlex
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import unquote, urlsplit

from unlearning.errors import TrackingError, UnlearningError

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")

RUN_KEY = "unlearning.run_key"
KIND = "unlearning.kind"
SEEN = "unlearning.seen"
STAGE = "unlearning.stage"
JOB = "unlearning.job"
"""Tag with the key of the pipeline run that was last at work in a run, where that was opened under another key."""
VERDICT = "unlearning.verdict"
_PARENT = "mlflow.parentRunId"
_LAYOUT = "mlflow.experimentKind"
"""Says which pages MLflow's UI shows for an experiment: those of models that are trained, not of prompts."""
_VALUE_CHARACTERS = 6000
_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
_SILENT = {
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class Tracker:
    """MLflow at one address, in one experiment; holds no open run and uses none of MLflow's global state.

    Args:
        tracking_uri: "http://host:port", "sqlite:///path/mlflow.db" or another SQL address that MLflow knows.
        experiment: Its name; made by `prepare`.
        artifacts_uri: Where an experiment of an embedded database keeps its files; a server decides for itself.
        timeout: Seconds that one request to a server may take.
    """

    def __init__(self, tracking_uri: str, experiment: str, artifacts_uri: str = "", timeout: int = 10) -> None:
        scheme = urlsplit(tracking_uri).scheme.partition("+")[0]
        if scheme != "sqlite" and scheme not in _PORTS:
            raise TrackingError(
                f'"{shown(tracking_uri)}" is no MLflow address: set MLFLOW_TRACKING_URI to http(s)://host:port or '
                "sqlite:///path/mlflow.db"
            )
        self.tracking_uri = tracking_uri
        self.experiment = experiment
        self.is_server = scheme in ("http", "https")
        self._artifacts_uri = artifacts_uri
        self._timeout = timeout
        self._experiment_id = ""
        self._client: MlflowClient | None = None
        for name, value in {**_SILENT, "MLFLOW_HTTP_REQUEST_TIMEOUT": str(timeout)}.items():
            os.environ.setdefault(name, value)

    def check(self) -> None:
        """Returns within 15 seconds when MLflow can be reached; writes nothing.

        Raises:
            TrackingError: Naming the address, and what to do.
        """
        if self.tracking_uri.startswith("sqlite:"):
            self._check_file()
            return
        parts = urlsplit(self.tracking_uri)
        port = parts.port or _PORTS[parts.scheme.partition("+")[0]]
        try:
            socket.create_connection((parts.hostname or "localhost", port), timeout=4).close()
        except OSError as error:
            raise self._unreachable(error.strerror or type(error).__name__) from error
        if self.is_server:
            self._check_server()

    def prepare(self) -> None:
        """Makes the experiment, and the schema of a fresh SQLite file; any number of processes may do so at once.

        Raises:
            TrackingError: Within 15 seconds when MLflow cannot be reached.
        """
        self.check()
        with self._lock(), self.asking("open"):
            self._experiment_id = self._found_experiment() or self._made_experiment()

    def open_run(self, name: str, key: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> str:
        """The id of the pipeline's run, RUNNING; the same `key` gives the same run, so a retry continues it.

        What an earlier, killed attempt left open in it is closed as FAILED. Where a scheduler has opened a run for this
        task (MLFLOW_RUN_ID), the pipeline's run is that one's parent: none is made, and the scheduler ends it.

        Args:
            name: Shown in the list of runs.
            key: Names the pipeline run for ever, such as its id in the cluster; without quotes.
            params: Written once; a retry may add some but not change any.
            tags: Shown beside the run.

        Raises:
            TrackingError: Also when a parameter differs from the one that the run already has.
        """
        if scheduled := os.environ.get("MLFLOW_RUN_ID", ""):
            return self._joined(scheduled, params, tags)
        if not key or re.search(r"[\"'`\\]", key):
            raise TrackingError(f"the key of a run was {key!r}: give it one without quotes")
        found = self._search(f"tags.`{RUN_KEY}` = '{key}'", limit=1)
        ours = {**tags, RUN_KEY: key, KIND: "pipeline", SEEN: str(_now())}
        if not found:
            with self.asking("create a run"):
                run_id: str = self.client.create_run(self.experiment_id, tags=ours, run_name=name).info.run_id
            self._params(run_id, params)
            return run_id
        run_id = found[0].info.run_id
        self._params(run_id, params)
        self._end_children(run_id)
        with self.asking("reopen a run"):
            self.client.update_run(run_id, status="RUNNING")
        self._tags(run_id, ours)
        return run_id

    def _joined(self, scheduled: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> str:
        with self.asking("find the run that the scheduler opened"):
            found = self.client.get_run(scheduled)
        run_id: str = found.data.tags.get(_PARENT, scheduled)
        self._params(run_id, params)
        self._tags(run_id, {**tags, KIND: "pipeline"})
        return run_id

    @contextmanager
    def stage(
        self, parent_run_id: str, name: str, tags: Mapping[str, str] | None = None, *, began: float | None = None
    ) -> "Iterator[StageRun]":
        """A nested run that ends FINISHED, or, with its parent, FAILED when the body raises.

        Where a scheduler has opened a run for this task (MLFLOW_RUN_ID), that run is written to and left open.
        SIGTERM ends the body with `SystemExit(143)`.

        Args:
            parent_run_id: From `open_run`.
            name: The stage; `seconds.<name>` of the parent says how long it took.
            tags: Shown beside the nested run.
            began: When the stage's work began, by `time.monotonic`, if that was before now.
        """
        injected = os.environ.get("MLFLOW_RUN_ID", "")
        if injected:
            run = StageRun(self, injected, parent_run_id)
            run.tags({**(tags or {}), STAGE: name})
        else:
            labels = {**(tags or {}), _PARENT: parent_run_id, KIND: "stage", STAGE: name}
            with self.asking("create a run"):
                made = self.client.create_run(self.experiment_id, tags=labels, run_name=name)
            run = StageRun(self, made.info.run_id, parent_run_id)
        self._tags(parent_run_id, {SEEN: str(_now())})
        start = time.monotonic() if began is None else began
        try:
            with _terminable():
                yield run
        except BaseException as error:
            try:
                self._finish(run, name, start, "FAILED", injected)
            except TrackingError as second:
                error.add_note(f"and its end could not be recorded: {second}")
            raise
        self._finish(run, name, start, "FINISHED", injected)

    def summary_of(self, run_id: str) -> dict[str, float]:
        """The latest value of every metric of a run."""
        with self.asking("read a run"):
            return dict(self.client.get_run(run_id).data.metrics)

    def verdict_of(self, job: str) -> str:
        """What the gate said in a run of the cluster: pass, fail or inconclusive; "" where nothing was said.

        Args:
            job: The id of the run there, which ends the key that the pipeline's run was opened with.

        Raises:
            TrackingError: When MLflow does not answer.
        """
        if not re.fullmatch(r"[A-Za-z0-9-]+", job):
            raise TrackingError(f"a run's id in the cluster was {job[:80]!r}: wanted letters, digits and hyphens")
        found = next(
            (one for tag in (RUN_KEY, JOB) for one in self._search(f"tags.`{tag}` LIKE '%/{job}'", limit=1)), None
        )
        return str(found.data.tags.get(VERDICT, "")) if found else ""

    def tags_of(self, run_id: str) -> dict[str, str]:
        """The tags of a run."""
        with self.asking("read a run"):
            return dict(self.client.get_run(run_id).data.tags)

    def fetch(self, run_id: str, file: str, into: Path) -> Path:
        """A copy of one of a run's artifacts.

        Args:
            run_id: Which run.
            file: Its name there, such as "report.html".
            into: A folder; made when missing.
        """
        into.mkdir(parents=True, exist_ok=True)
        with self.asking(f"hand out {file}"):
            return Path(self.client.download_artifacts(run_id, file, str(into)))

    def close(self, run_id: str, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """Ends a pipeline's run, and what killed stages left open in it; a scheduler ends its own."""
        if os.environ.get("MLFLOW_RUN_ID"):
            return
        self._end_children(run_id)
        self._end(run_id, status)

    def sweep(self, older_than_hours: float) -> int:
        """The number of runs marked FAILED: those of ours left RUNNING by something that was killed long ago.

        Args:
            older_than_hours: Without a start of the run or of one of its stages.
        """
        limit = _now() - int(older_than_hours * 3_600_000)
        found = [
            run
            for run in self._search("attributes.status = 'RUNNING'")
            if KIND in run.data.tags and max(run.info.start_time, int(run.data.tags.get(SEEN, 0))) < limit
        ]
        for run in found:
            self._end(run.info.run_id, "FAILED")
        return len(found)

    def ui_command(self) -> str:
        """What shows the runs: a command for a database, or the server's address."""
        if self.is_server:
            return shown(self.tracking_uri)
        return f"mlflow ui --backend-store-uri {shlex.quote(shown(self.tracking_uri))}"

    @property
    def client(self) -> "MlflowClient":
        """MLflow's own client for this address; made, and MLflow imported, at first use."""
        if self._client is None:
            from mlflow import MlflowClient

            self._client = MlflowClient(tracking_uri=self.tracking_uri, registry_uri=self.tracking_uri)
        return self._client

    @property
    def experiment_id(self) -> str:
        """The experiment's id; the experiment is made when it is not there yet."""
        if not self._experiment_id:
            self.prepare()
        return self._experiment_id

    @contextmanager
    def asking(self, wanted: str) -> Iterator[None]:
        """Turns whatever MLflow and the libraries beneath it raise into one line that names the address."""
        try:
            yield
        except UnlearningError:
            raise
        except Exception as error:
            reason = shown(" ".join(str(error).split()))[:400] or type(error).__name__
            raise TrackingError(
                f"MLflow at {shown(self.tracking_uri)} could not {wanted}: {reason}: check MLFLOW_TRACKING_URI"
            ) from error

    def _unreachable(self, reason: str) -> TrackingError:
        return TrackingError(
            f"MLflow at {shown(self.tracking_uri)} cannot be reached ({reason}): start it, or set MLFLOW_TRACKING_URI"
        )

    def _check_file(self) -> None:
        path = _sqlite_path(self.tracking_uri)
        if path is None:
            return
        if path.is_file():
            with path.open("rb") as file:
                head = file.read(16)
            if head not in (b"", b"SQLite format 3\0"):
                raise TrackingError(f"{path} is no SQLite file: move it away, or set MLFLOW_TRACKING_URI")
        nearest = next(folder for folder in path.absolute().parents if folder.exists())
        usable = nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)
        if not usable or (path.exists() and not (path.is_file() and os.access(path, os.R_OK | os.W_OK))):
            raise TrackingError(f"{path} cannot be written: mend its permissions, or set MLFLOW_TRACKING_URI")

    def _check_server(self) -> None:
        from mlflow.utils import credentials, rest_utils

        request: Any = rest_utils.http_request
        access: Any = credentials.get_default_host_creds
        where = "/api/2.0/mlflow/experiments/search"
        try:
            answer = request(
                access(self.tracking_uri), where, "GET", max_retries=0, timeout=4, params={"max_results": 1}
            )
        except Exception as error:
            raise self._unreachable(type(error.__cause__ or error).__name__) from error
        if answer.status_code in (401, 403):
            raise TrackingError(
                f"MLflow at {shown(self.tracking_uri)} refuses access ({answer.status_code}): set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or add the host to the server's --allowed-hosts"
            )
        if answer.status_code != 200:
            raise TrackingError(
                f"what answers at {shown(self.tracking_uri)} is no MLflow server (status {answer.status_code}): "
                "set MLFLOW_TRACKING_URI"
            )

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Lets one process at a time lay out a SQLite file; MLflow's own migrations race on a fresh one."""
        path = _sqlite_path(self.tracking_uri)
        with nullcontext() if path is None else self._locked(path):
            yield

    @contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        with self.asking("lock its database"):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.with_name(f"{path.name}.lock").open("a")
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _found_experiment(self) -> str:
        found = self.client.get_experiment_by_name(self.experiment)
        if found is None:
            return ""
        if found.lifecycle_stage != "active":
            raise TrackingError(
                f'the experiment "{self.experiment}" was deleted: restore it with `mlflow experiments restore '
                f"--experiment-id {found.experiment_id}`, or set UNLEARN_EXPERIMENT"
            )
        return str(found.experiment_id)

    def _made_experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        location = None if self.is_server else self._artifacts_uri or None
        try:
            return str(
                self.client.create_experiment(
                    self.experiment, artifact_location=location, tags={_LAYOUT: "custom_model_development"}
                )
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return self._found_experiment()

    def _search(self, filter_string: str, limit: int = 0) -> list[Any]:
        """The runs of the experiment that match, oldest first; all pages when `limit` is 0."""
        experiment_id = self.experiment_id
        with self.asking("search its runs"):
            found: list[Any] = []
            token: str | None = None
            while True:
                page = self.client.search_runs(
                    [experiment_id],
                    filter_string,
                    max_results=limit or 1000,
                    order_by=["attributes.start_time ASC"],
                    page_token=token,
                )
                found += page
                token = page.token
                if limit or not token:
                    return found

    def _end(self, run_id: str, status: str) -> None:
        with self.asking("end a run"):
            self.client.set_terminated(run_id, status)

    def _end_children(self, run_id: str) -> None:
        for child in self._search(f"tags.`{_PARENT}` = '{run_id}' and attributes.status = 'RUNNING'"):
            self._end(child.info.run_id, "FAILED")

    def _finish(self, run: "StageRun", name: str, start: float, status: str, injected: str) -> None:
        seconds = time.monotonic() - start
        try:
            run.metrics({"seconds": seconds})
            run.summary({f"seconds.{name}": seconds})
        finally:
            if not injected:
                self._end(run.run_id, status)
            if status == "FAILED" and run.parent_run_id != injected:
                self._end(run.parent_run_id, status)

    def _tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        with self.asking("write tags"):
            for part in _parts([RunTag(key, str(value)) for key, value in tags.items()], 100):
                self.client.log_batch(run_id, tags=part)

    def _params(self, run_id: str, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        with self.asking("read a run"):
            there = self.client.get_run(run_id).data.params if params else {}
        wanted = {key: _text(value) for key, value in params.items()}
        for key, value in wanted.items():
            if there.get(key, value) != value:
                raise TrackingError(
                    f'run {run_id} already has the parameter {key}="{there[key][:80]}", now "{value[:80]}" came: '
                    "start a new run for other parameters"
                )
        with self.asking("write parameters"):
            for part in _parts([Param(key, value) for key, value in wanted.items() if key not in there], 100):
                self.client.log_batch(run_id, params=part)

    def _metrics(self, run_id: str, values: Sequence[tuple[str, float, int]]) -> None:
        from mlflow.entities import Metric

        for key, value, step in values:
            if not math.isfinite(value):
                raise TrackingError(
                    f'the metric "{key}" is {value} at step {step}: only finite values are recorded; look for its cause'
                )
        now = _now()
        with self.asking("write metrics"):
            for part in _parts([Metric(key, value, now, step) for key, value, step in values], 1000):
                self.client.log_batch(run_id, metrics=part)


class StageRun:
    """The MLflow run of one attempt of one stage; made by `Tracker.stage`."""

    def __init__(self, tracker: Tracker, run_id: str, parent_run_id: str) -> None:
        self.run_id = run_id
        self.parent_run_id = parent_run_id
        self._tracker = tracker

    @property
    def pipeline(self) -> "StageRun":
        """The pipeline's run, to be written to in the same ways: what a reader wants without opening a stage."""
        return StageRun(self._tracker, self.parent_run_id, self.parent_run_id)

    def params(self, values: Mapping[str, Any]) -> None:
        """Writes parameters, which never change afterwards."""
        self._tracker._params(self.run_id, values)

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Writes metrics in one request.

        Raises:
            TrackingError: Naming the first value that is not finite; then nothing is written.
        """
        self._tracker._metrics(self.run_id, [(key, float(value), step) for key, value in values.items()])

    def history(self, values: Mapping[str, Sequence[float]]) -> None:
        """Writes whole curves: value number i of each becomes step i.

        Raises:
            TrackingError: Naming the first value that is not finite; then nothing is written.
        """
        rows = [(key, float(value), step) for key, curve in values.items() for step, value in enumerate(curve)]
        self._tracker._metrics(self.run_id, rows)

    def summary(self, values: Mapping[str, float]) -> None:
        """Writes metrics to the pipeline's run, where the comparison of runs looks."""
        self.pipeline.metrics(values)

    def tags(self, values: Mapping[str, str]) -> None:
        """Writes tags, over older ones of the same name."""
        self._tracker._tags(self.run_id, values)

    def figure(self, name: str, content: bytes) -> None:
        """Keeps a picture under its name.

        Args:
            name: Such as "figures/loss.svg".
            content: The encoded picture, SVG or PNG.
        """
        target = PurePosixPath(name)
        if target.is_absolute() or ".." in target.parts or not target.name:
            raise TrackingError(f'the name of a figure was {name!r}: use a relative one such as "figures/loss.svg"')
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / target.name
            path.write_bytes(content)
            self.artifact(path, "" if target.parent == PurePosixPath() else target.parent.as_posix())

    def artifact(self, path: Path, folder: str = "") -> None:
        """Keeps a file, or the files of a local folder, under `folder` among the run's artifacts."""
        log = self._tracker.client.log_artifacts if path.is_dir() else self._tracker.client.log_artifact
        with self._tracker.asking(f"keep {path.name}"):
            log(self.run_id, str(path), folder or None)

    def text(self, content: str, file: str) -> None:
        """Keeps a text under a file name such as "report/verdict.md"."""
        with self._tracker.asking(f"keep {file}"):
            self._tracker.client.log_text(self.run_id, content, file)

    def dataset(self, name: str, digest: str, context: str, *, rows: int, source: str) -> None:
        """Records which data the stage used.

        Args:
            name: Of the data set.
            digest: Names its content; MLflow keeps 36 characters of it here, and all of it in the profile.
            context: What for: "forget", "retain", "holdout".
            rows: How many samples.
            source: Where it comes from.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        kind = source.partition(":")[0] if ":" in source else "local"
        dataset = Dataset(
            name[:500],
            digest[:36],
            kind[:36],
            json.dumps({"uri": source}),
            profile=json.dumps({"num_rows": rows, "digest": digest}),
        )
        with self._tracker.asking("record a data set"):
            entry = DatasetInput(dataset, [InputTag("mlflow.data.context", context)])
            self._tracker.client.log_inputs(self.run_id, [entry])


def shown(text: str) -> str:
    """An address, or a text with addresses, without the user names and passwords in them."""
    return re.sub(r"//[^/@\s\"']*@", "//", text)


def _now() -> int:
    return time.time_ns() // 1_000_000


def _text(value: Any) -> str:
    text = json.dumps(value, default=str) if isinstance(value, (dict, list, tuple)) else str(value)
    return text if len(text) <= _VALUE_CHARACTERS else f"{text[: _VALUE_CHARACTERS - 1]}…"


def _parts(items: Sequence[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while part := list(islice(iterator, size)):
        yield part


def _sqlite_path(uri: str) -> Path | None:
    """The file of a SQLite address; None for other addresses and for memory."""
    found = re.fullmatch(r"sqlite(?:\+\w+)?:///([^?]+)(?:\?.*)?", uri)
    return None if found is None or found[1] == ":memory:" else Path(unquote(found[1]))


@contextmanager
def _terminable() -> Iterator[None]:
    """Makes SIGTERM raise `SystemExit(143)` in the main thread, so that a stopped pod closes its runs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
