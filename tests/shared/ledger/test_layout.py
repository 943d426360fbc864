"""The embedded ledger of an older version is brought up when it is opened; a newer one is left alone."""

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from unlearning.errors import LedgerError
from unlearning.ledger import layout, tables
from unlearning.ledger.claims import claim
from unlearning.ledger.filing import file_requests
from unlearning.ledger.layout import check_layout
from unlearning.ledger.opening import open_ledger
from unlearning.ledger.overview import list_requests
from unlearning.ledger.promotion import Version, begin, confirm, settle, standing
from unlearning.ledger.pseudonyms import Pseudonyms, key_of_file
from unlearning.ledger.requests import DeletionRequest
from unlearning.ledger.store import Ledger
from unlearning.ledger.vault import Vault
from unlearning.ledger.verification import verify
from unlearning.settings import Settings
from unlearning.storage import open_store

Make = Callable[..., DeletionRequest]
OPEN = "from unlearning.ledger.opening import open_ledger; print(open_ledger().head()[0])"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("LEDGER_URL", "LEDGER_KEY", "STORE"):
        monkeypatch.delenv(f"UNLEARN_{name}", raising=False)
    monkeypatch.setenv("UNLEARN_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def first(home: Path, request_of: Make) -> Path:
    """A database that migration 0001 made, with a batch that was served and a request that waits."""
    from alembic.operations import Operations
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    names, vault = Pseudonyms(key_of_file(Settings().ledger_key_file)), Vault(open_store(Settings().store_uri))
    newest = Ledger(f"sqlite:///{home}/newest.db", names, vault)
    newest.upgrade()
    list(file_requests(newest, [request_of(1), request_of(2)], actor="intake"))
    held = claim(newest, owner="run", limit=1)
    assert held is not None
    begin(newest, held, Version("a" * 64, "", "1"))
    confirm(newest, held, "a" * 64)
    settle(newest, held, outcome="erased_approx_audited", certificate="c" * 64)
    newest.close()
    file = home / "ledger.db"
    engine = sa.create_engine(f"sqlite:///{file}")
    script = ScriptDirectory(str(Path(layout.__file__).parent / "migrations"))
    with engine.begin() as connection:
        context = MigrationContext.configure(connection)
        with Operations.context(context):
            step = script.get_revision("0001")
            step.module.upgrade()
            context.stamp(script, "0001")
    engine.dispose()
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("ATTACH ? AS newest", [str(home / "newest.db")])
        connection.execute("DELETE FROM head")
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            if name != "alembic_version":
                columns = ", ".join(row[1] for row in connection.execute(f"PRAGMA table_info({name})"))
                connection.execute(f"INSERT INTO {name} ({columns}) SELECT {columns} FROM newest.{name}")
    for left in home.glob("newest.db*"):
        left.unlink()
    return file


def version(file: Path) -> str:
    with closing(sqlite3.connect(file)) as connection:
        return str(connection.execute("SELECT version_num FROM alembic_version").fetchone()[0])


def test_the_version_that_the_code_writes_is_the_newest_migration() -> None:
    from alembic.script import ScriptDirectory

    script = ScriptDirectory(str(Path(layout.__file__).parent / "migrations"))
    assert script.get_current_head() == tables.LAYOUT


def test_a_database_of_the_first_migration_is_brought_up_on_opening_with_a_copy_beside(
    first: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = open_ledger()
    said = capsys.readouterr().err
    copy = first.with_name("ledger.db.layout-0001")
    assert (version(first), version(copy)) == (tables.LAYOUT, "0001")
    assert said == f"the ledger was brought to layout {tables.LAYOUT}; as it was before, it is {copy}\n"
    assert [one["state"] for one in list_requests(ledger)].count("pending") == 1
    assert standing(ledger, "faces").expected == "a" * 64, "what serves is read from the old events"
    assert verify(ledger) == []
    ledger.close()
    changed = copy.stat().st_mtime_ns
    open_ledger().close()
    assert (copy.stat().st_mtime_ns, capsys.readouterr().err) == (changed, "")


def test_many_processes_that_open_it_at_once_bring_it_up_once(first: Path) -> None:
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    running = [subprocess.Popen([sys.executable, "-c", OPEN], env=here, **given) for _ in range(3)]
    ended = [(one.communicate(timeout=120), one.returncode) for one in running]
    assert [code for _, code in ended] == [0, 0, 0], ended
    assert len({out for (out, _), _ in ended}) == 1
    assert sum("was brought to layout" in err for (_, err), _ in ended) == 1
    assert version(first.with_name("ledger.db.layout-0001")) == "0001"
    ledger = open_ledger()
    assert verify(ledger) == []
    ledger.close()


def test_without_room_for_the_copy_nothing_is_changed(first: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copymode", full)
        with pytest.raises(LedgerError, match="No space left on device: make room there") as caught:
            open_ledger()
    assert "\n" not in str(caught.value)
    assert version(first) == "0001"
    assert not first.with_name("ledger.db.layout-0001").exists()
    open_ledger().close()
    assert version(first) == tables.LAYOUT


def test_a_run_cut_off_between_copy_and_change_is_repeated(first: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "upgrade", lambda _: sys.exit("killed"))
        with pytest.raises(SystemExit):
            open_ledger()
    assert (version(first), version(first.with_name("ledger.db.layout-0001"))) == ("0001", "0001")
    open_ledger().close()
    assert version(first) == tables.LAYOUT


def test_a_newer_layout_is_refused_in_one_line_and_left_alone(first: Path) -> None:
    open_ledger().close()
    with closing(sqlite3.connect(first)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    before = first.read_bytes()
    with pytest.raises(LedgerError, match='layout "9999", this version knows "0002": install the newer') as caught:
        open_ledger(make=True)
    assert "\n" not in str(caught.value)
    assert first.read_bytes() == before


def test_another_programs_database_is_not_touched(home: Path) -> None:
    key_of_file(Settings().ledger_key_file)
    with closing(sqlite3.connect(home / "ledger.db")) as connection, connection:
        connection.execute("CREATE TABLE recipes (name)")
    with pytest.raises(LedgerError, match="another program's"):
        open_ledger()
    with closing(sqlite3.connect(home / "ledger.db")) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("recipes",)]


def test_a_database_that_was_begun_and_never_laid_out_is_laid_out(home: Path) -> None:
    key_of_file(Settings().ledger_key_file)
    (home / "ledger.db").touch()
    ledger = open_ledger()
    assert ledger.head()[0] == 0
    ledger.close()


def test_a_program_that_runs_on_over_an_upgrade_writes_nothing_more(ledger: Ledger, request_of: Make) -> None:
    list(file_requests(ledger, [request_of(1)], actor="intake"))
    with ledger.writing("test") as writer:
        writer.connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(LedgerError, match="start it again"):
        list(file_requests(ledger, [request_of(2)], actor="intake"))
    with pytest.raises(LedgerError, match="newer program"):
        check_layout(ledger)
    assert len(list(list_requests(ledger))) == 1


def test_a_server_with_an_older_layout_is_left_to_a_person(ledger: Ledger) -> None:
    with ledger.writing("test") as writer:
        writer.connection.execute(sa.text("UPDATE alembic_version SET version_num = '0001'"))
    with pytest.raises(LedgerError, match=r'layout "0001".*run `unlearn ledger upgrade`'):
        check_layout(ledger)


def test_a_server_without_tables_says_what_to_run(empty_url: str, tmp_path: Path) -> None:
    empty = Ledger(empty_url, Pseudonyms(b"k" * 32), Vault(open_store(str(tmp_path / "store"))))
    with pytest.raises(LedgerError, match=r"is not laid out.*run `unlearn ledger upgrade`"):
        check_layout(empty)
    empty.upgrade()
    check_layout(empty)
    empty.close()
