import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.chain import Chain, tiny_bundle, write_npz

from unlearning.models.bundle import Bundle
from unlearning.tracking import Registry, Tracker, promote_bundle
from unlearning_components.surroundings import store, tracker


@dataclass(frozen=True)
class Place:
    """Where the stages of one module's tests work: embedded MLflow and store, with one registered champion."""

    home: Path
    folder: Path
    source: str
    original: Bundle
    tracker: Tracker
    registry: Registry

    def chain(self, name: str, **parameters: object) -> Chain:
        """A run of its own, with its own artifacts."""
        folder = self.folder / name
        folder.mkdir()
        return Chain(folder, manifest=self.source, job=f"test/{name}", **parameters)

    def children(self, run: str) -> dict[str, list[str]]:
        """Stage to the status of each of its attempts."""
        found: dict[str, list[str]] = {}
        for child in self.runs(f"tags.`mlflow.parentRunId` = '{run}'"):
            found.setdefault(child.data.tags["unlearning.stage"], []).append(child.info.status)
        return found

    def runs(self, query: str = "") -> list[object]:
        """The experiment's runs, oldest first."""
        return list(
            self.tracker.client.search_runs([self.tracker.experiment_id], query, order_by=["attributes.start_time ASC"])
        )


@pytest.fixture(autouse=True)
def no_injected_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("stages")
    with pytest.MonkeyPatch.context() as environment:
        for name in ("UNLEARN_STORE", "UNLEARN_EXPERIMENT", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
            environment.delenv(name, raising=False)
        environment.setenv("UNLEARN_HOME", str(folder / "home"))
        source = write_npz(folder / "set.npz")
        original = tiny_bundle(source, folder / "bundle")
        runs = tracker()
        runs.prepare()
        promote_bundle(runs, store(), original, name="tiny", run_id="", outcome="pass")
        yield Place(folder / "home", folder, source, original, runs, Registry(runs))


@pytest.fixture(scope="module")
def call(place: Place) -> Iterator[Callable[..., int]]:
    """Calls a stage of a chain in a process of its own, which dies where it is told to; gives the exit code."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path]),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "OMP_NUM_THREADS": "1",
    }
    with subprocess.Popen(
        [sys.executable, "-m", "support.forked"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None

        def order(chain: Chain, stage: str, die: str = "", store: Path | None = None, **changed: object) -> int:
            assert server.stdin is not None
            assert server.stdout is not None
            order = {
                "folder": str(chain.folder),
                "parameters": chain.parameters,
                "stage": stage,
                "die": die,
                "environment": {"UNLEARN_STORE": str(store)} if store else {},
                "changed": changed,
            }
            server.stdin.write(f"{json.dumps(order)}\n")
            server.stdin.flush()
            answer = server.stdout.readline()
            assert answer, "the process that forks has ended"
            return int(answer)

        yield order
        server.stdin.close()
