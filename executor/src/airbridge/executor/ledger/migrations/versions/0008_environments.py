"""Environments of bundles that were built elsewhere and pushed.

Revision ID: 0008
Revises: 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from airflow.utils.sqlalchemy import UtcDateTime
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "airbridge_environment",
        sa.Column("bundle", sa.String(length=250), nullable=False),
        sa.Column("inputs", sa.String(length=64), nullable=False),
        sa.Column("manifest", sa.Text(), nullable=False),
        sa.Column("lock", sa.Text(), nullable=False),
        sa.Column("publisher", sa.String(length=250), nullable=False),
        sa.Column("pushed_at", UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("bundle", "inputs", name=op.f("pk_airbridge_environment")),
    )


def downgrade() -> None:
    op.drop_table("airbridge_environment")
