from collections.abc import Iterator
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
