"""Files dropped under a prefix of the object store: each is imported, reported on, and only then removed.

A drop lies at `requests/inbox/CONTROLLER/MODEL/NAME`, and the folders fill in what its rows do not say; higher up, the
rows name controller and model themselves. What ends in .json is one OpenDSR request. A report, named by the digests of
a file's path and content, says what became of it, and is the mark that it was done: a run that is killed before does it
again, which files nothing twice, and two runs that race file the same requests under the same names. A file that cannot
be read as a whole is moved to `requests/refused/`, beside nothing but its report's name: it no longer waits for a run,
but for a person.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from unlearning.errors import DataError, StorageError, UsageError
from unlearning.ledger import opendsr
from unlearning.ledger.filing import Holds
from unlearning.ledger.intake import import_file
from unlearning.ledger.store import Ledger
from unlearning.storage import ObjectStore
from unlearning.storage.keys import checked_key, relative

PREFIX = "requests/inbox"
REPORTS = "requests/reports"
REFUSED = "requests/refused"
"""Where files lie that were not read, each under the name of its report and its own."""
UNFINISHED = (".part", ".tmp")
"""Ends of names that are left alone: somebody still writes there."""
FORMS = (".jsonl", ".ndjson", ".csv", ".parquet", ".json")
"""Ends of names that are read."""
_FOLDERS = ("controller", "model")


@dataclass(frozen=True)
class Drop:
    """What became of a dropped file.

    Attributes:
        report: Key of its report; empty for a name that no store can keep.
        accepted: Requests that are new; 1 for an OpenDSR request that was taken in, also again.
        repeated: Rows that were filed before.
        rejected: Rows that were not filed; the report has their lines and reasons.
        refused: Why the file as a whole was not read; else "".
        answer: To an OpenDSR request, in its form.
        moved: Where a file that was not read lies now; empty for a name that no store can keep, which stays.
    """

    report: str
    accepted: int = 0
    repeated: int = 0
    rejected: int = 0
    refused: str = ""
    answer: dict[str, Any] = field(default_factory=dict)
    moved: str = ""


def take_in(ledger: Ledger, store: ObjectStore, *, actor: str, hold: Holds = lambda request: None) -> list[Drop]:
    """What became of every file in the inbox that was not done before; none is left there that a store can name.

    A drop is never changed after it was made: another one has another name. One that does change is read again.

    Args:
        ledger: Where the requests are filed.
        store: Whose inbox.
        actor: The process that takes them in.
        hold: As for `file_requests`.
    """
    return [done for key in list(store.keys(PREFIX)) if (done := _taken(ledger, store, key, actor, hold)) is not None]


def waiting(store: ObjectStore) -> bool:
    """Whether any file lies in the inbox that a run can take in."""
    return any(not key.endswith(UNFINISHED) and _is_safe(key) for key in store.keys(PREFIX))


def refused_files(store: ObjectStore) -> list[str]:
    """The keys of files that were not read and wait for a person: to be mended and dropped again, and removed."""
    return list(store.keys(REFUSED))


def _is_safe(key: str) -> bool:
    try:
        return bool(checked_key(key))
    except StorageError:
        return False


def _taken(ledger: Ledger, store: ObjectStore, key: str, actor: str, hold: Holds) -> Drop | None:
    if key.endswith(UNFINISHED) or key == PREFIX:
        return None
    if not _is_safe(key):
        return Drop("", refused="a file's name has characters or parts that no key may have: name it otherwise")
    name = relative(key, PREFIX)
    with tempfile.TemporaryDirectory(prefix="unlearn-") as folder:
        suffix = PurePosixPath(name).suffix.lower()
        path = Path(folder, f"drop{suffix if suffix in FORMS else ''}")
        if (digest := _fetched(store, key, path)) is None:
            return None
        mark = f"{hashlib.sha256(name.encode()).hexdigest()[:16]}-{digest[:16]}"
        report = f"{REPORTS}/{mark}.json"
        made: Drop | None = None
        if store.exists(report):
            if refused := str(json.loads(store.get(report))["refused"]):
                made = Drop(report, refused=refused, moved=_beside(mark, name))
        else:
            made, rejects = _filed(ledger, path, name, report, actor, hold)
            made = replace(made, moved=_beside(mark, name)) if made.refused else made
            store.create(
                report,
                json.dumps({"file": name, **asdict(made), "rejects": rejects}, indent=1, sort_keys=True).encode(),
            )
        if made is not None and made.moved and not store.exists(made.moved):  # whose name holds the content's digest
            store.upload(made.moved, path)
        # Its folder could hold more under the same name, and somebody may have written over it meanwhile.
        again = Path(folder, "again")
        if list(store.keys(key)) == [key] and _fetched(store, key, again) == digest:
            store.delete(key)
        return made


def _beside(mark: str, name: str) -> str:
    """Where a refused file goes: under its whole name, or the end of it where that is too long for a key."""
    whole = f"{REFUSED}/{mark}/{name}"
    return whole if _is_safe(whole) else f"{REFUSED}/{mark}/{PurePosixPath(name).name}"


def _filed(
    ledger: Ledger, path: Path, name: str, report: str, actor: str, hold: Holds
) -> tuple[Drop, list[dict[str, Any]]]:
    """What became of a file's rows, and those that were rejected."""
    given = dict(zip(_FOLDERS, PurePosixPath(name).parent.parts, strict=False))
    try:
        if path.suffix == ".json":
            return _answered(ledger, path, given, report, actor, hold), []
        found = import_file(ledger, path, actor=actor, defaults=given, hold=hold)
    except (DataError, UsageError) as error:
        return Drop(report, refused=str(error)), []
    rejects = [{"line": line, "reason": reason} for line, reason in found.rejects]
    return Drop(report, found.accepted, found.repeated, found.rejected), rejects


def _answered(ledger: Ledger, path: Path, given: dict[str, str], report: str, actor: str, hold: Holds) -> Drop:
    if len(given) < len(_FOLDERS):
        raise UsageError(f"an OpenDSR request is dropped in {PREFIX}/CONTROLLER/MODEL/, which names what it does not")
    with path.open("rb") as file:
        body = file.read(opendsr.MOST_BYTES + 1)
    status, answer = opendsr.accept(
        ledger, body, actor=actor, controller=given["controller"], model=given["model"], hold=hold
    )
    answer.pop("encoded_request", None)  # it repeats the identities, and this is kept
    if status != 201:
        return Drop(report, rejected=1, answer={"status": status, **answer})
    return Drop(report, accepted=1, answer={"status": status, **answer})


def _fetched(store: ObjectStore, key: str, path: Path) -> str | None:
    """sha256 of an object that is now in a file; None when another run has removed it."""
    try:
        store.download(key, path)
    except StorageError:
        if store.exists(key):
            raise
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def totals(drops: list[Drop]) -> str:
    """What became of some drops, in a line."""
    counts = {name: sum(getattr(one, name) for one in drops) for name in ("accepted", "repeated", "rejected")}
    refused = sum(bool(one.refused) for one in drops)
    text = f"{len(drops)} files in the inbox: {counts['accepted']} requests accepted, {counts['repeated']} filed before"
    moved = f", moved to {REFUSED}/" if refused else ""
    return f"{text}, {counts['rejected']} rejected, {refused} files refused{moved}; see {REPORTS}/"
