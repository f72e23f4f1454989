"""Teams of work items, and what each item has used.

Revision ID: 0009
Revises: 0008
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

ITEMS = "airbridge_work_item"
EVENTS = "airbridge_event"


def upgrade() -> None:
    op.add_column(ITEMS, sa.Column("team", sa.String(length=63), nullable=False, server_default="default"))
    op.add_column(ITEMS, sa.Column("slot_seconds", sa.Float(), nullable=False, server_default="0"))
    op.add_column(EVENTS, sa.Column("cpu_seconds", sa.Float(), nullable=True))
    op.add_column(EVENTS, sa.Column("peak_memory_bytes", sa.BigInteger(), nullable=True))
    op.create_table(
        "airbridge_usage",
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("team", sa.String(length=63), nullable=False),
        sa.Column("dag_id", sa.String(length=250), nullable=False),
        sa.Column("region", sa.String(length=63), nullable=False),
        sa.Column("pool", sa.String(length=63), nullable=False),
        sa.Column("items", sa.BigInteger(), nullable=False),
        sa.Column("slot_seconds", sa.Float(), nullable=False),
        sa.Column("cpu_seconds", sa.Float(), nullable=False),
        sa.Column("peak_memory_bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("day", "team", "dag_id", "region", "pool", name=op.f("pk_airbridge_usage")),
    )


def downgrade() -> None:
    op.drop_table("airbridge_usage")
    op.drop_column(EVENTS, "peak_memory_bytes")
    op.drop_column(EVENTS, "cpu_seconds")
    op.drop_column(ITEMS, "slot_seconds")
    op.drop_column(ITEMS, "team")
