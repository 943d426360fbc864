"""The registry's alias and the ledger kept together: moved in a writer's turn, read back, confirmed; strangers undone.

A registry lets whoever comes last move an alias, so a process that overslept could put an older model back. Here the
alias is moved only while the ledger is locked for its writer, after its claim was looked at: who lost the claim is
refused before the alias is touched, and nobody else can promote while it moves.
"""

from __future__ import annotations

from typing import Protocol

from unlearning.errors import LedgerError
from unlearning.ledger.claims import Claim, dissolve, fenced
from unlearning.ledger.events import PROMOTING
from unlearning.ledger.promotion import (
    Advice,
    StillKnowsError,
    Version,
    begin,
    reconcile,
    record_confirmed,
    record_rollback,
    standing,
)
from unlearning.ledger.standing import Known, standing_of
from unlearning.ledger.store import Ledger


class Alias(Protocol):
    """What serving reads: one name in a registry that points at one model."""

    def digest(self) -> str:
        """Digest of the model that it points at; "" when it is not set."""

    def move(self, digest: str) -> None:
        """Points it at the model with this digest, which was registered before."""


def serve(ledger: Ledger, claim: Claim, version: Version, alias: Alias, *, actor: str = "") -> Advice:
    """What was found before the alias was moved to this version and confirmed; repeating it changes nothing.

    Args:
        ledger: Which.
        claim: On the batch that made the version.
        version: Registered, its gates passed.
        alias: That of the claim's model.
        actor: For an alarm; the claim's owner when left out.

    Raises:
        ClaimLostError: When the batch is no longer this process's; the alias was not touched.
        UsageError: When the version lacks what settled batches have forgotten; the alias was not touched, and the batch
            is dissolved, so that the next one is made from another model.
        LedgerError: When the alias does not stay where it was moved.
    """
    try:
        begin(ledger, claim, version)
    except StillKnowsError:
        dissolve(ledger, claim, "its model still knows what settled batches deleted")  # the next one begins elsewhere
        raise
    found = _looked_at(ledger, claim.model, alias, actor or claim.owner)
    with ledger.writing(claim.owner) as writer:
        fenced(writer, claim, PROMOTING)
        _move(alias, version.digest, claim.model)
        record_confirmed(writer, claim.batch, version.digest)
    return found


def heal(ledger: Ledger, model: str, alias: Alias, *, actor: str) -> Advice:
    """What was found; an alias that somebody else moved points at the ledger's model again, and an alarm is recorded.

    Every run begins with it. A promotion that was cut short is left to whoever takes its batch over.

    Raises:
        LedgerError: When the alias does not stay where it was moved.
    """
    found = _looked_at(ledger, model, alias, actor)
    if found.action in ("put_back", "alarm"):
        with ledger.writing(actor) as writer:
            known = standing_of(writer.connection, model, actual := alias.digest())
            if reconcile(known, actual).action in ("put_back", "alarm") and known.expected:
                _move(alias, known.expected, model)
    return found


def base_of(ledger: Ledger, model: str, alias: Alias) -> str:
    """Digest of the model that a batch starts from: the ledger's; the alias's while the ledger knows none."""
    return standing(ledger, model).expected or alias.digest()


def roll_back(ledger: Ledger, model: str, digest: str, alias: Alias, *, actor: str) -> None:
    """Serves another known version, when it has forgotten all that was ever deleted; the ledger knows it first.

    Raises:
        UsageError: When a promotion is open, or that version still knows data of settled batches.
        LedgerError: When the alias does not stay where it was moved.
    """
    record_rollback(ledger, model, digest, actor=actor)
    with ledger.writing(actor) as writer:
        if standing_of(writer.connection, model).expected == digest:
            _move(alias, digest, model)


def _looked_at(ledger: Ledger, model: str, alias: Alias, actor: str) -> Advice:
    """What is left to do; an alarm is kept before anything is mended, so that no interruption hides it."""
    with ledger.writing(actor) as writer:
        actual = alias.digest()
        known = standing_of(writer.connection, model, actual)
        found = reconcile(known, actual)
        if found.action in ("put_back", "alarm"):
            batch = found.batch or known.versions.get(known.expected, Known()).batch
            body = {"found": actual, "expected": known.expected, "reason": found.reason}
            writer.append("alarmed", batch=batch, body=body)
    return found


def _move(alias: Alias, digest: str, model: str) -> None:
    if alias.digest() != digest:
        alias.move(digest)
    if (actual := alias.digest()) != digest:
        raise LedgerError(
            f'the alias of "{model}" was moved to {digest[:12]} and points at {actual[:12] or "nothing"}: find out who '
            "else moves it, then run again"
        )
