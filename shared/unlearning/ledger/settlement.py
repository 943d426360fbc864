"""From a claimed batch to the ids that its rows are selected by, and from a promoted model to closed requests.

Both ends may be repeated after any interruption: what an earlier try did is found and left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from unlearning.errors import UsageError
from unlearning.ledger import tables
from unlearning.ledger.certificate import Facts, Served, publish
from unlearning.ledger.claims import Claim, batch_members, dissolve
from unlearning.ledger.events import GENESIS, Event
from unlearning.ledger.exclusion import exclude
from unlearning.ledger.filing import not_found, read_ids
from unlearning.ledger.promotion import settle, standing
from unlearning.ledger.store import Ledger
from unlearning.storage import ObjectStore

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner


@dataclass(frozen=True)
class Wanted:
    """What a batch asks to be forgotten.

    Attributes:
        ids: Those that the data set knows, sorted; empty when nothing is left to do, and the batch is dissolved.
        requests: How many requests they come from.
        missing: How many requests were closed, for none of their ids is in the data set.
    """

    ids: tuple[str, ...]
    requests: int
    missing: int


def prepare(ledger: Ledger, claim: Claim, is_known: Callable[[str], bool], *, evidence: str) -> Wanted:
    """What the batch asks to be forgotten; requests about nothing that there is are closed with their evidence.

    Args:
        ledger: Which.
        claim: Before the point of no return.
        is_known: Whether an id is in the data set.
        evidence: Digest of the manifest that was searched.

    Raises:
        ClaimLostError: When the batch is no longer this process's.
    """
    ids: set[str] = set()
    there, missing = 0, list[str]()
    members = batch_members(ledger, claim)
    for kept in read_ids(ledger, members):
        known = [value for value in kept.ids if is_known(value)]
        ids.update(known)
        there += bool(known)
        if not known:
            missing.append(kept.ref)
    if missing:
        not_found(ledger, missing, evidence=evidence, actor=claim.owner)
    if not there:
        dissolve(ledger, claim, "no row of the data set belongs to its requests")
    return Wanted(tuple(sorted(ids)), there, len(missing))


def settle_batch(
    ledger: Ledger,
    store: ObjectStore,
    signer: CryptoSigner,
    claim: Claim,
    *,
    outcome: str,
    facts: Mapping[str, Any],
    obligations: Mapping[str, Any],
) -> str:
    """sha256 of the certificate, after the batch's requests were served and closed.

    Args:
        ledger: Which.
        store: Where evidence is kept.
        signer: Of the certificate.
        claim: Promoted and confirmed.
        outcome: "erased_exact", "erased_certified" or "erased_approx_audited".
        facts: The fields of `Facts` that the ledger does not know: before, after, files, data, method, measures,
            policy, limits, provenance.
        obligations: What remains around the model, and by when.

    Raises:
        ClaimLostError: When the batch is no longer this process's.
        UsageError: When its promotion is not confirmed.
    """
    happened = {one.kind: one for one in _events(ledger, claim.batch)}
    if "settled" in happened:
        certificate = str(happened["settled"].content["certificate"])
    elif "confirmed" not in happened:
        raise UsageError("the promotion is not confirmed: move the alias, read it back and confirm it first")
    else:
        exclusion = exclude(
            store, ledger.names, claim.batch, claim.dataset, read_ids(ledger, batch_members(ledger, claim))
        )
        last = standing(ledger, claim.model).settled_seq
        earlier = [one.content["certificate"] for one in ledger.events(last - 1, last) if last]
        seq, head = ledger.head()
        stated = Facts(
            batch=claim.batch,
            requests=served_in(ledger, claim.batch, outcome),
            outcome=outcome,
            ledger_seq=seq,
            ledger_head=head,
            model=claim.model,
            picked_at=happened["claimed"].at,
            promoted_at=happened["confirmed"].at,
            previous=earlier[0] if earlier else GENESIS,
            obligations=dict(obligations),
            **{**facts, "data": {**facts["data"], "exclusionList": exclusion}},
        )
        certificate = publish(store, stated, signer, now=ledger.clock())
        settle(ledger, claim, outcome=outcome, certificate=certificate, obligations=obligations)
    return certificate


def is_settled(ledger: Ledger, claim: Claim) -> bool:
    """Whether the batch has ended, by this or another process."""
    return any(one.kind == "settled" for one in _events(ledger, claim.batch))


def served_in(ledger: Ledger, batch: str, outcome: str) -> list[Served]:
    """The requests of a batch as their receipts have them, sorted.

    Args:
        ledger: Which.
        batch: Digest of the batch.
        outcome: Of those that have none of their own yet.
    """
    table = tables.requests
    query = sa.select(table.c.ref, table.c.outcome, table.c.submitted_at, table.c.due_at)
    with ledger.reading() as connection:
        rows = connection.execute(query.where(table.c.batch == batch).order_by(table.c.ref)).all()
    return [
        Served(request=row.ref, outcome=row.outcome or outcome, submitted_at=row.submitted_at, due_at=row.due_at)
        for row in rows
    ]


def _events(ledger: Ledger, batch: str) -> list[Event]:
    events = tables.events
    with ledger.reading() as connection:
        rows = connection.execute(sa.select(events).where(events.c.batch == batch).order_by(events.c.seq)).all()
    return [Event(*row) for row in rows]
