"""What finished stages of a batch left, under hashes, so that a batch that is taken over goes on instead of over again.

A stage's files go under the token of the try that made them; its completion record is written last and only once, and
names them with their sha256. A stage is finished when the record is there and every file still has its digest.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from unlearning.errors import StorageError
from unlearning.ledger.claims import Claim
from unlearning.ledger.events import canonical
from unlearning.storage import ObjectStore
from unlearning.storage.keys import checked_key

PREFIX = "work"
RECORD = "done.json"
_SHA256 = re.compile("[0-9a-f]{64}")


def keep(store: ObjectStore, claim: Claim, stage: str, folder: Path) -> None:
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


def kept(store: ObjectStore, claim: Claim, stage: str, into: Path) -> bool:
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


def drop(store: ObjectStore, claim: Claim) -> int:
    """The number of intermediate objects removed of a batch, all versions of them."""
    return store.delete(f"{PREFIX}/{claim.batch}")


def _top(claim: Claim, stage: str) -> str:
    return f"{PREFIX}/{claim.batch}/{checked_key(stage)}"


def _sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
