"""The ledger in a SQL database: SQLite in one file, or PostgreSQL for several machines.

Every change is one transaction that appends events and brings the tables that follow from them up to date, so that they
never disagree. Writers take turns at one row, so numbers have no gap and the chain no fork.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from unlearning import __version__
from unlearning.errors import LedgerError, UsageError
from unlearning.ledger import merkle, tables
from unlearning.ledger.events import BATCH_STATES, EFFECTS, NO_DATA, Event, event, moment
from unlearning.ledger.pseudonyms import Pseudonyms
from unlearning.ledger.standing import record
from unlearning.ledger.vault import Vault

T = TypeVar("T")

_WRITE = "unlearning_write"
_WAIT_SECONDS = 60
_ROWS = 2000
_LONGEST_REASON = 256
_LAYOUT = sa.select(sa.literal_column("version_num")).select_from(sa.table("alembic_version")).scalar_subquery()
_TURN = sa.select(tables.head, _LAYOUT.label("layout")).with_for_update(of=tables.head)
_ACTOR = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._:/-]{0,127}")


class Ledger:
    """Events, requests and batches of one installation.

    Args:
        url: "sqlite:///path/ledger.db" or "postgresql://user@host/name".
        names: Digests under the installation's key.
        vault: Where raw ids are.
        clock: Gives the time with its zone; for tests.

    Raises:
        LedgerError: For any other database.
    """

    def __init__(
        self, url: str, names: Pseudonyms, vault: Vault, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self.names = names
        self.vault = vault
        self.clock = clock
        self._engine = _engine(url)

    @property
    def dialect(self) -> str:
        """Which database: "sqlite" or "postgresql"."""
        return self._engine.dialect.name

    def upgrade(self) -> str:
        """The layout's version, after every step that was still to do; safe to call from several processes at once.

        Raises:
            LedgerError: When the database cannot be reached, or was made by a newer program.
        """
        from alembic.operations import Operations
        from alembic.runtime.migration import MigrationContext
        from alembic.script import ScriptDirectory
        from alembic.script.revision import RevisionError

        script = ScriptDirectory(str(Path(__file__).parent / "migrations"))
        with self._failures("lay out"):
            self._prepare()
            with self._transaction(write=True) as connection:
                if self.dialect == "postgresql":
                    connection.execute(sa.text("SELECT pg_advisory_xact_lock(7265104, 1)"))
                context = MigrationContext.configure(connection)
                current, newest = context.get_current_revision(), str(script.get_current_head())
                try:
                    steps = list(script.iterate_revisions("head", current or "base"))
                except RevisionError as error:
                    raise LedgerError(
                        f'the ledger has layout "{current}", this version knows "{newest}": install the newer program'
                    ) from error
                for step in reversed(steps):
                    with Operations.context(context):
                        step.module.upgrade()
                    context.stamp(script, step.revision)
                return newest

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection that sees one state of the ledger."""
        with self._failures("read"), self._transaction(write=False) as connection:
            yield connection

    @contextmanager
    def writing(self, actor: str) -> Iterator[Writer]:
        """One change: all of it is kept, or nothing of it. Others wait for its end.

        Args:
            actor: The role or process that makes it; no person's name.

        Raises:
            UsageError: For an actor that is no plain word.
            LedgerError: When the database fails, or another key made the ledger.
        """
        if not _ACTOR.fullmatch(actor):
            raise UsageError("an actor is a role or process in plain letters, such as batch-runner")
        with self._failures("write"), self._transaction(write=True) as connection:
            writer = Writer(connection, self.names, actor, self.clock)
            yield writer
            writer.finish()

    def head(self) -> tuple[int, str]:
        """Number and digest of the last event; (0, 64 zeros) before the first."""
        with self.reading() as connection:
            row = connection.execute(sa.select(tables.head.c.seq, tables.head.c.hash)).one()
        return int(row.seq), str(row.hash)

    def events(self, after: int = 0, until: int | None = None) -> Iterator[Event]:
        """The events after a number, in order, a few thousand in memory at a time.

        Args:
            after: Number of the last event that is not wanted.
            until: Number of the last that is; None for all there are.
        """
        while True:
            query = sa.select(tables.events).where(tables.events.c.seq > after)
            if until is not None:
                query = query.where(tables.events.c.seq <= until)
            with self.reading() as connection:
                rows = connection.execute(query.order_by(tables.events.c.seq).limit(_ROWS)).all()
            if not rows:
                return
            for row in rows:
                yield Event(*row)
            after = rows[-1].seq

    def events_of(self, model: str, *kinds: str) -> list[Event]:
        """The events of some kinds about the batches of a model, in order."""
        events, batches = tables.events, tables.batches
        query = sa.select(events).join(batches, batches.c.batch == events.c.batch)
        query = query.where(batches.c.model == model, events.c.kind.in_(kinds)).order_by(events.c.seq)
        with self.reading() as connection:
            return [Event(*row) for row in connection.execute(query)]

    def members(self, root: str) -> list[str]:
        """The requests of a list, in order."""
        with self.reading() as connection:
            return members_of(connection, root)

    def close(self) -> None:
        """Lets go of the database."""
        self._engine.dispose()

    def _prepare(self) -> None:
        if self.dialect != "sqlite":
            return
        database = self._engine.url.database
        if database and database != ":memory:":
            Path(database).parent.mkdir(parents=True, exist_ok=True)
        connection = self._engine.raw_connection()  # outside a transaction, where alone the mode can be changed
        try:
            mode = connection.cursor().execute("PRAGMA journal_mode=WAL").fetchone()[0]
        except sqlite3.Error as error:
            raise LedgerError(
                f"cannot lay out the ledger at {self._engine.url}: {error}: check UNLEARN_LEDGER_URL and its folder"
            ) from error
        finally:
            connection.close()
        if mode != "wal":
            raise LedgerError(
                f"the ledger's file system allows no write-ahead log (mode {mode}): put the file on a local disk, or "
                "use PostgreSQL"
            )

    @contextmanager
    def _transaction(self, *, write: bool) -> Iterator[Connection]:
        engine = self._engine.execution_options(**{_WRITE: write})
        if self.dialect == "postgresql":
            engine = engine.execution_options(isolation_level="READ COMMITTED" if write else "REPEATABLE READ")
        with engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def _failures(self, wanted: str) -> Iterator[None]:
        """Turns what the driver raises into one line, without values, statements or passwords."""
        where = self._engine.url.render_as_string(hide_password=True)
        try:
            yield
        except sa.exc.DBAPIError as error:
            reason = " ".join(str(error.orig).split())[:200] or type(error.orig).__name__
            no_table = "no such table" in reason or "does not exist" in reason
            advice = "check UNLEARN_LEDGER_URL and the database, try again"
            advice = "lay it out with `unlearn ledger upgrade`" if no_table else advice
            raise LedgerError(f"cannot {wanted} the ledger at {where}: {reason}: {advice}") from error
        except OSError as error:
            raise LedgerError(
                f"cannot {wanted} the ledger at {where}: {error.strerror}: check UNLEARN_LEDGER_URL"
            ) from error


