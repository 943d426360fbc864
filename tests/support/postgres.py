"""A real PostgreSQL server of the tests' own."""

import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa


@contextmanager
def running() -> Iterator[str]:
    """The address of a private server on a socket; the test is skipped where none is installed."""
    programs = [shutil.which("initdb"), shutil.which("postgres")]
    if None in programs or (os.getuid() == 0 and not shutil.which("runuser")):
        pytest.skip("there is no PostgreSQL server on this machine")
    # Short, for a socket's path has 107 bytes; and not inside pytest's folder, which only its owner may enter.
    folder = Path(f"/tmp/unlearn-pg-{uuid.uuid4().hex[:8]}")
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    data = str(folder / "data")
    initdb, server = (str(Path(str(program)).resolve()) for program in programs)
    subprocess.run(
        [*_as_user(), initdb, "-D", data, "-A", "trust", "-U", "unlearn", "-E", "UTF8", "--no-sync"],
        check=True,
        capture_output=True,
        cwd="/",
    )
    options = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={folder}", "-c", "fsync=off"]
    process = subprocess.Popen(
        [*_as_user(), server, "-D", data, *options, "-c", "max_connections=100"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
    )
    try:
        url = f"postgresql://unlearn@/postgres?host={folder}"
        _await(url)
        yield url
    finally:
        pid = (folder / "data" / "postmaster.pid").read_text().split()[0]
        subprocess.run(["kill", "-INT", pid], check=False)
        process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def database(server: str, template: str = "") -> Iterator[str]:
    """The address of a new database of that server, empty or a copy of the template; it is dropped in the end."""
    name = f"unlearn_{uuid.uuid4().hex[:12]}"
    _run(server, f"CREATE DATABASE {name}{template and f' TEMPLATE {template}'}")
    try:
        yield str(sa.make_url(server).set(database=name).render_as_string(hide_password=False))
    finally:
        _run(server, f"DROP DATABASE {name} WITH (FORCE)")


def driver(url: str) -> str:
    """The address with the driver that is installed."""
    return url.replace("postgresql:", "postgresql+psycopg:")


def _run(server: str, statement: str) -> None:
    engine = sa.create_engine(driver(server), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(statement)
    engine.dispose()


def _as_user() -> list[str]:
    """PostgreSQL refuses to run as root."""
    return ["runuser", "-u", "nobody", "--"] if os.getuid() == 0 else []


def _await(url: str) -> None:
    engine = sa.create_engine(driver(url))
    until = time.monotonic() + 20
    while True:
        try:
            with engine.connect():
                break
        except sa.exc.OperationalError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)
    engine.dispose()
