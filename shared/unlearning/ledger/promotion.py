"""Which model serves, as the ledger knows it, and the guard that deleted data never comes back with an older one.

A registry's alias is last-writer-wins and knows nothing of requests. So the intent is written here first (the batch's
point of no return), then the alias is moved, read back, and confirmed here; `reconcile` says what is left to do after
any interruption. A model may serve only when it has forgotten every batch that was ever settled.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import sqlalchemy as sa

from unlearning.errors import UsageError
from unlearning.ledger import tables
from unlearning.ledger.claims import Claim, ClaimLostError, fenced
from unlearning.ledger.events import CLAIMED, PROMOTING, SETTLED, Event
from unlearning.ledger.store import Ledger, Writer

Action = Literal["nothing", "move_alias", "confirm", "settle", "put_back", "alarm"]
OUTCOMES = ("erased_exact", "erased_certified", "erased_approx_audited")

KINDS = ("promoting", "confirmed", "withdrawn", "settled", "restored")
"""Events that say which model serves."""
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


@dataclass
class Promotions:
    """What the events say about the versions of one model.

    Attributes:
        versions: Digest to parent, and the batches that this version forgot itself.
        expected: Digest of the model that should serve, or "".
        open: Batch and digest of an intent that is neither confirmed nor withdrawn, or None.
        unsettled: The batch that was confirmed and is not settled, or "".
        made_by: Digest to the last batch that this version was promoted for.
    """

    versions: dict[str, tuple[str, frozenset[str]]] = field(default_factory=dict)
    expected: str = ""
    open: tuple[str, str] | None = None
    unsettled: str = ""
    made_by: dict[str, str] = field(default_factory=dict)

    def forgotten(self, digest: str) -> frozenset[str]:
        """The batches that a version and those it was made from have forgotten; none for an unknown one."""
        found: set[str] = set()
        seen: set[str] = set()
        while digest in self.versions and digest not in seen:
            seen.add(digest)
            digest, own = self.versions[digest]
            found |= own
        return frozenset(found)


def promotions(events: Iterable[Event]) -> Promotions:
    """What the events of one model's batches say, in their order."""
    known = Promotions()
    intents: dict[str, str] = {}
    for one in events:
        content = one.content
        if one.kind == "promoting":
            own = frozenset((one.batch, *content["covers"]))
            before = known.versions.get(content["digest"], ("", frozenset[str]()))
            known.versions[content["digest"]] = (content["parent"], own | before[1])
            intents[one.batch] = content["digest"]
            known.made_by[content["digest"]] = one.batch
            known.open = (one.batch, content["digest"])
        elif one.kind == "confirmed":
            known.expected, known.open, known.unsettled = intents[one.batch], None, one.batch
        elif one.kind == "withdrawn":
            known.open = None
        elif one.kind == "settled":
            known.unsettled = ""
        elif one.kind == "restored":
            known.expected = content["digest"]
    return known


def reconcile(events: Iterable[Event], actual: str) -> Advice:
    """What is left to do, given where the alias really points.

    Args:
        events: Those of the model's batches; `Ledger.events_of(model, ...)` or all.
        actual: Digest of the model that the alias points at; "" when it is not set.
    """
    known = promotions(one for one in events if one.kind in KINDS)
    if known.open is not None:
        batch, wanted = known.open
        if actual == wanted:
            return Advice("confirm", wanted, batch, "the alias was moved and the confirmation is missing")
        if actual in ("", known.expected, known.versions[wanted][0]):
            return Advice("move_alias", wanted, batch, "the intent was written and the alias is not moved yet")
        return Advice("alarm", wanted, batch, "someone else moved the alias while a promotion was open")
    if known.expected and actual != known.expected:
        why = "someone else moved the alias" if actual else "the alias is gone"
        if actual in known.versions and known.forgotten(actual) < known.forgotten(known.expected):
            why = "the alias points at an earlier model, which still knows deleted data"
        return Advice("put_back", known.expected, known.unsettled, why)
    if known.unsettled:
        return Advice("settle", known.expected, known.unsettled, "the promotion is confirmed and its batch not settled")
    return Advice("nothing", known.expected, "", "the alias is where the ledger says")


def standing(writer: Writer, model: str, actual: str) -> tuple[Promotions, Advice]:
    """What the events say about a model, and what is left to do, in a writer's turn.

    Args:
        writer: Nobody else writes meanwhile.
        model: Registered model.
        actual: Digest of the model that the alias points at.
    """
    events = _events_of(writer, model)
    return promotions(events), reconcile(events, actual)


def advise(ledger: Ledger, model: str, actual: str) -> Advice:
    """`reconcile` for a model of the ledger."""
    return reconcile(ledger.events_of(model, *KINDS), actual)


def not_forgotten(ledger: Ledger, model: str, digest: str) -> list[str]:
    """The settled batches of a model that this version has not forgotten; it may serve only when there are none."""
    known = promotions(ledger.events_of(model, *KINDS))
    with ledger.reading() as connection:
        settled = _settled(connection, model)
    return sorted(settled - known.forgotten(digest))


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
        events = _events_of(writer, claim.model)
        known = promotions(events)
        forgets = known.forgotten(version.parent) | {claim.batch, *version.covers}
        _refuse_missing(_settled(writer.connection, claim.model) - forgets, claim.model, version.digest)
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
        events = _events_of(writer, model)
        known = promotions(events)
        if known.open is not None:
            raise UsageError(f"batch {known.open[0][:12]} is being promoted: let it end, or withdraw it, first")
        if known.unsettled:
            raise UsageError(f"batch {known.unsettled[:12]} is promoted and not settled yet: let it end first")
        _refuse_missing(_settled(writer.connection, model) - known.forgotten(digest), model, digest)
        if not known.versions:
            raise UsageError(f'no batch was ever promoted for "{model}": move its alias in the registry')
        batches = [one.batch for one in events if one.kind == "promoting" and one.content["digest"] == digest]
        if not batches:
            raise UsageError(f'the ledger knows no version {digest[:12]} of "{model}": serve one that a batch made')
        writer.append("restored", batch=batches[-1], body={"digest": digest})


def _refuse_missing(missing: set[str], model: str, digest: str) -> None:
    if missing:
        raise StillKnowsError(
            f'version {digest[:12]} of "{model}" still knows what {len(missing)} settled batches deleted (the first: '
            f"{min(missing)[:12]}): serve a version made from one that has forgotten them"
        )


def _settled(connection: sa.Connection, model: str) -> set[str]:
    table = tables.batches
    return set(
        connection.execute(sa.select(table.c.batch).where(table.c.model == model, table.c.state == SETTLED)).scalars()
    )


def _events_of(writer: Writer, model: str) -> list[Event]:
    writer.flush()
    events, batches = tables.events, tables.batches
    query = sa.select(events).join(batches, batches.c.batch == events.c.batch)
    query = query.where(batches.c.model == model, events.c.kind.in_(KINDS)).order_by(events.c.seq)
    return [Event(*row) for row in writer.connection.execute(query)]


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
