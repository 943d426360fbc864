import shutil
import uuid
from pathlib import Path

import pytest

from unlearning.tracking import Tracker


@pytest.fixture(scope="session")
def laid_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with MLflow's schema; laying one out takes seconds, copying it none."""
    path = tmp_path_factory.mktemp("laid-out") / "mlflow.db"
    Tracker(f"sqlite:///{path}", "first", artifacts_uri=(path.parent / "artifacts").as_uri()).prepare()
    return path


@pytest.fixture(autouse=True)
def no_injected_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)


@pytest.fixture
def embedded(laid_out: Path, tmp_path: Path) -> Tracker:
    shutil.copy(laid_out, tmp_path / "mlflow.db")
    return Tracker(f"sqlite:///{tmp_path}/mlflow.db", "tests", artifacts_uri=(tmp_path / "artifacts").as_uri())


@pytest.fixture
def served(mlflow_server: str) -> Tracker:
    return Tracker(mlflow_server, f"tests-{uuid.uuid4().hex[:12]}")


@pytest.fixture(params=["embedded", "served"])
def tracker(request: pytest.FixtureRequest) -> Tracker:
    """The same contract against a SQLite file and a real server."""
    found: Tracker = request.getfixturevalue(request.param)
    found.prepare()
    return found
