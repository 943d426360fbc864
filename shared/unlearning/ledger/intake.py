"""Files of requests into the ledger: good rows are filed, bad ones reported by line and reason."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unlearning.errors import DataError
from unlearning.ledger.events import moment
from unlearning.ledger.filing import Filed, Holds, file_requests
from unlearning.ledger.readers import rows
from unlearning.ledger.requests import DeletionRequest, request_from
from unlearning.ledger.store import Ledger

MOST_SHOWN = 1000
"""Rejects that a report holds; the file of rejects has all."""


@dataclass
class Report:
    """What became of a file.

    Attributes:
        sha256: Of the file.
        accepted: Rows that are new requests.
        repeated: Rows that were filed before, or twice in the file.
        twins: Accepted rows that ask for the same as another open request.
        conflicts: Rows whose key came before with another content.
        rejected: Rows that were not filed, conflicts included.
        rejects: Line and reason of the first thousand of them.
    """

    sha256: str
    accepted: int = 0
    repeated: int = 0
    twins: int = 0
    conflicts: int = 0
    rejected: int = 0
    rejects: list[tuple[int, str]] = field(default_factory=list)


def import_file(
    ledger: Ledger,
    path: Path,
    *,
    actor: str,
    defaults: Mapping[str, str] | None = None,
    hold: Holds = lambda request: None,
    rejects: Path | None = None,
) -> Report:
    """What became of a file of requests; importing it again files nothing twice.

    Args:
        ledger: Where.
        path: Ends in .jsonl, .csv or .parquet; see `readers.rows`.
        actor: The role or process that imports.
        defaults: Fields for rows that lack them: controller, model, regulation. A row without `submitted_at` gets now.
        hold: As for `file_requests`.
        rejects: Where all rejects are written, as JSON Lines of line and reason.

    Raises:
        DataError: When the file as a whole cannot be read. Rows before the place are filed.
    """
    report = Report(_sha256(path))
    filled = {"submitted_at": moment(ledger.clock()), **(defaults or {})}
    out = rejects.open("w", encoding="ascii") if rejects is not None else None
    lines: deque[int] = deque()

    def reject(line: int, reason: str) -> None:
        report.rejected += 1
        if len(report.rejects) < MOST_SHOWN:
            report.rejects.append((line, reason))
        if out is not None:
            out.write(json.dumps({"line": line, "reason": reason}) + "\n")

    def good() -> Iterator[DeletionRequest]:
        for row in rows(path):
            if row.values is None:
                reject(row.line, row.reason)
                continue
            try:
                request = request_from({**filled, **row.values})
            except DataError as error:
                reject(row.line, str(error))
                continue
            lines.append(row.line)
            yield request

    try:
        for filed in file_requests(ledger, good(), actor=actor, hold=hold):
            _count(report, filed, lines.popleft(), reject)
    finally:
        if out is not None:
            out.close()
    if report.accepted or report.conflicts:
        counts: dict[str, Any] = {"accepted": report.accepted, "repeated": report.repeated, "rejected": report.rejected}
        with ledger.writing(actor) as writer:
            writer.append("imported", body={"sha256": report.sha256, **counts})
    return report


def _count(report: Report, filed: Filed, line: int, reject: Callable[[int, str], None]) -> None:
    report.accepted += filed.status == "accepted"
    report.repeated += filed.status == "repeated"
    report.conflicts += filed.status == "conflict"
    report.twins += bool(filed.twin_of)
    if filed.reason:
        reject(line, filed.reason)


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path.name}: {error.strerror or type(error).__name__}: check the path") from error
