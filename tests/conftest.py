import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from support.postgres import can_serve, driver, fresh, private_server
from support.s3 import client

# Tests compare bytes with those of processes that they start: all must sum in one order.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# MLflow's own tables use what SQLAlchemy 2.1 deprecates.
NOT_OURS = "ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"

MOTO = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", NOT_OURS)


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The address of a real S3 server over HTTP, in its own process; it ends when this process does.

    With UNLEARN_TEST_S3 the server at that address is used instead, with the access keys of the environment and, over
    TLS, the certificate that AWS_CA_BUNDLE names.
    """
    if given := os.environ.get("UNLEARN_TEST_S3"):
        yield given
        return
    server = subprocess.Popen([sys.executable, "-c", MOTO], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin is not None
    assert server.stdout is not None
    port = server.stdout.readline().strip()
    assert port.isdigit(), "the S3 server did not start"
    yield f"http://127.0.0.1:{port}"
    server.stdin.close()
    server.stdout.close()
    server.wait(20)


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a fresh bucket; the AWS environment points at its server."""
    given = bool(os.environ.get("UNLEARN_TEST_S3"))
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", *(() if given else ("AWS_CA_BUNDLE",))):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_endpoint)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    if given:
        client().create_bucket(Bucket=bucket)
        return bucket
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
    with urllib.request.urlopen(urllib.request.Request(f"{s3_endpoint}/{bucket}", method="PUT"), timeout=20):
        pass
    return bucket


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of a PostgreSQL server: that of UNLEARN_TEST_POSTGRES, or with "1" a private one on a socket."""
    wanted = os.environ.get("UNLEARN_TEST_POSTGRES", "")
    if not wanted:
        pytest.skip("set UNLEARN_TEST_POSTGRES to 1 (starts a private server) or to the address of a server")
    pytest.importorskip("psycopg")
    if "://" not in wanted and not can_serve():
        pytest.skip("there is no PostgreSQL server on this machine")
    with nullcontext(wanted) if "://" in wanted else private_server() as url:
        yield url


@pytest.fixture(scope="session")
def mlflow_database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What stands behind the MLflow server: SQLite, and PostgreSQL where tests may use one."""
    if not os.environ.get("UNLEARN_TEST_POSTGRES"):
        yield f"sqlite:///{tmp_path_factory.mktemp('mlflow-database')}/mlflow.db"
        return
    with fresh(request.getfixturevalue("postgres")) as url:
        yield driver(url)


@pytest.fixture(scope="session")
def mlflow_server(mlflow_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real MLflow server, in its own process group, that keeps artifacts for its clients."""
    folder = tmp_path_factory.mktemp("mlflow-server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", mlflow_database, "--artifacts-destination", f"{folder}/files"]
    clean = {name: value for name, value in os.environ.items() if not re.match("MLFLOW_|AWS_", name)}
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**clean, "MLFLOW_DISABLE_TELEMETRY": "true"},
            start_new_session=True,
        )
    try:
        # The first answer about experiments waits for the database's tables, which "healthy" does not.
        for path in ("health", "api/2.0/mlflow/experiments/get?experiment_id=0"):
            _await_answer(f"{uri}/{path}", server, folder / "server.log")
        yield uri
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait(20)


def _await_answer(url: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    until = time.monotonic() + 90
    while time.monotonic() < until and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=60):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    pytest.fail(f"the MLflow server did not start: {log.read_text()[-2000:]}")