class Writer:
    """One transaction's view of the ledger; made by `Ledger.writing`.

    Args:
        connection: In a transaction that may write.
        names: Whose key must be the ledger's.
        actor: For its events.
        clock: Gives the time of its events.
    """

    def __init__(self, connection: Connection, names: Pseudonyms, actor: str, clock: Callable[[], datetime]) -> None:
        self.connection = connection
        self._actor = actor
        row = connection.execute(_TURN).one()  # where writers take turns
        if row.layout != tables.LAYOUT:
            raise LedgerError(
                f'the ledger has layout "{row.layout}", this program writes "{tables.LAYOUT}": start it again, of one '
                "version everywhere"
            )
        self.now = clock()
        check = names.check()
        if row.key_check not in ("", check):
            raise LedgerError("the ledger was begun with another key, and would take every request for new: restore it")
        self._key_check = check
        self._seq, self._hash = int(row.seq), str(row.hash)
        self._first = self._seq
        self._events: list[dict[str, Any]] = []
        self._received: list[dict[str, Any]] = []

    @property
    def seq(self) -> int:
        """Number of the last event."""
        return self._seq

    def append(
        self,
        kind: str,
        *,
        request: str = "",
        batch: str = "",
        members: Iterable[str] = (),
        body: Mapping[str, Any] | None = None,
    ) -> Event:
        """A new event, whose effect is in the tables when this returns.

        Args:
            kind: One of `EFFECTS`.
            request: The request that it speaks of, or "".
            batch: The batch, or "".
            members: The requests that it speaks of when they are many.
            body: The rest.

        Raises:
            UsageError: When a request is in no state that allows it.
        """
        refs = sorted(set(members))
        root = self.keep(refs) if refs else ""
        made = event(
            self._seq + 1,
            moment(self.now),
            kind,
            prev=self._hash,
            actor=self._actor,
            code=__version__,
            request=request,
            batch=batch,
            members=root,
            body=body,
        )
        self._seq, self._hash = made.seq, made.hash
        self._events.append({name: getattr(made, name) for name in Event.__slots__})
        if kind == "received":
            self._received.append(first_state(made))
        else:
            self.flush()
            self._apply(made, len(refs))
        if len(self._events) >= _ROWS:
            self.flush()
        return made

    def keep(self, refs: list[str]) -> str:
        """The root of a sorted list of requests, which is now in the database."""
        root, table = merkle.root_of_refs(refs), tables.members
        there = self.connection.execute(sa.select(sa.literal(1)).where(table.c.root == root).limit(1)).first()
        if there is None:
            rows = ({"root": root, "position": place, "ref": ref} for place, ref in enumerate(refs))
            for chunk in chunks(rows, _ROWS):
                self.connection.execute(sa.insert(table), chunk)
        return root

    def flush(self) -> None:
        """Writes what was appended."""
        if self._events:
            self.connection.execute(sa.insert(tables.events), self._events)
        if self._received:
            self.connection.execute(sa.insert(tables.requests), self._received)
        self._events, self._received = [], []

    def finish(self) -> None:
        """Writes everything, and the new head."""
        self.flush()
        if self._seq != self._first:
            self.connection.execute(
                sa.update(tables.head).values(seq=self._seq, hash=self._hash, key_check=self._key_check)
            )

    def _apply(self, made: Event, count: int) -> None:
        effect, table = EFFECTS[made.kind], tables.requests
        which, wanted = None, 1
        if made.request:
            which = table.c.ref == made.request
        elif made.members:
            of_root = sa.select(tables.members.c.ref).where(tables.members.c.root == made.members)
            which, wanted = table.c.ref.in_(of_root), count
        elif made.batch and effect.after:
            which, wanted = table.c.batch == made.batch, -1
        if which is not None:
            values = {"changed_at": made.at, "changed_seq": made.seq, **changes(made.kind, made.content)}
            if made.kind == "claimed":
                values["batch"] = made.batch
            query = sa.update(table).where(which, table.c.state.in_(effect.before)).values(values)
            done = self.connection.execute(query).rowcount
            if wanted >= 0 and done != wanted:
                states = ", ".join(effect.before)
                raise UsageError(
                    f'{wanted - done} of {wanted} requests cannot be "{made.kind}" now: only one that is {states} can; '
                    "look at their states"
                )
        if made.batch and made.kind in BATCH_STATES:
            batches = tables.batches
            values = {"state": BATCH_STATES[made.kind], "changed_at": made.at}
            self.connection.execute(sa.update(batches).where(batches.c.batch == made.batch).values(values))
        record(self.connection, made)


