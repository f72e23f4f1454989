"""Limits on tasks that run at one time, and the bytes that tasks move.

Revision ID: 0012
Revises: 0011
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from airbridge.executor.ledger._airflow import UtcDateTime

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

ITEMS = "airbridge_work_item"
EVENTS = "airbridge_event"
USAGE = "airbridge_usage"
BY_LIMITS = "idx_airbridge_work_item_limits"
MOVED = ("xcom_bytes", "log_bytes", "code_bytes")


def upgrade() -> None:
    op.add_column(ITEMS, sa.Column("limits", sa.String(length=1024), nullable=True))
    having = sa.text("limits IS NOT NULL")
    op.create_index(BY_LIMITS, ITEMS, ["state"], postgresql_where=having, sqlite_where=having)
    op.create_table(
        "airbridge_limit",
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_airbridge_limit")),
    )
    op.create_table(
        "airbridge_limit_start",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("started_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_airbridge_limit_start")),
    )
    op.create_index("idx_airbridge_limit_start", "airbridge_limit_start", ["name", "started_at"])
    op.add_column(EVENTS, sa.Column("moved_bytes", sa.BigInteger(), nullable=True))
    for name in MOVED:
        op.add_column(USAGE, sa.Column(name, sa.BigInteger(), nullable=False, server_default="0"))


def downgrade() -> None:
    for name in MOVED:
        op.drop_column(USAGE, name)
    op.drop_column(EVENTS, "moved_bytes")
    op.drop_table("airbridge_limit_start")
    op.drop_table("airbridge_limit")
    op.drop_index(BY_LIMITS, ITEMS)
    op.drop_column(ITEMS, "limits")
