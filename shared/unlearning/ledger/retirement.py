"""The end of a model that serves no more: every version, copy and intermediate removed, and proved gone by listing.

A model that still knows deleted data is kept for some days, so that a rollback within the rules is possible, and then
destroyed. First the ledger says that it may never serve again, then everything is removed, then all places are listed
anew, and only when nothing is left the ledger says so. An interruption anywhere is mended by the next try.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

import sqlalchemy as sa

from unlearning.errors import StorageError
from unlearning.ledger import tables
from unlearning.ledger.claims import Claim, fenced
from unlearning.ledger.events import CLAIMED, PROMOTING, canonical, moment
from unlearning.ledger.standing import standing_of
from unlearning.ledger.store import Ledger, Writer
from unlearning.storage import ObjectStore, open_store, split

PREFIX = "evidence/retired"
MODELS = "models"
_STAGE = re.compile(r"(load-model|select|synthesize|impair|repair|distill|retrain)(-\d+)?")
_MOST_NAMED = 50


class Copies(Protocol):
    """What a registry holds of a model's content."""

    def copies(self, name: str, digest: str) -> list[str]:
        """What there is, by name."""

    def remove(self, name: str, digest: str) -> int:
        """The number of versions removed."""

    def holders(self, digest: str) -> list[str]:
        """The registered models that have it."""


@dataclass(frozen=True)
class Retired:
    """What became of one model.

    Attributes:
        digest: Of the model.
        removed: Versions of objects removed, registered versions, and runs' artifacts; None when it has to wait.
        reason: Why it has to wait; else "".
    """

    digest: str
    removed: dict[str, int] | None
    reason: str = ""

    def text(self) -> str:
        """For people."""
        if self.removed is None:
            return f"waits: {self.reason}"
        return f"removed ({', '.join(f'{count} {what}' for what, count in self.removed.items())}), nothing is left"


def note_copies(ledger: Ledger, claim: Claim, digest: str, place: str) -> None:
    """Notes where a run keeps the models before and after, so that they are found when one of them is retired.

    Args:
        ledger: Which.
        claim: The batch that the run works on.
        digest: The model that the run made.
        place: Address of the run's artifacts.

    Raises:
        ClaimLostError: When the batch is no longer this process's.
    """
    body = {"model": claim.model, "before": claim.base, "after": digest, "place": place}
    with ledger.writing(claim.owner) as writer:
        fenced(writer, claim, CLAIMED, PROMOTING)
        events = tables.events
        query = sa.select(events.c.body).where(events.c.batch == claim.batch, events.c.kind == "copies")
        if canonical(body) not in writer.connection.execute(query).scalars().all():
            writer.append("copies", batch=claim.batch, body=body)


def run_of(artifact: str) -> str:
    """Address of the pipeline run that an artifact of a stage lies beneath; the artifact's own where that is not clear.

    Example:
        >>> run_of("s3://kfp/v2/artifacts/deletion-batch/7a1c/distill/9e/unlearned")
        's3://kfp/v2/artifacts/deletion-batch/7a1c'
    """
    head, scheme, path = artifact.rpartition("://") if "://" in artifact else ("", "", artifact)
    parts = path.split("/")
    places = [place for place, part in enumerate(parts) if _STAGE.fullmatch(part)]
    if not places or places[-1] < 3:
        return artifact
    return f"{head}{scheme}{'/'.join(parts[: places[-1]])}"


def retirable(ledger: Ledger, *, model: str = "", days: float) -> list[tuple[str, str]]:
    """Model and digest of each version that stopped serving so long ago and is not proved gone, oldest first.

    Args:
        ledger: Which.
        model: Only versions of this one; "" for all.
        days: How long they are kept after they stopped.
    """
    table, limit = tables.versions, moment(ledger.clock() - timedelta(days=days))
    query = sa.select(table.c.model, table.c.digest).where(table.c.destroyed == 0)
    query = query.where(table.c.left_at != "", table.c.left_at <= limit).order_by(table.c.left_at)
    if model:
        query = query.where(table.c.model == model)
    with ledger.reading() as connection:
        return [(row.model, row.digest) for row in connection.execute(query)]


