"""Keys of hosts that join by proving that they hold them.

Revision ID: 0010
Revises: 0009
"""

from __future__ import annotations

import sqlalchemy as sa
from airflow.utils.sqlalchemy import UtcDateTime
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

TABLE = "airbridge_bound_key"


def upgrade() -> None:
    op.create_table(
        TABLE,
        sa.Column("worker_id", sa.String(length=63), nullable=False),
        sa.Column("region", sa.String(length=63), nullable=False),
        sa.Column("pool", sa.String(length=63), nullable=False),
        sa.Column("public_key", sa.String(length=64), nullable=False),
        sa.Column("owner", sa.String(length=250), nullable=False),
        sa.Column("counter", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("attempt", sa.String(length=64), nullable=True),
        sa.Column("bound_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("seen_at", UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("worker_id", name=op.f("pk_airbridge_bound_key")),
    )


def downgrade() -> None:
    op.drop_table(TABLE)
