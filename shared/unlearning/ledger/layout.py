"""Which layout a ledger's database has. The embedded one is brought up to this version's, a copy of it kept beside."""

from __future__ import annotations

import fcntl
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import sqlalchemy as sa

from unlearning.errors import LedgerError
from unlearning.ledger.store import Ledger
from unlearning.ledger.tables import LAYOUT


def check_layout(ledger: Ledger) -> None:
    """Nothing, when the database has the layout that this version reads.

    Raises:
        LedgerError: When it is older, newer, or there is none; saying what to do.
    """
    found = _layout(ledger)
    if found > LAYOUT:
        raise LedgerError(f'the ledger has layout "{found}", this version knows "{LAYOUT}": install the newer program')
    if found < LAYOUT:
        has = f'has layout "{found}"' if found else "is not laid out"
        raise LedgerError(f'the ledger {has}, this version wants "{LAYOUT}": run `unlearn ledger upgrade`')


def bring_up(ledger: Ledger, file: Path) -> Path | None:
    """A copy of an embedded ledger as it was before it was brought to this version's layout; None when nothing was due.

    One process does it while others wait; the copy is whole before anything changes. What an interruption leaves is
    done by the next.

    Args:
        ledger: Of the file.
        file: The database.

    Raises:
        LedgerError: When the layout is newer than this version's, or the copy cannot be written.
    """
    if _layout(ledger) == LAYOUT:
        return None
    with _locked(file):
        found = _layout(ledger)
        if found >= LAYOUT:
            check_layout(ledger)
            return None
        kept = file.with_name(f"{file.name}.layout-{found}") if found else None
        if kept is not None:
            _copy(file, kept)
        ledger.upgrade()
        if kept is not None:
            print(f"the ledger was brought to layout {LAYOUT}; as it was before, it is {kept}", file=sys.stderr)
        return kept


def _layout(ledger: Ledger) -> str:
    """The database's layout; "" for an empty one.

    Raises:
        LedgerError: When it cannot be read, or is another program's.
    """
    with ledger.reading() as connection:
        names = set(sa.inspect(connection).get_table_names())
        if "alembic_version" in names:
            return str(connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar() or "")
    if names and ledger.dialect == "sqlite":
        raise LedgerError("the database is another program's, not a ledger: check UNLEARN_LEDGER_URL")
    return ""


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """One process at a time; the lock goes with the process."""
    path = file.with_name(f"{file.name}.lock")
    try:
        lock = path.open("a")
    except OSError as error:
        raise LedgerError(f"cannot lock {path}: {error.strerror}: mend the folder's rights") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _copy(file: Path, to: Path) -> None:
    """Writes a copy of a database that others may be using, whole or not at all."""
    unfinished = to.with_name(f"{to.name}.part")
    try:
        unfinished.unlink(missing_ok=True)
        with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(unfinished)) as target:
            source.backup(target)
        shutil.copymode(file, unfinished)
        unfinished.replace(to)
    except (OSError, sqlite3.Error) as error:
        raise LedgerError(
            f"the ledger {file} is to be brought to layout {LAYOUT}, but no copy can be written beside it: "
            f"{error}: make room there"
        ) from error
