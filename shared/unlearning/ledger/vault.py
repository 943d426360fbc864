"""The one place where raw ids are kept: the restricted prefix of the object store, emptied after closing.

Requests that came together lie together in a parcel. A parcel is never changed: taking requests out of it writes a new
one with the others and deletes the old one with all its versions; the ledger says which request lies in which.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from unlearning.errors import StorageError
from unlearning.storage import ObjectStore

PREFIX = "requests"
PARCEL_REQUESTS = 1000
"""Requests that lie together at most."""

_NAME = re.compile(r"requests/(\d{8}T\d{6})-[0-9a-f]{32}\.jsonl")


@dataclass(frozen=True)
class Kept:
    """What the vault knows of one request.

    Attributes:
        ref: Its keyed digest.
        key: The controller's own name of it.
        kind: "class", "subject", "sample", "target" or "period".
        ids: The raw ids.
    """

    ref: str
    key: str
    kind: str
    ids: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Kept(ref={self.ref!r}, kind={self.kind!r}, {len(self.ids)} ids)"


class Vault:
    """Raw ids in an object store, beneath "requests/".

    Args:
        store: Whose prefix only the roles that select rows may read.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def put(self, kept: Iterable[Kept], at: datetime) -> str:
        """The key of a new parcel.

        Args:
            kept: What goes into it.
            at: Now, in UTC; part of the key, so that leftovers are known by their age.
        """
        key = f"{PREFIX}/{at:%Y%m%dT%H%M%S}-{secrets.token_hex(16)}.jsonl"
        lines = [
            json.dumps({"ref": one.ref, "key": one.key, "kind": one.kind, "ids": one.ids}, separators=(",", ":"))
            for one in kept
        ]
        if not self._store.create(key, "".join(f"{line}\n" for line in lines).encode()):
            raise StorageError(f"the parcel {key} is there already: the random source repeats itself, mend it")
        return key

    def read(self, key: str) -> Iterator[Kept]:
        """What a parcel holds.

        Raises:
            StorageError: When it is gone or damaged.
        """
        if not _NAME.fullmatch(key):
            raise StorageError("that key names no parcel of ids: take it from the ledger")
        try:
            for line in self._store.get(key).decode().splitlines():
                record = json.loads(line)
                yield Kept(str(record["ref"]), str(record["key"]), str(record["kind"]), tuple(record["ids"]))
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(f"the parcel {key} is damaged ({type(error).__name__}): restore it") from error

    def holds(self, key: str) -> bool:
        """Whether the parcel is there."""
        return self._store.exists(key)

    def drop(self, key: str) -> int:
        """The number of versions removed of a parcel; 0 when it was gone."""
        if not _NAME.fullmatch(key):
            raise StorageError("that key names no parcel of ids: take it from the ledger")
        return self._store.delete(key)

    def parcels(self, before: datetime) -> Iterator[str]:
        """The keys of the parcels that are older than a time."""
        limit = f"{before:%Y%m%dT%H%M%S}"
        for key in self._store.keys(PREFIX):
            found = _NAME.fullmatch(key)
            if found and found[1] < limit:
                yield key
