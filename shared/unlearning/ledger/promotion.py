"""Which model serves, as the ledger knows it, and the guard that deleted data never comes back with an older one.

A registry's alias is last-writer-wins and knows nothing of requests. So the intent is written here first (the batch's
point of no return), then the alias is moved, read back, and confirmed here; `reconcile` says what is left to do after
any interruption. A model may serve only when it has forgotten every batch that was ever settled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from unlearning.errors import UsageError
from unlearning.ledger import tables
from unlearning.ledger.claims import Claim, ClaimLostError, fenced
from unlearning.ledger.events import CLAIMED, PROMOTING, SETTLED, Event
from unlearning.ledger.standing import Standing, missing, standing_of
from unlearning.ledger.store import Ledger, Writer

Action = Literal["nothing", "move_alias", "confirm", "settle", "put_back", "alarm"]
OUTCOMES = ("erased_exact", "erased_certified", "erased_approx_audited")

_SHA256 = re.compile("[0-9a-f]{64}")


class StillKnowsError(UsageError):
    """A version lacks what settled batches have forgotten: it never serves."""


@dataclass(frozen=True)
class Version:
    """A model that is to serve.

    Attributes:
        digest: Names its content: the bundle's digest, 64 hexadecimal digits.
        parent: Digest of the model that it was made from; "" for one trained afresh.
        number: What the registry calls it.
        covers: Batches that it forgot besides its own and its parent's: those whose rows a model trained afresh never
            saw.
    """

    digest: str
    parent: str
    number: str
    covers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for what, text in (("digest", self.digest), ("parent", self.parent), *(("batch", one) for one in self.covers)):
            if not _SHA256.fullmatch(text) and (text or what != "parent"):
                raise UsageError(f"a version's {what} is 64 hexadecimal digits, got {text[:20]!r}")


@dataclass(frozen=True)
class Advice:
    """What is left to do about the alias.

    Attributes:
        action: "nothing"; "move_alias" to `digest`, after its gates and hashes were checked again, or withdraw the
            batch; "confirm" that it is there; "settle" the batch; "put_back" the alias to `digest`; or "alarm", when
            the alias points at something that neither the last intent nor the last confirmation names.
        digest: The model that should serve; "" when the ledger knows none.
        batch: The batch concerned, or "".
        reason: For people.
    """

    action: Action
    digest: str
    batch: str
    reason: str


def reconcile(known: Standing, actual: str) -> Advice:
    """What is left to do, given where the alias really points.

    Args:
        known: What the events make of the model; of its versions, at least the one that the alias points at.
        actual: Digest of the model that the alias points at; "" when it is not set.
    """
    if known.open_batch:
        batch, wanted = known.open_batch, known.open_digest
        if actual == wanted:
            return Advice("confirm", wanted, batch, "the alias was moved and the confirmation is missing")
        if actual in ("", known.expected, known.versions[wanted].parent):
            return Advice("move_alias", wanted, batch, "the intent was written and the alias is not moved yet")
        return Advice("alarm", wanted, batch, "someone else moved the alias while a promotion was open")
    if known.expected and actual != known.expected:
        why = "someone else moved the alias" if actual else "the alias is gone"
        if actual in known.versions and (known.unsettled or not known.has_forgotten_all(actual)):
            why = "the alias points at an earlier model, which still knows deleted data"
        return Advice("put_back", known.expected, known.unsettled, why)
    if known.unsettled:
        return Advice("settle", known.expected, known.unsettled, "the promotion is confirmed and its batch not settled")
    return Advice("nothing", known.expected, "", "the alias is where the ledger says")


def standing(ledger: Ledger, model: str, *digests: str) -> Standing:
    """What the events make of a model.

    Args:
        ledger: Which.
        model: Registered model.
        digests: Versions that are wanted besides those that should serve.
    """
    with ledger.reading() as connection:
        return standing_of(connection, model, *digests)


def advise(ledger: Ledger, model: str, actual: str) -> Advice:
    """`reconcile` for a model of the ledger."""
    return reconcile(standing(ledger, model, actual), actual)


def not_forgotten(ledger: Ledger, model: str, digest: str) -> list[str]:
    """The settled batches of a model that this version has not forgotten; it may serve only when there are none."""
    with ledger.reading() as connection:
        return sorted(missing(connection, model, standing_of(connection, model, digest).until(digest)))


def begin(ledger: Ledger, claim: Claim, version: Version) -> None:
    """Writes the intent that this version shall serve: the batch's point of no return. Repeating it changes nothing.

    Raises:
        ClaimLostError: When the batch is no longer this process's, or its requests changed.
        UsageError: When the version lacks what settled batches have forgotten.
    """
    body = {
        "digest": version.digest,
        "parent": version.parent,
        "version": version.number,
        "covers": sorted(set(version.covers)),
    }
    with ledger.writing(claim.owner) as writer:
        row = fenced(writer, claim, CLAIMED, PROMOTING)
        if row.state == PROMOTING:
            _same_intent(writer, claim.batch, body)
            return
        known = standing_of(writer.connection, claim.model, version.parent)
        lacks = missing(writer.connection, claim.model, known.until(version.parent))
        _refuse_missing(lacks - {claim.batch, *version.covers}, claim.model, version.digest)
        writer.append("promoting", batch=claim.batch, body=body)


def confirm(ledger: Ledger, claim: Claim, actual: str) -> None:
    """Records that the alias was read back and points at the intended version. Repeating it changes nothing.

    Args:
        ledger: Which.
        claim: Past its point of no return.
        actual: Digest of the model that the alias points at.

    Raises:
        ClaimLostError: When the batch is no longer this process's.
        UsageError: When the alias points elsewhere.
    """
    with ledger.writing(claim.owner) as writer:
        fenced(writer, claim, PROMOTING)
        record_confirmed(writer, claim.batch, actual)


def record_confirmed(writer: Writer, batch: str, actual: str) -> None:
    """`confirm`, inside a change whose claim was looked at.

    Raises:
        UsageError: When the alias points elsewhere.
    """
    intent, confirmed = _intent(writer, batch)
    if intent["digest"] != actual:
        raise UsageError(
            f"the alias points at {actual[:12] or 'nothing'} and {intent['digest'][:12]} was meant: reconcile first"
        )
    if not confirmed:
        writer.append("confirmed", batch=batch, body={"digest": actual})


def withdraw(ledger: Ledger, claim: Claim, actual: str, reason: str) -> None:
    """Takes the intent back and gives the requests back, when the alias was never moved.

    Raises:
        ClaimLostError: When the batch is no longer this process's.
        UsageError: When the intended version serves, or was confirmed.
    """
    with ledger.writing(claim.owner) as writer:
        fenced(writer, claim, PROMOTING)
        intent, confirmed = _intent(writer, claim.batch)
        if confirmed or intent["digest"] == actual:
            raise UsageError("the intended version serves already: confirm and settle its batch instead")
        writer.append("withdrawn", batch=claim.batch, body={"reason": reason[:256], "alias": actual})


def settle(
    ledger: Ledger, claim: Claim, *, outcome: str, certificate: str, obligations: Mapping[str, Any] | None = None
) -> None:
    """Marks the batch's requests as served, and as closed at once when it is said what remains. Repeatable.

    Args:
        ledger: Which.
        claim: Confirmed.
        outcome: "erased_exact", "erased_certified" or "erased_approx_audited".
        certificate: sha256 of the signed certificate.
        obligations: What was done around the model, or will be and when; None leaves the requests served until `close`.

    Raises:
        ClaimLostError: When the batch is no longer this process's.
        UsageError: When the promotion is not confirmed.
    """
    if outcome not in OUTCOMES or not _SHA256.fullmatch(certificate):
        raise UsageError(f"a batch is settled as {', '.join(OUTCOMES)}, with the sha256 of its certificate")
    body = {"outcome": outcome, "certificate": certificate}
    with ledger.writing(claim.owner) as writer:
        row = fenced(writer, claim, PROMOTING, SETTLED)
        if row.state == SETTLED:
            if _last(writer, claim.batch, "settled").content != body:
                raise ClaimLostError(f"batch {claim.batch[:12]} was settled with another outcome or certificate: stop")
            return
        if not _intent(writer, claim.batch)[1]:
            raise UsageError("the promotion is not confirmed: move the alias, read it back and confirm it first")
        writer.append("settled", batch=claim.batch, body=body)
        if obligations is not None:
            writer.append("closed", batch=claim.batch, body={"obligations": dict(obligations)})


def record_rollback(ledger: Ledger, model: str, digest: str, *, actor: str) -> None:
    """Records, before the alias is moved, that another known version shall serve.

    Raises:
        UsageError: When a promotion is open, or that version still knows data of settled batches.
    """
    with ledger.writing(actor) as writer:
        known = standing_of(writer.connection, model, digest)
        if known.open_batch:
            raise UsageError(f"batch {known.open_batch[:12]} is being promoted: let it end, or withdraw it, first")
        if known.unsettled:
            raise UsageError(f"batch {known.unsettled[:12]} is promoted and not settled yet: let it end first")
        _refuse_missing(missing(writer.connection, model, known.until(digest)), model, digest)
        if not known.expected:
            raise UsageError(f'no batch was ever promoted for "{model}": move its alias in the registry')
        version = known.versions.get(digest)
        if version is None or not version.batch:
            raise UsageError(f'the ledger knows no version {digest[:12]} of "{model}": serve one that a batch made')
        if version.retired:
            raise UsageError(f'version {digest[:12]} of "{model}" was retired: its files are gone, serve another one')
        writer.append("restored", batch=version.batch, body={"digest": digest})


def _refuse_missing(missing: set[str], model: str, digest: str) -> None:
    if missing:
        raise StillKnowsError(
            f'version {digest[:12]} of "{model}" still knows what {len(missing)} settled batches deleted (the first: '
            f"{min(missing)[:12]}): serve a version made from one that has forgotten them"
        )


def _last(writer: Writer, batch: str, *kinds: str) -> Event:
    writer.flush()
    events = tables.events
    query = sa.select(events).where(events.c.batch == batch, events.c.kind.in_(kinds)).order_by(events.c.seq.desc())
    return Event(*writer.connection.execute(query.limit(1)).one())


def _intent(writer: Writer, batch: str) -> tuple[dict[str, Any], bool]:
    """The open intent of a batch, and whether it was confirmed."""
    return _last(writer, batch, "promoting").content, _last(writer, batch, "promoting", "confirmed").kind == "confirmed"


def _same_intent(writer: Writer, batch: str, body: dict[str, Any]) -> None:
    if _intent(writer, batch)[0] != body:
        raise ClaimLostError(f"batch {batch[:12]} is being promoted with another version: reconcile first")
