"""What finished stages of a batch left, under hashes, so that a batch that is taken over goes on instead of over again.

A stage's files go under the token of the try that made them; its completion record is written last and only once, and
names them with their sha256. A stage is finished when the record is there and every file still has its digest.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import NamedTuple

import sqlalchemy as sa

from unlearning.errors import StorageError, UsageError
from unlearning.ledger import tables
from unlearning.ledger.claims import Claim
from unlearning.ledger.events import canonical
from unlearning.ledger.store import Ledger, Writer
from unlearning.storage import ObjectStore
from unlearning.storage.keys import checked_key

PREFIX = "work"
MODELS = "models"
RECORD = "done.json"
CANDIDATES = "candidates"
_SHA256 = re.compile("[0-9a-f]{64}")


class Work(NamedTuple):
    """What of a claim the stages of its batch need to know.

    Attributes:
        batch: Digest of the batch.
        token: The claim's fencing token.
    """

    batch: str
    token: int


def keep(store: ObjectStore, claim: Claim | Work, stage: str, folder: Path) -> None:
    """Keeps what a stage made; when another try has finished it before, theirs stays.

    Args:
        store: Where.
        claim: The batch; its token names the try.
        stage: The stage's name.
        folder: What it made: plain files.
    """
    top = _top(claim, stage)
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    for name, path in files.items():
        store.upload(f"{top}/{claim.token}/{name}", path)
    digests = {name: _sha256_of(path.read_bytes()) for name, path in files.items()}
    record = {"stage": stage, "batch": claim.batch, "token": claim.token, "files": digests}
    store.create(f"{top}/{RECORD}", canonical(record).encode("ascii"))


def kept(store: ObjectStore, claim: Claim | Work, stage: str, into: Path) -> bool:
    """Whether the stage was finished before; then `into` holds what it left, every file with its recorded sha256.

    Args:
        store: Where.
        claim: The batch.
        stage: The stage's name.
        into: A folder; made when missing.

    Raises:
        StorageError: When the record or a file is damaged: remove the stage's prefix, and it runs again.
    """
    top = _top(claim, stage)
    if not store.exists(f"{top}/{RECORD}"):
        return False
    try:
        record = json.loads(store.get(f"{top}/{RECORD}"))
        files = {checked_key(str(name)): str(digest) for name, digest in record["files"].items()}
        token = int(record["token"])
        if (record["stage"], record["batch"]) != (stage, claim.batch) or not all(
            map(_SHA256.fullmatch, files.values())
        ):
            raise ValueError("it is another stage's")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(f"the record {top}/{RECORD} is damaged: delete {top} to run the stage again") from error
    for name, digest in files.items():
        path = into / name
        path.parent.mkdir(parents=True, exist_ok=True)
        store.download(f"{top}/{token}/{name}", path)
        if _sha256_of(path.read_bytes()) != digest:
            raise StorageError(
                f"{top}/{token}/{name} is not what the stage left (another sha256): delete {top} to run it again"
            )
    return True


def propose(store: ObjectStore, claim: Claim, digest: str) -> None:
    """Notes the model that a batch is about to store, so that `sweep` finds it should it never be promoted.

    Raises:
        UsageError: When it is no digest.
    """
    if not _SHA256.fullmatch(digest):
        raise UsageError(f"a model's digest is 64 hexadecimal digits, got {digest[:20]!r}")
    store.create(f"{PREFIX}/{claim.batch}/{CANDIDATES}/{digest}", b"")


def sweep(ledger: Ledger, store: ObjectStore, *, actor: str) -> int:
    """The number of objects removed that batches left which are no longer at work: intermediates, unpromoted models.

    It looks in a writer's turn, so that no batch begins meanwhile, and leaves a model's batches alone while one of them
    is at work: it could be making the very same model. Every run begins with it.

    Args:
        ledger: Which.
        store: Where intermediates and models are kept.
        actor: Who removes them.
    """
    removed = 0
    there = sorted({key.split("/")[1] for key in store.keys(PREFIX) if key.count("/") > 1})
    for batch in (one for one in there if _SHA256.fullmatch(one)):
        with ledger.writing(actor) as writer:
            if _at_work(writer, batch):
                continue
            proposed = {key.rsplit("/", 1)[1] for key in store.keys(f"{PREFIX}/{batch}/{CANDIDATES}")}
            proposed = {digest for digest in proposed if _SHA256.fullmatch(digest)}
            for digest in sorted(proposed - _promoted(writer, proposed)):
                removed += store.delete(f"{MODELS}/{digest}")
            removed += store.delete(f"{PREFIX}/{batch}")
    return removed


def _at_work(writer: Writer, batch: str) -> bool:
    """Whether a batch is at work on the model that this one was about."""
    table = tables.batches
    model = sa.select(table.c.model).where(table.c.batch == batch).scalar_subquery()
    query = sa.select(sa.literal(1)).where(table.c.model == model, tables.ACTIVE)
    return writer.connection.execute(query.limit(1)).first() is not None


def _promoted(writer: Writer, digests: set[str]) -> set[str]:
    """Those of some models that were ever to serve."""
    table = tables.versions
    return set(writer.connection.execute(sa.select(table.c.digest).where(table.c.digest.in_(digests))).scalars())


def _top(claim: Claim | Work, stage: str) -> str:
    return f"{PREFIX}/{claim.batch}/{checked_key(stage)}"


def _sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
