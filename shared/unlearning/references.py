"""The reference bank: retrained and shadow models, built once, found again by what they were built from.

A verdict compares an unlearned model with models that never saw the forgotten rows. Those are costly, so each is kept
under the digest of everything that decides it; whoever needs the same one finds it. Layout in the store:

- `references/<key>/<bundle digest>/`: the model's bundle;
- `references/<key>/reference.json`: what it was built from, and which bundle counts. It is written last and never
  changed: of builders that run at once, one settles it and the others take what that one made;
- `references/index/<manifest digest>/<key>`: an empty mark, for listing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from unlearning import __version__
from unlearning.config import build
from unlearning.errors import ModelError, StorageError, UsageError
from unlearning.models.bundle import Bundle, read_bundle
from unlearning.storage import ObjectStore, download_folder, upload_folder

SCHEMA = "unlearning-reference/1"
ROOT = "references"
RECORD = "reference.json"

_SHA256 = re.compile(r"[0-9a-f]{64}")


def rows_digest(rows: Iterable[int]) -> str:
    """sha256 of a set of row numbers, whatever their order or repetition.

    Args:
        rows: From 0 on.
    """
    distinct = sorted(set(rows))
    return hashlib.sha256(",".join(map(str, distinct)).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What decides a reference model, in plain JSON types.

    Attributes:
        manifest_sha256: Digest of the training manifest.
        left_out_sha256: Digest of the rows that it never saw: a request's forget set, or those that a shadow skips
            (`rows_digest`).
        architecture: Name of the network.
        arguments: Its settings.
        recipe: How it is trained.
        seed: Of initial weights and order.
        method: For a shadow that was unlearned afterwards: how (name, settings, seed) and which rows; else None.
        code_version: Of the program that trains it: another version may train otherwise.

    Raises:
        UsageError: For digests that are none, or values that JSON cannot hold.
    """

    manifest_sha256: str
    left_out_sha256: str
    architecture: str
    recipe: Mapping[str, Any]
    seed: int
    arguments: Mapping[str, Any] = field(default_factory=dict)
    method: Mapping[str, Any] | None = None
    code_version: str = __version__

    def __post_init__(self) -> None:
        """Refuse what no key can be made of."""
        for name in ("manifest_sha256", "left_out_sha256"):
            if not _SHA256.fullmatch(getattr(self, name)):
                raise UsageError(f"reference: {name} wants a sha256 (64 hex digits), got {getattr(self, name)[:80]!r}")
        try:
            json.dumps(asdict(self), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise UsageError(f"reference: it cannot be written as JSON ({error}); use plain finite values") from error

    @cached_property
    def key(self) -> str:
        """sha256 of all of it as canonical JSON."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A reference that is there.

    Attributes:
        reference: What it was built from.
        digest: Of its bundle.
    """

    reference: Reference
    digest: str

    @property
    def prefix(self) -> str:
        """Where its bundle lies in the store."""
        return f"{ROOT}/{self.reference.key}/{self.digest}"


def find(store: ObjectStore, wanted: Reference) -> Stored | None:
    """The reference built from just this, or None while there is none.

    Raises:
        StorageError: When its record is not one, or is of something else.
    """
    return _read(store, wanted.key)


def save(store: ObjectStore, reference: Reference, folder: Path) -> Stored:
    """The reference as it now stands: this bundle, or the one that another builder settled first.

    An interrupted call is repeated as it is. A bundle that was not taken is removed again.

    Args:
        store: Where to.
        reference: What the bundle was built from.
        folder: The bundle, made by `save_bundle`.

    Raises:
        ModelError: When the folder is no bundle, or its card speaks of other data or another network.
        StorageError: When the store fails.
    """
    bundle = read_bundle(folder)
    _check(bundle, reference)
    if (found := find(store, reference)) is not None:
        return found
    mine = Stored(reference=reference, digest=bundle.digest)
    upload_folder(store, mine.prefix, folder)
    store.create(_mark(reference), b"")
    if store.create(f"{ROOT}/{reference.key}/{RECORD}", _record(mine)):
        return mine
    settled = _read(store, reference.key)
    if settled is None:
        raise StorageError(f"the reference {reference.key} was removed while it was stored: store it again")
    if settled.digest != mine.digest:
        store.delete(mine.prefix)
    return settled


def fetch(store: ObjectStore, stored: Stored, into: Path) -> Bundle:
    """The reference's bundle in a local folder, checked against its record.

    Raises:
        StorageError: When it is not there.
        ModelError: When it is not the bundle that the record names.
    """
    bundle = read_bundle(download_folder(store, stored.prefix, into))
    if bundle.digest != stored.digest:
        raise ModelError(
            f"the bundle at {stored.prefix} has the digest {bundle.digest}, its record names {stored.digest}: remove "
            "the reference and build it again"
        )
    _check(bundle, stored.reference)
    return bundle


def of_manifest(store: ObjectStore, manifest_sha256: str) -> list[Stored]:
    """Every reference built from the manifest, in the order of their keys.

    Raises:
        StorageError: When a record is not one.
    """
    prefix = f"{ROOT}/index/{manifest_sha256}"
    keys = [mark.rpartition("/")[2] for mark in store.keys(prefix)]
    found = (_read(store, key) for key in keys)
    return [one for one in found if one is not None]


def remove(store: ObjectStore, reference: Reference) -> int:
    """The number of objects removed: the reference is gone, with its record, its mark and unfinished bundles.

    A reference has seen every row but those left out: it must go when one of those is to be forgotten.
    """
    return store.delete(f"{ROOT}/{reference.key}") + store.delete(_mark(reference))


def _mark(reference: Reference) -> str:
    return f"{ROOT}/index/{reference.manifest_sha256}/{reference.key}"


def _record(stored: Stored) -> bytes:
    values = {"schema": SCHEMA, "bundle": stored.digest, "reference": asdict(stored.reference)}
    return (json.dumps(values, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _read(store: ObjectStore, key: str) -> Stored | None:
    at = f"{ROOT}/{key}/{RECORD}"
    if not store.exists(at):
        return None
    try:
        values = json.loads(store.get(at))
        schema, digest = values["schema"], values["bundle"]
        reference = build(Reference, values["reference"], what="reference")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StorageError(
            f"{at} is no reference's record ({error}): remove it and build the reference again"
        ) from error
    if schema != SCHEMA or not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise StorageError(f"{at} has the schema {schema!r}, this version reads {SCHEMA!r}: build the reference again")
    if reference.key != key:
        raise StorageError(f"{at} is the record of {reference.key}: remove it and build the reference again")
    return Stored(reference=reference, digest=digest)


def _check(bundle: Bundle, reference: Reference) -> None:
    for name in ("manifest_sha256", "architecture"):
        said, wanted = getattr(bundle.card, name), getattr(reference, name)
        if said != wanted:
            raise ModelError(
                f"the bundle's {name} is {said or 'unknown'}, the reference's {wanted}: store its own bundle"
            )
