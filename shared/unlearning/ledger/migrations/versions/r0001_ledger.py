"""The first layout: events, lists of requests, what follows from them, and triggers that keep the first two."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

KEPT = {"events": "seq = NEW.seq", "members": "root = NEW.root AND position = NEW.position"}
"""Tables whose rows are only ever added, with what makes two rows the same."""


def upgrade() -> None:
    """Makes everything."""
    op.create_table(
        "events",
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("at", sa.String(27), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("request", sa.String(64), nullable=False),
        sa.Column("batch", sa.String(64), nullable=False),
        sa.Column("members", sa.String(64), nullable=False),
        sa.Column("actor", sa.String(128), nullable=False),
        sa.Column("code", sa.String(64), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("prev", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False, unique=True),
    )
    op.create_index("events_request", "events", ["request"])
    op.create_index("events_batch", "events", ["batch"])
    op.create_table(
        "members",
        sa.Column("root", sa.String(64), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("ref", sa.String(64), nullable=False),
    )
    head = op.create_table(
        "head",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("key_check", sa.String(64), nullable=False),
    )
    op.bulk_insert(head, [{"id": 1, "seq": 0, "hash": "0" * 64, "key_check": ""}])
    op.create_table(
        "requests",
        sa.Column("ref", sa.String(64), primary_key=True),
        sa.Column("controller", sa.String(128), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("model", sa.String(128), nullable=False),
        sa.Column("dataset", sa.String(128), nullable=False),
        sa.Column("regulation", sa.String(16), nullable=False),
        sa.Column("target", sa.String(64), nullable=False),
        sa.Column("content", sa.String(64), nullable=False),
        sa.Column("ids", sa.Integer, nullable=False),
        sa.Column("urgency", sa.Integer, nullable=False),
        sa.Column("twin_of", sa.String(64), nullable=False),
        sa.Column("submitted_at", sa.String(27), nullable=False),
        sa.Column("received_at", sa.String(27), nullable=False),
        sa.Column("aim_at", sa.String(27), nullable=False),
        sa.Column("policy", sa.String(32), nullable=False),
        sa.Column("received_seq", sa.BigInteger, nullable=False),
        sa.Column("due_at", sa.String(27), nullable=False),
        sa.Column("extended", sa.Boolean, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("batch", sa.String(64), nullable=False),
        sa.Column("outcome", sa.String(32), nullable=False),
        sa.Column("reason", sa.String(256), nullable=False),
        sa.Column("purged", sa.Boolean, nullable=False),
        sa.Column("changed_at", sa.String(27), nullable=False),
        sa.Column("changed_seq", sa.BigInteger, nullable=False),
    )
    op.create_index("requests_next", "requests", ["state", "model", "urgency", "due_at", "received_seq"])
    op.create_index("requests_received", "requests", ["received_seq"])
    op.create_index("requests_target", "requests", ["target"])
    op.create_index("requests_batch", "requests", ["batch"])
    op.create_table(
        "batches",
        sa.Column("batch", sa.String(64), primary_key=True),
        sa.Column("model", sa.String(128), nullable=False),
        sa.Column("members", sa.String(64), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("token", sa.BigInteger, nullable=False),
        sa.Column("owner", sa.String(128), nullable=False),
        sa.Column("lease_until", sa.String(27), nullable=False),
        sa.Column("changed_at", sa.String(27), nullable=False),
    )
    active = sa.text("state IN ('claimed', 'promoting')")
    op.create_index(
        "batches_one_active", "batches", ["model"], unique=True, sqlite_where=active, postgresql_where=active
    )
    op.create_table(
        "parcels",
        sa.Column("ref", sa.String(64), primary_key=True),
        sa.Column("parcel", sa.String(128), nullable=False),
    )
    op.create_index("parcels_parcel", "parcels", ["parcel"])
    for table, same in KEPT.items():
        for statement in _guards(table, same, op.get_context().dialect.name):
            op.execute(statement)


def _guards(table: str, same: str, dialect: str) -> list[str]:
    """Statements after which rows of a table can only be added."""
    if dialect == "sqlite":
        there = f"SELECT 1 FROM {table} WHERE {same}"  # noqa: S608
        return [
            f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
            f"BEGIN SELECT RAISE(ABORT, '{table} are append-only'); END"
            for verb in ("UPDATE", "DELETE")
        ] + [
            # INSERT OR REPLACE deletes without asking the trigger above
            f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} WHEN EXISTS ({there}) "
            f"BEGIN SELECT RAISE(ABORT, '{table} are append-only'); END"
        ]
    return [
        f"CREATE FUNCTION {table}_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{table} are append-only'; END $$",
        f"CREATE TRIGGER {table}_no_change BEFORE UPDATE OR DELETE ON {table} "
        f"FOR EACH ROW EXECUTE FUNCTION {table}_append_only()",
        f"CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table} "
        f"FOR EACH STATEMENT EXECUTE FUNCTION {table}_append_only()",
    ]
