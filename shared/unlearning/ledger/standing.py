"""Which version of each model serves and what it has forgotten, kept beside the events so that no run reads them all.

A model may serve only when it has forgotten every batch that was ever settled. A version is let through only while
that is so, hence one number says it all: that of the last `settled` event whose batch, like all before, it has
forgotten. `apply` is the only place that says what an event changes here; the tables and the check of them both use it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from unlearning.ledger import tables
from unlearning.ledger.events import SETTLED, Event

KINDS = ("promoting", "confirmed", "withdrawn", "settled", "restored", "eroded", "retired", "destroyed")
"""Events that change which model serves, what it has forgotten, or whether it is still there."""
EXACT = "erased_exact"


@dataclass(frozen=True)
class Known:
    """What is known of one version.

    Attributes:
        parent: Digest of the model that it was made from, or "".
        number: What the registry calls it.
        batch: The last batch that it was promoted for; "" for one that served before any batch.
        until: Number of the `settled` event up to which it has forgotten every batch; 0 for none.
        left_at: When it stopped serving; "" while it serves or when it never did.
        retired: Number of the event after which it may never serve again; 0 before.
        destroyed: Number of the event that proves its removal; 0 while anything of it may be there.
    """

    parent: str = ""
    number: str = ""
    batch: str = ""
    until: int = 0
    left_at: str = ""
    retired: int = 0
    destroyed: int = 0


@dataclass
class Standing:
    """What the events make of one model.

    Attributes:
        expected: Digest of the model that should serve, or "".
        open_batch: The batch of an intent that is neither confirmed nor withdrawn, or "".
        open_digest: Its model, or "".
        unsettled: The batch that was confirmed and is not settled, or "".
        settled_seq: Number of the last `settled` event; 0 before the first.
        approximate: Batches settled since a model was last trained without all that was deleted.
        eroded: Whether earlier deletions were found to show again since then.
        versions: Digest to what is known of it: all of them, or those that were asked for.
    """

    expected: str = ""
    open_batch: str = ""
    open_digest: str = ""
    unsettled: str = ""
    settled_seq: int = 0
    approximate: int = 0
    eroded: bool = False
    versions: dict[str, Known] = field(default_factory=dict)

    def has_forgotten_all(self, digest: str) -> bool:
        """Whether a version has forgotten every batch that was ever settled."""
        return self.until(digest) >= self.settled_seq

    def until(self, digest: str) -> int:
        """`Known.until` of a version; 0 for an unknown one."""
        return self.versions.get(digest, Known()).until

    def apply(self, one: Event) -> None:
        """Takes the next event about the model."""
        content = one.content
        if one.kind == "promoting":
            before = self.versions.get(content["digest"], Known())
            self.versions[content["digest"]] = Known(
                parent=content["parent"],
                number=content["version"],
                batch=one.batch,
                until=max(before.until, self.settled_seq),
                left_at=before.left_at,
            )
            self.open_batch, self.open_digest = one.batch, content["digest"]
        elif one.kind == "confirmed":
            self._serve(content["digest"], self.versions[content["digest"]].parent, one.at)
            self.open_batch, self.open_digest, self.unsettled = "", "", one.batch
        elif one.kind == "withdrawn":
            self.open_batch, self.open_digest = "", ""
        elif one.kind == "settled":
            self.versions[self.expected] = replace(self.versions[self.expected], until=one.seq)
            self.unsettled, self.settled_seq = "", one.seq
            exact = content["outcome"] == EXACT
            self.approximate = 0 if exact else self.approximate + 1
            self.eroded = self.eroded and not exact
        elif one.kind == "restored":
            self._serve(content["digest"], "", one.at)
        elif one.kind == "eroded":
            self.eroded = True
        elif one.kind == "retired":
            gone = self.versions.get(content["digest"], Known())
            self.versions[content["digest"]] = replace(gone, retired=one.seq)
        elif one.kind == "destroyed":
            gone = self.versions.get(content["digest"], Known())
            self.versions[content["digest"]] = replace(gone, destroyed=one.seq)

    def _serve(self, digest: str, parent: str, at: str) -> None:
        left = self.expected or parent
        if left and left != digest:
            self.versions[left] = replace(self.versions.get(left, Known()), left_at=at)
        self.expected = digest
        self.versions[digest] = replace(self.versions[digest], left_at="")


def folded(events: Iterable[Event]) -> Standing:
    """What the events about one model make of it, in their order."""
    found = Standing()
    for one in events:
        if one.kind in KINDS:
            found.apply(one)
    return found


def standing_of(connection: Connection, model: str, *digests: str) -> Standing:
    """What the tables say of a model; of its versions, those that are named, that should serve, or are about to.

    Args:
        connection: Reading, or in a writer's turn.
        model: Registered model.
        digests: Of the versions that are wanted besides.
    """
    row = connection.execute(sa.select(tables.serving).where(tables.serving.c.model == model)).mappings().first()
    found = Standing(**{name: value for name, value in row.items() if name != "model"}) if row else Standing()
    found.versions = _versions(connection, model, {*digests, found.expected, found.open_digest} - {""})
    return found


def standings(connection: Connection) -> dict[str, Standing]:
    """What the tables say of every model and all its versions."""
    found: dict[str, Standing] = {}
    for model in connection.execute(sa.select(tables.serving.c.model)).scalars().all():
        found[model] = standing_of(connection, model)
        query = sa.select(tables.versions.c.digest).where(tables.versions.c.model == model)
        found[model].versions = _versions(connection, model, set(connection.execute(query).scalars()))
    return found


def missing(connection: Connection, model: str, until: int) -> set[str]:
    """The batches of a model that were settled after an event."""
    table = tables.batches
    query = sa.select(table.c.batch).where(table.c.model == model, table.c.settled_seq > until)
    return set(connection.execute(query).scalars())


def record(connection: Connection, made: Event) -> None:
    """Brings the tables up to date after an event of `KINDS`; others change nothing here."""
    if made.kind not in KINDS:
        return
    model, batches = model_of(connection, made), tables.batches
    content = made.content
    named = {str(content[name]) for name in ("digest", "parent") if name in content}
    before = standing_of(connection, model, *named)
    parents = {known.parent for known in before.versions.values()} - {""}
    before.versions |= _versions(connection, model, parents - before.versions.keys())
    after = replace(before, versions=dict(before.versions))
    after.apply(made)
    for digest, known in after.versions.items():
        if before.versions.get(digest) != known:
            _put(connection, tables.versions, {"model": model, "digest": digest}, asdict(known))
    if _plain(after) != _plain(before) or made.kind == "promoting":
        _put(connection, tables.serving, {"model": model}, _plain(after))
    if made.kind == SETTLED:
        connection.execute(sa.update(batches).where(batches.c.batch == made.batch).values(settled_seq=made.seq))


def model_of(connection: Connection, made: Event) -> str:
    """The model that an event is about: its batch's, or the one that it names."""
    if "model" in made.content:
        return str(made.content["model"])
    query = sa.select(tables.batches.c.model).where(tables.batches.c.batch == made.batch)
    return str(connection.execute(query).scalar_one())


def _versions(connection: Connection, model: str, digests: set[str]) -> dict[str, Known]:
    if not digests:
        return {}
    table = tables.versions
    query = sa.select(table).where(table.c.model == model, table.c.digest.in_(digests))
    rows = connection.execute(query).mappings()
    return {row["digest"]: Known(**{name: row[name] for name in Known.__dataclass_fields__}) for row in rows}


def _plain(standing: Standing) -> dict[str, Any]:
    return {name: getattr(standing, name) for name in Standing.__dataclass_fields__ if name != "versions"}


def _put(connection: Connection, table: sa.Table, key: dict[str, str], values: dict[str, Any]) -> None:
    which = sa.and_(*(table.c[name] == value for name, value in key.items()))
    if not connection.execute(sa.update(table).where(which).values(values)).rowcount:
        connection.execute(sa.insert(table), [{**key, **values}])