def retire_one(
    ledger: Ledger, store: ObjectStore, registry: Copies, model: str, digest: str, *, days: float, actor: str
) -> Retired:
    """What became of one model; repeating it goes on where it stopped.

    Args:
        ledger: Which.
        store: Where bundles are kept.
        registry: Where they are registered.
        model: One of `retirable`.
        digest: Its digest.
        days: As for `retirable`.
        actor: The role that does it.

    Raises:
        StorageError: When something is left after it was removed, or a store fails.
        TrackingError: When the registry fails, or an alias points at it.
    """
    with ledger.writing(actor) as writer:
        if reason := _in_use(writer, registry, model, digest):
            return Retired(digest, None, reason)
        known = standing_of(writer.connection, model, digest).versions[digest]
        if not known.retired:
            body = {"model": model, "digest": digest, "left_at": known.left_at, "days": days}
            writer.append("retired", batch=known.batch, body=body)
    with ledger.writing(actor) as writer:  # in the writer's turn, so that no batch begins to make this very model
        if reason := _in_use(writer, registry, model, digest):
            return Retired(digest, None, reason)
        places = _places(writer, model, digest)
        removed = {"registered versions": registry.remove(model, digest)}
        removed["object versions"] = store.delete(f"{MODELS}/{digest}")
        removed["artifacts of runs"] = sum(found.delete(key) for found, key in map(_opened, places))
        left = [*registry.copies(model, digest), *store.remains(f"{MODELS}/{digest}")]
        left += [one for found, key in map(_opened, places) for one in found.remains(key)]
        if left:
            raise StorageError(f"{len(left)} things of model {digest[:12]} are left, the first {left[0]}: try again")
        body = {"model": model, "digest": digest, "removed": removed, "remaining": 0}
        body["listed"] = [f"{store.uri}/{MODELS}/{digest}", f"models:/{model}", *places[:_MOST_NAMED]]
        known = standing_of(writer.connection, model, digest).versions[digest]
        made = writer.append("destroyed", batch=known.batch, body=body)
    record = canonical({**body, "event": made.seq, "hash": made.hash, "at": made.at}).encode("ascii")
    store.create(f"{PREFIX}/{model}-{digest}-{made.seq}.json", record)
    return Retired(digest, removed)


def _in_use(writer: Writer, registry: Copies, model: str, digest: str) -> str:
    """Why a version cannot be removed now; "" when nothing needs it."""
    known = standing_of(writer.connection, model, digest)
    if digest in (known.expected, known.open_digest) or not known.versions[digest].left_at:
        return "it serves, or is about to"
    batches, versions = tables.batches, tables.versions
    working = sa.select(batches.c.batch).where(tables.ACTIVE, batches.c.model == model)
    if writer.connection.execute(working.limit(1)).first() is not None:
        return "a batch is at work on its model"
    query = sa.select(versions.c.model).where(versions.c.digest == digest, versions.c.model != model)
    others = {*writer.connection.execute(query.where(versions.c.retired == 0)).scalars(), *registry.holders(digest)}
    if others - {model}:
        return f'the registered model "{min(others - {model})}" has it too'
    return ""


def _places(writer: Writer, model: str, digest: str) -> list[str]:
    """Addresses of the runs that hold a version."""
    events, batches = tables.events, tables.batches
    query = sa.select(events.c.body).join(batches, batches.c.batch == events.c.batch)
    query = query.where(batches.c.model == model, events.c.kind == "copies").order_by(events.c.seq)
    bodies = [_content(text) for text in writer.connection.execute(query).scalars()]
    return list(dict.fromkeys(body["place"] for body in bodies if digest in (body["before"], body["after"])))


def _content(text: str) -> dict[str, str]:
    import json

    found: dict[str, str] = json.loads(text)
    return found


def _opened(place: str) -> tuple[ObjectStore, str]:
    where, key = split(place.replace("minio://", "s3://", 1) if place.startswith("minio://") else place)
    return open_store(where), key
