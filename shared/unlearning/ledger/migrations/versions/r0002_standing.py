"""Which version of each model serves, beside the events: a run no longer reads all promotions that there ever were."""

import sqlalchemy as sa
from alembic import op

from unlearning.ledger.events import Event
from unlearning.ledger.standing import KINDS, record

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Makes the tables and fills them from the events."""
    op.create_table(
        "serving",
        sa.Column("model", sa.String(128), primary_key=True),
        sa.Column("expected", sa.String(64), nullable=False),
        sa.Column("open_batch", sa.String(64), nullable=False),
        sa.Column("open_digest", sa.String(64), nullable=False),
        sa.Column("unsettled", sa.String(64), nullable=False),
        sa.Column("settled_seq", sa.BigInteger, nullable=False),
        sa.Column("approximate", sa.Integer, nullable=False),
        sa.Column("eroded", sa.Boolean, nullable=False),
    )
    op.create_table(
        "versions",
        sa.Column("model", sa.String(128), primary_key=True),
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("parent", sa.String(64), nullable=False),
        sa.Column("number", sa.String(64), nullable=False),
        sa.Column("batch", sa.String(64), nullable=False),
        sa.Column("until", sa.BigInteger, nullable=False),
        sa.Column("left_at", sa.String(27), nullable=False),
        sa.Column("retired", sa.BigInteger, nullable=False),
        sa.Column("destroyed", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "sealed",
        sa.Column("store", sa.String(64), primary_key=True),
        sa.Column("first", sa.BigInteger, nullable=False),
    )
    op.add_column("batches", sa.Column("settled_seq", sa.BigInteger, nullable=False, server_default="0"))
    op.create_index("batches_settled", "batches", ["model", "settled_seq"])
    op.create_index("batches_ended", "batches", ["state", "changed_at"])
    gated = sa.text("kind = 'gated'")
    op.create_index("events_gated", "events", ["seq"], sqlite_where=gated, postgresql_where=gated)
    events = sa.table("events", *(sa.column(name) for name in Event.__slots__))
    query = sa.select(events).where(events.c.kind.in_(KINDS)).order_by(events.c.seq)
    for row in op.get_bind().execute(query).all():
        record(op.get_bind(), Event(*row))