def first_state(made: Event) -> dict[str, Any]:
    """The row of a request that was just received."""
    content = made.content
    return {
        **{name: content[name] for name in tables.FIXED},
        "ref": made.request,
        "received_seq": made.seq,
        "due_at": content["due_at"],
        "extended": False,
        "state": EFFECTS["received"].after,
        "batch": "",
        "outcome": "",
        "reason": "",
        "purged": False,
        "changed_at": made.at,
        "changed_seq": made.seq,
    }


def changes(kind: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a request that an event changes, apart from when, which event, and its batch when claimed.

    Args:
        kind: One of `EFFECTS`.
        content: The event's body.
    """
    after: dict[str, Any] = {"state": EFFECTS[kind].after} if EFFECTS[kind].after else {}
    if kind in ("held", "cancelled", "denied"):
        after["reason"] = str(content.get("reason", ""))[:_LONGEST_REASON]
    elif kind == "released":
        after["reason"] = ""
    elif kind == "extended":
        after |= {"due_at": content["due_at"], "extended": True}
    elif kind in ("dissolved", "withdrawn"):
        after["batch"] = ""
    elif kind == "not_found":
        after["outcome"] = NO_DATA
    elif kind == "settled":
        after["outcome"] = content["outcome"]
    elif kind == "purged":
        after["purged"] = True
    return after


def members_of(connection: Connection, root: str) -> list[str]:
    """The requests of a list, in order."""
    query = sa.select(tables.members.c.ref).where(tables.members.c.root == root).order_by(tables.members.c.position)
    return list(connection.execute(query).scalars())


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of at most `size` items."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _engine(url: str) -> sa.Engine:
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError as error:
        raise LedgerError(
            "the ledger has no address: set UNLEARN_LEDGER_URL to sqlite:///file or postgresql://..."
        ) from (error)
    kind = parsed.get_backend_name()
    if kind == "sqlite":
        engine = sa.create_engine(parsed, connect_args={"timeout": _WAIT_SECONDS}, poolclass=sa.pool.NullPool)
        sa.event.listen(engine, "connect", _on_connect)
        sa.event.listen(engine, "begin", _on_begin)
        return engine
    if kind == "postgresql":
        try:
            import psycopg  # noqa: F401
        except ImportError as error:
            raise LedgerError("PostgreSQL needs psycopg: pip install 'kfp-unlearning[postgres]'") from error
        parsed = parsed.set(drivername="postgresql+psycopg")
        return sa.create_engine(parsed, pool_pre_ping=True, connect_args={"connect_timeout": 10})
    raise LedgerError(f'a ledger in "{kind[:20]}" is not supported: use sqlite:///file or postgresql://...')


def _on_connect(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions begin where SQLAlchemy says, see below
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")


def _on_begin(connection: Connection) -> None:
    write = connection.get_execution_options().get(_WRITE)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
