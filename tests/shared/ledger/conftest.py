import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from support.postgres import fresh

from unlearning.ledger.pseudonyms import Pseudonyms
from unlearning.ledger.requests import DeletionRequest, request_from
from unlearning.ledger.store import Ledger
from unlearning.ledger.vault import Vault
from unlearning.storage import FolderStore

KEY = b"k" * 32
NAMES = Pseudonyms(KEY)
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


@dataclass
class Clock:
    now: datetime = NOON

    def __call__(self) -> datetime:
        return self.now

    def forward(self, **spans: float) -> None:
        self.now += timedelta(**spans)


def lay_out(url: str) -> None:
    ledger = Ledger(url, NAMES, Vault(FolderStore(Path("unused"))))
    ledger.upgrade()
    ledger.close()


@pytest.fixture(scope="session")
def laid_out_postgres(postgres: str) -> Iterator[str]:
    """The name of a database that others are copied from."""
    with fresh(postgres) as url:
        lay_out(url)
        yield str(sa.make_url(url).database)


@pytest.fixture(scope="session")
def laid_out_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("laid-out") / "ledger.db"
    lay_out(f"sqlite:///{path}")
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def dialect(request: pytest.FixtureRequest) -> str:
    """The same contract on both databases."""
    return str(request.param)


@pytest.fixture
def empty_url(dialect: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of a database without tables."""
    if dialect == "sqlite":
        yield f"sqlite:///{tmp_path}/empty.db"
        return
    with fresh(request.getfixturevalue("postgres")) as url:
        yield url


@pytest.fixture
def url(dialect: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of a database with tables and no rows."""
    if dialect == "sqlite":
        shutil.copy(request.getfixturevalue("laid_out_sqlite"), tmp_path / "ledger.db")
        yield f"sqlite:///{tmp_path}/ledger.db"
        return
    with fresh(request.getfixturevalue("postgres"), request.getfixturevalue("laid_out_postgres")) as url:
        yield url


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


@pytest.fixture
def ledger(url: str, store: FolderStore, clock: Clock) -> Iterator[Ledger]:
    found = Ledger(url, NAMES, Vault(store), clock=clock)
    yield found
    found.close()


@pytest.fixture
def request_of() -> Callable[..., DeletionRequest]:
    """A request made of a few words: request_of(7), request_of(7, ids=["a"], model="faces")."""

    def make(number: int | str, **changes: Any) -> DeletionRequest:
        values = {
            "controller": "shop",
            "key": f"key-{number}",
            "kind": "subject",
            "ids": [f"user-{number}"],
            "model": "faces",
            "submitted_at": "2026-11-20T12:00:00Z",
        }
        return request_from({**values, **changes})

    return make
