import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.chain import tiny_bundle, write_npz
from support.kubeflow import Kubeflow, serving

from unlearning.models.bundle import Bundle
from unlearning.tracking import Tracker
from unlearning_components.surroundings import tracker


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Tiny:
    """A small data set, and a bundle of a network trained on it."""

    source: str
    bundle: Bundle

    @property
    def sets(self) -> list[str]:
        """Parameters that make a pipeline use them."""
        return ["--set", f"model={self.bundle.folder}", "--set", f"manifest={self.source}", "--set", "forget=two"]


Unlearn = Callable[..., Ended]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("tiny")
    source = write_npz(folder / "set.npz")
    return Tiny(source, tiny_bundle(source, folder / "bundle"))


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, with nothing of this environment's settings; UNLEARN_HOME would be made in it."""
    for name in ("STORE", "EXPERIMENT", "IMAGE", "MLFLOW_TIMEOUT", "LEDGER_URL", "LEDGER_KEY", "SIGNING_KEY"):
        monkeypatch.delenv(f"UNLEARN_{name}", raising=False)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("UNLEARN_HOME", "unlearn-data")
    folder = tmp_path / "desk"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def served(s3: str, mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """This process works against S3 and an MLflow server; the name of a bucket and experiment of its own."""
    for name in [name for name in os.environ if re.match("UNLEARN_|MLFLOW_", name)]:
        monkeypatch.delenv(name)
    for name, value in {
        "UNLEARN_HOME": str(tmp_path / "home"),
        "UNLEARN_STORE": f"s3://{s3}/unlearning",
        "UNLEARN_EXPERIMENT": s3,
        "MLFLOW_TRACKING_URI": mlflow_server,
        "OMP_NUM_THREADS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    tracker().prepare()
    return s3


@pytest.fixture
def unlearn(desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Unlearn:
    """Runs the `unlearn` command in this process."""
    from unlearning_pipelines import cli

    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["unlearn", *arguments])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0
        out, err = capsys.readouterr()
        return Ended(code, out, err)

    return run


@pytest.fixture(scope="session")
def laid_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with MLflow's schema; laying one out takes seconds, copying it none."""
    path = tmp_path_factory.mktemp("laid-out") / "mlflow.db"
    Tracker(f"sqlite:///{path}", "first", artifacts_uri=(path.parent / "artifacts").as_uri()).prepare()
    return path


@pytest.fixture
def ready(desk: Path, laid_out: Path) -> Path:
    """The embedded folder as earlier commands would have left it, with nothing in it yet."""
    from unlearning_pipelines.preflight import claim_home

    shutil.copy(laid_out, claim_home() / "mlflow.db")
    return desk / "unlearn-data"


@pytest.fixture
def kubeflow(desk: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Kubeflow]:
    """A server; this process's settings point at it, and nothing of the user's own client is read.

    What is sent is the kept YAML, which other tests hold against what the code compiles to.
    """
    for name in [name for name in os.environ if re.match("UNLEARN_KFP_|KF_PIPELINES_", name)]:
        monkeypatch.delenv(name)
    for name in ("UNLEARN_IMAGE", "UNLEARN_CLUSTER_SETTINGS"):  # a command may set them, for its own process
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    from unlearning_pipelines.compile import COMPILED

    monkeypatch.setattr("unlearning_pipelines.compile.compile_one", lambda name, _: COMPILED / f"{name}.yaml")
    monkeypatch.setattr("kfp.Client._LOCAL_KFP_CONTEXT", str(tmp_path / "none" / "context.json"))
    with serving(Kubeflow()) as server:
        monkeypatch.setenv("UNLEARN_KFP_HOST", server.address)
        monkeypatch.setenv("UNLEARN_KFP_PAUSE", "0.01")
        yield server
    assert not (tmp_path / "none").exists()
