"""What was done for a batch, in one signed statement; and a receipt for each request, which proves to be part of it.

A certificate says which method was run on which model and data, what was measured and against which bounds. It never
says that nothing remains: `NOT_CLAIMED` is part of every one. There are keyed digests in it, and no ids.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from unlearning import __version__
from unlearning.errors import LedgerError, UsageError
from unlearning.ledger import merkle
from unlearning.ledger.events import GENESIS, canonical, digest_of, moment
from unlearning.ledger.signing import opened, sign
from unlearning.storage import ObjectStore

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://kfp-unlearning.dev/unlearning-certificate/v1"
RECEIPT = "unlearning-receipt/1"
PREFIX = "evidence/certificates"
DIGESTS = "fieldDigests"

LEVELS = {
    "erased_exact": "The model was trained again, by the recorded recipe, without the rows of these requests.",
    "erased_certified": "The recorded method was run; its bound holds under the assumptions listed in the limits.",
    "erased_approx_audited": (
        "The recorded unlearning method was run on the model, and the result passed every gate listed here on the "
        "recorded data."
    ),
    "no_data_found": "The recorded data set was searched and no row of it belongs to these requests.",
}
"""The fixed sentence of each claim level, by a batch's outcome."""
NOT_CLAIMED = (
    "It is not claimed that no trace of the data remains in the model: no test can show that. Nothing is said of "
    "attacks other than those listed, nor of copies of the data or of models outside of those recorded here."
)


@dataclass(frozen=True, kw_only=True)
class Served:
    """One request of a batch, as its receipt has it.

    Attributes:
        request: Its keyed digest.
        outcome: One of `LEVELS`.
        submitted_at: When the person asked, as the ledger writes it.
        due_at: When the answer was due.
    """

    request: str
    outcome: str
    submitted_at: str
    due_at: str


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One metric and the bounds that were held against it.

    Attributes:
        metric: Its name.
        value: What was measured.
        standard_error: Of the value; 0 when unknown.
        low: Lower bound, or None.
        high: Upper bound, or None.
        outcome: "pass", "fail" or "inconclusive".
    """

    metric: str
    value: float | None
    standard_error: float
    low: float | None
    high: float | None
    outcome: str


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that a certificate states, in plain JSON types.

    Attributes:
        batch: Digest of the batch's content.
        requests: Every request of the batch.
        outcome: One of `LEVELS`.
        limits: What the method's claim leaves open, one sentence each.
        ledger_seq: Number of the last event when it was made.
        ledger_head: Digest of that event.
        model: Registered model.
        before: Version and digest of the model before.
        after: Version and digest of the model after.
        files: Names of the files of the model after, and the sha256 of each.
        data: manifest, forgetRows, retainRows and exclusionList, as far as they are known.
        method: Name, settings, seed and the rung of the ladder that it was.
        measures: What the gate looked at.
        policy: Digest of the bounds.
        provenance: run, image, versions, device: how it was made.
        picked_at: When the batch was claimed.
        promoted_at: When the alias was read back.
        obligations: What remains around the model, and by when.
        previous: sha256 of the model's certificate before, or 64 zeros.
    """

    batch: str
    requests: Sequence[Served]
    outcome: str
    ledger_seq: int
    ledger_head: str
    model: str
    before: Mapping[str, str]
    after: Mapping[str, str]
    files: Mapping[str, str]
    data: Mapping[str, Any]
    method: Mapping[str, Any]
    measures: Sequence[Measure]
    policy: str
    picked_at: str
    promoted_at: str
    limits: Sequence[str] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    obligations: Mapping[str, Any] = field(default_factory=dict)
    previous: str = GENESIS


