"""A private PostgreSQL server on a socket, and databases on it."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa


def can_serve() -> bool:
    """Whether this machine has what `private_server` needs."""
    programs = [shutil.which("initdb"), shutil.which("postgres")]
    return None not in programs and (os.getuid() != 0 or bool(shutil.which("runuser")))


@contextmanager
def private_server() -> Iterator[str]:
    """The address of a server that is started, and stopped at the end; it does not wait for the disk."""
    # Short, for a socket's path has 107 bytes; and not inside pytest's folder, which only its owner may enter.
    folder = Path(f"/tmp/unlearn-pg-{uuid.uuid4().hex[:8]}")
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    data = str(folder / "data")
    initdb, server = (str(Path(str(shutil.which(name))).resolve()) for name in ("initdb", "postgres"))
    subprocess.run(
        [*_as_user(), initdb, "-D", data, "-A", "trust", "-U", "unlearn", "-E", "UTF8", "--no-sync"],
        check=True,
        capture_output=True,
        cwd="/",
    )
    options = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={folder}", "-c", "fsync=off"]
    running = subprocess.Popen(
        [*_as_user(), server, "-D", data, *options, "-c", "max_connections=100"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
    )
    url = f"postgresql://unlearn@/postgres?host={folder}"
    try:
        _await(url)
        yield url
    finally:
        pid = (folder / "data" / "postmaster.pid").read_text().split()[0]
        subprocess.run(["kill", "-INT", pid], check=False)
        running.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def run(server: str, statement: str) -> None:
    """Runs a statement outside of any transaction."""
    engine = sa.create_engine(driver(server), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(statement)
    engine.dispose()


def database(server: str, name: str) -> str:
    """The address of a database on a server."""
    return str(sa.make_url(server).set(database=name).render_as_string(hide_password=False))


@contextmanager
def fresh(server: str, template: str = "") -> Iterator[str]:
    """The address of a new database, empty or a copy of the template; it is dropped in the end."""
    name = f"unlearn_{uuid.uuid4().hex[:12]}"
    run(server, f"CREATE DATABASE {name}{template and f' TEMPLATE {template}'}")
    try:
        yield database(server, name)
    finally:
        run(server, f"DROP DATABASE {name} WITH (FORCE)")


def _as_user() -> list[str]:
    """PostgreSQL refuses to run as root."""
    return ["runuser", "-u", "nobody", "--"] if os.getuid() == 0 else []


def _await(url: str) -> None:
    engine = sa.create_engine(driver(url))
    for attempt in range(200):
        try:
            with engine.connect():
                break
        except sa.exc.OperationalError:
            if attempt == 199:
                raise
            time.sleep(0.1)
    engine.dispose()


def driver(url: str) -> str:
    """The address with the driver that is installed."""
    return url.replace("postgresql:", "postgresql+psycopg:")
