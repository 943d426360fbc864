"""What happened to requests, one event after another, each with the digest of the one before.

The state of a request is what its events make of it. `EFFECTS` is the only place that says which event may follow
which state; the database and the check of it both read it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

GENESIS = "0" * 64
"""What the first event has in place of the digest of the one before."""

PENDING, HELD, CLAIMED, PROMOTING, SERVED = "pending", "held", "claimed", "promoting", "served"
CLOSED, CANCELLED, DENIED = "closed", "cancelled", "denied"
STATES = (PENDING, HELD, CLAIMED, PROMOTING, SERVED, CLOSED, CANCELLED, DENIED)
OPEN = (PENDING, HELD, CLAIMED, PROMOTING, SERVED)
ENDED = (CLOSED, CANCELLED, DENIED)
NO_DATA = "no_data_found"
DISSOLVED, SETTLED = "dissolved", "settled"


@dataclass(frozen=True)
class Effect:
    """What an event does to each request that it speaks of.

    Attributes:
        before: The states in which it may happen.
        after: The state that follows; "" when it stays.
    """

    before: tuple[str, ...]
    after: str = ""


EFFECTS: dict[str, Effect] = {
    "received": Effect((), PENDING),
    "conflict": Effect(STATES),
    "held": Effect((PENDING,), HELD),
    "approved": Effect((HELD,)),
    "released": Effect((HELD,), PENDING),
    "extended": Effect((PENDING, HELD, CLAIMED)),
    "cancelled": Effect((PENDING, HELD), CANCELLED),
    "denied": Effect((PENDING, HELD), DENIED),
    "not_found": Effect((PENDING, CLAIMED), CLOSED),
    "claimed": Effect((PENDING,), CLAIMED),
    "taken_over": Effect((CLAIMED, PROMOTING)),
    "gated": Effect((CLAIMED,)),
    "dissolved": Effect((CLAIMED,), PENDING),
    "promoting": Effect((CLAIMED,), PROMOTING),
    "withdrawn": Effect((PROMOTING,), PENDING),
    "confirmed": Effect((PROMOTING,)),
    "settled": Effect((PROMOTING,), SERVED),
    "closed": Effect((SERVED,), CLOSED),
    "purged": Effect(ENDED),
    "restored": Effect(STATES),
    "alarmed": Effect(STATES),
    "retested": Effect(STATES),
    "eroded": Effect(STATES),
    "copies": Effect(STATES),
    "retired": Effect(STATES),
    "destroyed": Effect(STATES),
    "imported": Effect(()),
}
BATCH_STATES = {
    "claimed": CLAIMED,
    "promoting": PROMOTING,
    "settled": SETTLED,
    "dissolved": DISSOLVED,
    "withdrawn": DISSOLVED,
}
"""What an event makes of its batch; events that are not here leave it."""


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the ledger.

    Attributes:
        seq: 1, 2, 3, ... without a gap.
        at: When, in UTC; the order is that of `seq`, never that of `at`.
        kind: One of `EFFECTS`.
        request: Digest of the request that it speaks of, or "".
        batch: The batch, or "".
        members: Root of the list of requests that it speaks of, or "".
        actor: Who did it: a role or process, never a person's name.
        code: Version of the program.
        body: The rest, as canonical JSON text.
        prev: Digest of the event before.
        hash: Its own digest.
    """

    seq: int
    at: str
    kind: str
    request: str
    batch: str
    members: str
    actor: str
    code: str
    body: str
    prev: str
    hash: str

    @property
    def content(self) -> dict[str, Any]:
        """The body's fields."""
        fields: dict[str, Any] = json.loads(self.body)
        return fields

    def line(self) -> str:
        """One line of a sealed copy; `read_line` turns it back."""
        return f'{{"event":{_text(self)},"hash":"{self.hash}"}}'

    def is_sound(self) -> bool:
        """Whether its digest is that of its content."""
        return self.hash == hashlib.sha256(_text(self).encode()).hexdigest()


def event(
    seq: int,
    at: str,
    kind: str,
    *,
    prev: str,
    actor: str,
    code: str,
    request: str = "",
    batch: str = "",
    members: str = "",
    body: Mapping[str, Any] | None = None,
) -> Event:
    """A new event with its digest; the arguments are those of `Event`."""
    text = canonical(body or {})
    bare = Event(seq, at, kind, request, batch, members, actor, code, text, prev, "")
    digest = hashlib.sha256(_text(bare).encode()).hexdigest()
    return Event(seq, at, kind, request, batch, members, actor, code, text, prev, digest)


def read_line(line: str) -> Event:
    """The event of a sealed line.

    Raises:
        ValueError: When it is no such line.
    """
    record = json.loads(line)
    fields = record["event"]
    if set(record) != {"event", "hash"} or set(fields) != set(_FIELDS):
        raise ValueError("it has other fields than an event")
    texts = {name: str(fields[name]) for name in _FIELDS if name not in ("seq", "body")}
    made = Event(seq=int(fields["seq"]), body=canonical(fields["body"]), hash=str(record["hash"]), **texts)
    if made.line() != line:
        raise ValueError("it is not in canonical form")
    return made


def canonical(value: Any) -> str:
    """JSON with sorted keys, no spaces and ASCII only: the same content gives the same text.

    Raises:
        ValueError: For NaN and infinities.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest_of(value: Any) -> str:
    """sha256 of the canonical text."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def moment(time: datetime) -> str:
    """A time as the ledger writes it; the texts sort as the times do.

    Example:
        >>> moment(datetime(2026, 11, 21, 9, 30, tzinfo=UTC))
        '2026-11-21T09:30:00.000000Z'
    """
    return f"{time.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}Z"


def time_of(text: str) -> datetime:
    """The time that `moment` wrote."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def broken_links(events: Iterator[Event], seq: int = 0, head: str = GENESIS) -> Iterator[tuple[int, str]]:
    """The events that do not follow on the one before, by number and what is wrong.

    Args:
        events: In their order.
        seq: Number of the event before the first.
        head: Its digest.
    """
    for one in events:
        if one.seq != seq + 1:
            yield one.seq, f"follows event {seq}: events are missing or in another order"
        elif one.prev != head:
            yield one.seq, "does not name the event before it: one of the two was changed"
        if not one.is_sound():
            yield one.seq, "has another content than its digest says"
        seq, head = one.seq, one.hash


_FIELDS = ("actor", "at", "batch", "body", "code", "kind", "members", "prev", "request", "seq")


def _text(one: Event) -> str:
    quoted = json.dumps
    return (
        f'{{"actor":{quoted(one.actor)},"at":{quoted(one.at)},"batch":{quoted(one.batch)},"body":{one.body},'
        f'"code":{quoted(one.code)},"kind":{quoted(one.kind)},"members":{quoted(one.members)},'
        f'"prev":{quoted(one.prev)},"request":{quoted(one.request)},"seq":{one.seq}}}'
    )
