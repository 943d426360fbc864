"""Certificates and receipts looked at by somebody else: offline, with the file, the public key, and the model.

Each line says verified, failed or not checked. What a line cannot know is said to be not checked, never verified.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unlearning.errors import DataError
from unlearning.ledger import merkle
from unlearning.ledger.certificate import DIGESTS, LEVELS, NOT_CLAIMED, PREDICATE, RECEIPT, STATEMENT, entry_of, leaves
from unlearning.ledger.events import digest_of, time_of
from unlearning.ledger.signing import holds, opened, parsed

if TYPE_CHECKING:
    from securesystemslib.signer import SSlibKey

Mark = Literal["verified", "not checked", "failed"]

_SHA256 = re.compile("[0-9a-f]{64}")
_NAMED = 8


@dataclass(frozen=True)
class Line:
    """One thing that was looked at.

    Attributes:
        mark: "verified", "not checked" or "failed".
        what: What it is about.
        detail: What was found.
    """

    mark: Mark
    what: str
    detail: str


def check_certificate(
    data: bytes, key: SSlibKey, *, model: Path | None = None, before: bytes | None = None
) -> list[Line]:
    """What holds of a certificate, line by line.

    Args:
        data: The file's content.
        key: The public key, from whom you trust; never from beside the certificate.
        model: Folder of the model that it is about, or None.
        before: Content of the certificate before it, or None.
    """
    try:
        envelope, stated = opened(data)
    except DataError as error:
        return [Line("failed", "form", str(error))]
    signed = holds(envelope, key)
    lines = [_signature(envelope, key, signed), *_fields(stated)]
    if not signed or any(line.mark == "failed" for line in lines):
        return [*lines, Line("not checked", "content", "whoever changed it may have changed all of it")]
    try:
        predicate = stated["predicate"]
        lines += [
            _line("type", stated["_type"] == STATEMENT and stated["predicateType"] == PREDICATE, PREDICATE),
            _line("key", predicate["integrity"]["signerKeyId"] == key.keyid, f"it names the key {key.keyid[:12]}"),
            *_claim(predicate),
            *_gates(predicate),
            _times(predicate),
            _model(stated, model),
            _chain(predicate, before),
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return [*lines, Line("failed", "content", f"a field is missing or of another type ({error})"[:200])]
    return [
        *lines,
        Line("not checked", "requests", "their list is in the ledger; a receipt proves that it is part of it"),
        Line("not checked", "ledger", f"event {predicate['batch']['ledgerSeq']}: compare it with the published heads"),
        Line(
            "not checked", "measurements", "they are as measured by the signer; measure again with the model and data"
        ),
        Line("not checked", "what remains", NOT_CLAIMED),
    ]


def check_receipt(receipt: bytes, certificate: bytes, key: SSlibKey) -> list[Line]:
    """What holds of a request's receipt, line by line; those of the certificate it belongs to come first.

    Args:
        receipt: The file's content.
        certificate: Content of the signed certificate.
        key: The public key of who signed that.
    """
    lines = check_certificate(certificate, key)
    if any(line.mark == "failed" for line in lines):
        return [*lines, Line("not checked", "receipt", "its certificate does not hold")]
    batch = opened(certificate)[1]["predicate"]["batch"]
    try:
        given = parsed(receipt.decode("ascii"))
        if set(given) != {"schema", "certificateSha256", "content", "statement", "notClaimed", "proof"}:
            raise ValueError("it has other fields than a receipt")
        content, proof = given["content"], given["proof"]
        size, index, beside = proof["size"], proof["index"], [bytes.fromhex(one) for one in proof["beside"]]
        if set(proof) != {"size", "index", "beside"} or [one.hex() for one in beside] != proof["beside"]:
            raise ValueError("its proof has another form")
        included = type(index) is int and merkle.is_included(
            entry_of(content), index, batch["requestCount"], beside, bytes.fromhex(batch["requestMerkleRoot"])
        )
        lines += [
            _line("receipt: schema", given["schema"] == RECEIPT, RECEIPT),
            _line(
                "receipt: certificateSha256",
                given["certificateSha256"] == hashlib.sha256(certificate).hexdigest(),
                "it names this certificate",
            ),
            _line("receipt: content, proof", included, "the request with this outcome and dates is in the batch"),
            _line("receipt: proof/size", type(size) is int and size == batch["requestCount"], f"{size} requests"),
            _line("receipt: statement", given["statement"] == LEVELS.get(content.get("outcome")), "the fixed sentence"),
            _line("receipt: notClaimed", given["notClaimed"] == NOT_CLAIMED, "the fixed sentence"),
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        lines.append(Line("failed", "receipt: form", f"it is no receipt of this version ({error})"[:200]))
    return lines


def ok(lines: list[Line]) -> bool:
    """Whether nothing failed."""
    return all(line.mark != "failed" for line in lines)


def _signature(envelope: dict[str, Any], key: SSlibKey, signed: bool) -> Line:
    by = ", ".join(str(one["keyid"])[:12] for one in envelope["signatures"]) or "nobody"
    if signed:
        return Line("verified", "signature", f"signed by the key {by}")
    return Line("failed", "signature", f"the key {key.keyid[:12]} did not sign this content (it names {by})")


def _fields(stated: dict[str, Any]) -> Iterator[Line]:
    """The fields that were changed, added or removed since the statement was made, by name."""
    predicate = stated.get("predicate")
    digests = predicate.get(DIGESTS) if isinstance(predicate, dict) else None
    if not isinstance(predicate, dict) or not isinstance(digests, dict):
        yield Line("failed", "fields", "the digests of the fields are missing")
        return
    bare = {**stated, "predicate": {name: value for name, value in predicate.items() if name != DIGESTS}}
    now = {path: digest_of(value) for path, value in leaves(bare)}
    wrong = sorted(path for path in now.keys() | digests.keys() if now.get(path) != digests.get(path))
    for path in wrong[:_NAMED]:
        change = (
            "was added" if path not in digests else "was removed" if path not in now else "or its digest was changed"
        )
        yield Line("failed", f"field {path}", f"it {change} after it was written")
    if len(wrong) > _NAMED:
        yield Line("failed", "fields", f"{len(wrong) - _NAMED} more were changed")
    if not wrong:
        yield Line("verified", "fields", f"{len(now)} values are as they were written")


def _claim(predicate: dict[str, Any]) -> Iterator[Line]:
    claim, batch = predicate["claim"], predicate["batch"]
    level = claim["level"]
    yield _line("claim", claim["statement"] == LEVELS.get(level), f"{level}: {claim['statement']}")
    yield _line("not claimed", claim["notClaimed"] == NOT_CLAIMED, "the fixed sentence is there")
    counts = batch["perRequestOutcomeCounts"]
    yield _line("counts", sum(counts.values()) == batch["requestCount"] > 0, f"{batch['requestCount']} requests")
    digests = (batch["batchId"], batch["requestMerkleRoot"], batch["ledgerHeadSha256"])
    yield _line("batch", all(_SHA256.fullmatch(one) for one in digests), batch["batchId"][:12])


def _gates(predicate: dict[str, Any]) -> Iterator[Line]:
    """Each gate held against its own bounds again."""
    measured = predicate["gates"]["measured"]
    for one in measured:
        value, low, high = one["value"], one["low"], one["high"]
        inside = value is not None and (low is None or value >= low) and (high is None or value <= high)
        bounds = f"{'' if low is None else f'{low:g} <= '}{value}{'' if high is None else f' <= {high:g}'}"
        yield _line(f"gate {one['metric']}", inside and one["outcome"] == "pass", bounds)
    if not measured and predicate["claim"]["level"] != "no_data_found":
        yield Line("failed", "gates", "nothing was measured")


def _times(predicate: dict[str, Any]) -> Line:
    times = predicate["times"]
    order = [time_of(times[name]) for name in ("submittedFirst", "submittedLast")]
    order += [time_of(times["pickedAt"]), time_of(times["promotedAt"]), time_of(predicate["integrity"]["signedAt"])]
    met = bool(times["dueDatesMet"])
    in_order = order[0] <= order[1] and order[2:] == sorted(order[2:])
    honest = met == (time_of(times["promotedAt"]) <= time_of(times["dueFirst"]))
    if honest and not in_order:
        return Line("not checked", "times", "they are out of order: the signer's clock was set back meanwhile")
    return _line("times", honest, f"due dates were {'met' if met else 'missed'}; by the signer's clock")


def _model(stated: dict[str, Any], folder: Path | None) -> Line:
    """The subjects are the model's files, and there is no other file."""
    subjects = {one["name"]: one["digest"]["sha256"] for one in stated["subject"]}
    if folder is None:
        return Line("not checked", "model", "give the model's folder to compare its files")
    try:
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        wrong = [name for name in subjects if name not in files or _sha256(files[name]) != subjects[name]]
    except OSError as error:
        return Line("failed", "model", f"its folder cannot be read: {error.strerror}")
    wrong += [name for name in files if name not in subjects]
    if wrong or not subjects:
        return Line("failed", "model", f"not the files of the certificate: {', '.join(wrong[:_NAMED]) or 'none named'}")
    return Line("verified", "model", f"{len(subjects)} files have the recorded sha256")


def _chain(predicate: dict[str, Any], before: bytes | None) -> Line:
    previous = predicate["integrity"]["previousCertificateSha256"]
    if before is None:
        first = not previous.strip("0")
        return Line("not checked", "certificate before", "it is the first" if first else f"give {previous[:12]}")
    same = hashlib.sha256(before).hexdigest() == previous
    return _line("certificate before", same, f"it follows on {previous[:12]}")


def _line(what: str, holds: bool, detail: str) -> Line:
    return Line("verified" if holds else "failed", what, detail if holds else f"does not hold: {detail}"[:300])


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
