"""The ledger's tables: events and lists of requests are never changed; the rest is what the events make of them.

Only `sealed` is no such thing: it says where to begin to look in the object store, and a wrong row costs a listing.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, MetaData, String, Table, Text, text

LAYOUT = "0002"
"""The newest of the migrations, whose tables these are."""

metadata = MetaData()

events = Table(
    "events",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("at", String(27), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("request", String(64), nullable=False),
    Column("batch", String(64), nullable=False),
    Column("members", String(64), nullable=False),
    Column("actor", String(128), nullable=False),
    Column("code", String(64), nullable=False),
    Column("body", Text, nullable=False),
    Column("prev", String(64), nullable=False),
    Column("hash", String(64), nullable=False, unique=True),
    Index("events_request", "request"),
    Index("events_batch", "batch"),
    Index("events_gated", "seq", sqlite_where=text("kind = 'gated'"), postgresql_where=text("kind = 'gated'")),
)

members = Table(
    "members",
    metadata,
    Column("root", String(64), primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("ref", String(64), nullable=False),
)

head = Table(
    "head",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, nullable=False),
    Column("hash", String(64), nullable=False),
    Column("key_check", String(64), nullable=False),
)

requests = Table(
    "requests",
    metadata,
    Column("ref", String(64), primary_key=True),
    Column("controller", String(128), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("model", String(128), nullable=False),
    Column("dataset", String(128), nullable=False),
    Column("regulation", String(16), nullable=False),
    Column("target", String(64), nullable=False),
    Column("content", String(64), nullable=False),
    Column("ids", Integer, nullable=False),
    Column("urgency", Integer, nullable=False),
    Column("twin_of", String(64), nullable=False),
    Column("submitted_at", String(27), nullable=False),
    Column("received_at", String(27), nullable=False),
    Column("aim_at", String(27), nullable=False),
    Column("policy", String(32), nullable=False),
    Column("received_seq", BigInteger, nullable=False),
    Column("due_at", String(27), nullable=False),
    Column("extended", Boolean, nullable=False),
    Column("state", String(16), nullable=False),
    Column("batch", String(64), nullable=False),
    Column("outcome", String(32), nullable=False),
    Column("reason", String(256), nullable=False),
    Column("purged", Boolean, nullable=False),
    Column("changed_at", String(27), nullable=False),
    Column("changed_seq", BigInteger, nullable=False),
    Index("requests_next", "state", "model", "urgency", "due_at", "received_seq"),
    Index("requests_received", "received_seq"),
    Index("requests_target", "target"),
    Index("requests_batch", "batch"),
)
FIXED = (
    "controller",
    "kind",
    "model",
    "dataset",
    "regulation",
    "target",
    "content",
    "ids",
    "urgency",
    "twin_of",
    "submitted_at",
    "received_at",
    "aim_at",
    "policy",
)
"""Columns of a request that are set when it is received, from the event's body, and never change."""

batches = Table(
    "batches",
    metadata,
    Column("batch", String(64), primary_key=True),
    Column("model", String(128), nullable=False),
    Column("members", String(64), nullable=False),
    Column("number", Integer, nullable=False),
    Column("content", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("token", BigInteger, nullable=False),
    Column("owner", String(128), nullable=False),
    Column("lease_until", String(27), nullable=False),
    Column("changed_at", String(27), nullable=False),
    Column("settled_seq", BigInteger, nullable=False, server_default="0"),
    Index("batches_settled", "model", "settled_seq"),
    Index("batches_ended", "state", "changed_at"),
    Index(
        "batches_one_active",
        "model",
        unique=True,
        sqlite_where=text("state IN ('claimed', 'promoting')"),
        postgresql_where=text("state IN ('claimed', 'promoting')"),
    ),
)
ACTIVE = text("batches.state IN ('claimed', 'promoting')")
"""As the condition of the index above has it, so that both databases use that."""

parcels = Table(
    "parcels",
    metadata,
    Column("ref", String(64), primary_key=True),
    Column("parcel", String(128), nullable=False),
    Index("parcels_parcel", "parcel"),
)

serving = Table(
    "serving",
    metadata,
    Column("model", String(128), primary_key=True),
    Column("expected", String(64), nullable=False),
    Column("open_batch", String(64), nullable=False),
    Column("open_digest", String(64), nullable=False),
    Column("unsettled", String(64), nullable=False),
    Column("settled_seq", BigInteger, nullable=False),
    Column("approximate", Integer, nullable=False),
    Column("eroded", Boolean, nullable=False),
)

versions = Table(
    "versions",
    metadata,
    Column("model", String(128), primary_key=True),
    Column("digest", String(64), primary_key=True),
    Column("parent", String(64), nullable=False),
    Column("number", String(64), nullable=False),
    Column("batch", String(64), nullable=False),
    Column("until", BigInteger, nullable=False),
    Column("left_at", String(27), nullable=False),
    Column("retired", BigInteger, nullable=False),
    Column("destroyed", BigInteger, nullable=False),
)

sealed = Table(
    "sealed",
    metadata,
    Column("store", String(64), primary_key=True),
    Column("first", BigInteger, nullable=False),
)