def statement(facts: Facts, *, signed_at: datetime, key_id: str) -> dict[str, Any]:
    """The in-toto statement of a batch, with the digest of each of its fields, so that a change is found by name.

    Args:
        facts: What to state.
        signed_at: Now.
        key_id: Of the key that will sign it.

    Raises:
        UsageError: For facts that contradict each other: no requests, an unknown outcome, a gate that did not pass.
    """
    if facts.outcome not in LEVELS or not facts.requests:
        raise UsageError(f"a certificate is about one or more requests and says {', '.join(LEVELS)}")
    if wrong := [one.metric for one in facts.measures if one.outcome != "pass"]:
        raise UsageError(f"the gates {', '.join(wrong)[:200]} did not pass: there is nothing to certify")
    served = sorted(facts.requests, key=lambda one: one.request)
    outcomes: dict[str, int] = {}
    for one in served:
        outcomes[one.outcome] = outcomes.get(one.outcome, 0) + 1
    predicate = {
        "batch": {
            "batchId": facts.batch,
            "requestCount": len(served),
            "requestMerkleRoot": merkle.root(map(_entry, served)).hex(),
            "perRequestOutcomeCounts": outcomes,
            "ledgerSeq": facts.ledger_seq,
            "ledgerHeadSha256": facts.ledger_head,
        },
        "claim": {
            "level": facts.outcome,
            "statement": LEVELS[facts.outcome],
            "notClaimed": NOT_CLAIMED,
            "knownLimits": list(facts.limits),
        },
        "model": {"nameInRegistry": facts.model, "before": dict(facts.before), "after": dict(facts.after)},
        "data": dict(facts.data),
        "method": dict(facts.method),
        "gates": {"policySha256": facts.policy, "measured": [asdict(one) for one in facts.measures]},
        "provenance": {"program": f"kfp-unlearning {__version__}", **facts.provenance},
        "times": {
            "submittedFirst": min(one.submitted_at for one in served),
            "submittedLast": max(one.submitted_at for one in served),
            "dueFirst": min(one.due_at for one in served),
            "pickedAt": facts.picked_at,
            "promotedAt": facts.promoted_at,
            "dueDatesMet": all(facts.promoted_at <= one.due_at for one in served),
        },
        "obligations": dict(facts.obligations),
        "integrity": {
            "previousCertificateSha256": facts.previous,
            "signerKeyId": key_id,
            "signedAt": moment(signed_at),
        },
    }
    files = sorted(facts.files.items())
    bare = {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": sha256}} for name, sha256 in files],
        "predicateType": PREDICATE,
        "predicate": predicate,
    }
    predicate[DIGESTS] = {path: digest_of(value) for path, value in leaves(bare)}
    return bare


def publish(store: ObjectStore, facts: Facts, signer: CryptoSigner, *, now: datetime) -> str:
    """sha256 of the batch's certificate in the store, made now or by an earlier try of the same.

    Raises:
        LedgerError: When the store has one that says something else about the batch.
    """
    key_id = str(signer.public_key.keyid)
    key = f"{PREFIX}/{facts.batch}.dsse.json"
    made = statement(facts, signed_at=now, key_id=key_id)
    data = sign(made, signer)
    if not store.create(key, data):
        data = store.get(key)
        if _lasting(opened(data)[1]) != _lasting(made):
            raise LedgerError(
                f"{key} states other facts about the batch: find out who wrote it; a certificate is never replaced"
            )
    return hashlib.sha256(data).hexdigest()


def receipts(data: bytes, requests: Sequence[Served], *, wanted: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """The receipts of a batch's requests, each with its proof, in the order of their digests.

    Args:
        data: The signed certificate.
        requests: All requests of the batch, as when it was made.
        wanted: Only these; all when empty.

    Raises:
        LedgerError: When these are not the requests of the certificate.
    """
    batch = opened(data)[1]["predicate"]["batch"]
    served = sorted(requests, key=lambda one: one.request)
    tree = merkle.Tree([_entry(one) for one in served])
    if tree.root.hex() != batch["requestMerkleRoot"]:
        raise LedgerError(f"the requests of batch {batch['batchId'][:12]} are not those of its certificate: restore it")
    certificate, only = hashlib.sha256(data).hexdigest(), set(wanted)
    for place, one in enumerate(served):
        if only and one.request not in only:
            continue
        yield {
            "schema": RECEIPT,
            "certificateSha256": certificate,
            "content": asdict(one),
            "statement": LEVELS[one.outcome],
            "notClaimed": NOT_CLAIMED,
            "proof": {
                "index": place,
                "size": len(served),
                "beside": [digest.hex() for digest in tree.proof(place)],
            },
        }


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every plain value inside a JSON value, and every empty list or object, with its JSON pointer."""
    if isinstance(value, dict) and value:
        for name in sorted(value):
            yield from leaves(value[name], f"{path}/{name.replace('~', '~0').replace('/', '~1')}")
    elif isinstance(value, list) and value:
        for place, inside in enumerate(value):
            yield from leaves(inside, f"{path}/{place}")
    else:
        yield path, value


def entry_of(content: Mapping[str, Any]) -> bytes:
    """What the tree holds for a receipt's content."""
    return canonical(content).encode("ascii")


def _entry(one: Served) -> bytes:
    return entry_of(asdict(one))


def _lasting(made: dict[str, Any]) -> dict[str, Any]:
    """The statement without what differs from one try to the next: when it was signed, by which key, and the head."""
    changing = (
        "/predicate/integrity/signedAt",
        "/predicate/integrity/signerKeyId",
        "/predicate/batch/ledgerSeq",
        "/predicate/batch/ledgerHeadSha256",
    )
    return {
        path: value
        for path, value in leaves(made)
        if path not in changing and not path.startswith(f"/predicate/{DIGESTS}/")
    }
