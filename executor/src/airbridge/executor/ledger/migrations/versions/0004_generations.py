"""Generations of identities, parents of tokens, and the signed current version of each bundle.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from airflow.utils.sqlalchemy import UtcDateTime
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table, column in _columns():
        op.add_column(table, column)
    op.create_index("idx_airbridge_token_parent", "airbridge_token", ["parent_id"], unique=False)
    _create_certificate()
    _create_bundle()


def downgrade() -> None:
    op.drop_table("airbridge_bundle")
    op.drop_table("airbridge_snapshot")
    op.drop_table("airbridge_certificate")
    op.drop_index("idx_airbridge_token_parent", table_name="airbridge_token")
    for table, column in _columns():
        op.drop_column(table, column.name)


def _columns() -> list[tuple[str, sa.Column[Any]]]:
    return [
        ("airbridge_worker", sa.Column("generation", sa.Integer(), nullable=False, server_default="0")),
        ("airbridge_worker", sa.Column("rejoin_key", sa.String(length=64), nullable=True)),
        ("airbridge_worker", sa.Column("rejoined", sa.Boolean(), nullable=False, server_default=sa.false())),
        ("airbridge_token", sa.Column("parent_id", sa.String(length=32), nullable=True)),
    ]


def _create_certificate() -> None:
    op.create_table(
        "airbridge_certificate",
        sa.Column("thumbprint", sa.String(length=64), nullable=False),
        sa.Column("worker_id", sa.String(length=63), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("parent", sa.String(length=64), nullable=True),
        sa.Column("issued_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("expires_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("used_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("ended_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("ending", sa.String(length=16), nullable=True),
        sa.Column("address", sa.String(length=64), nullable=True),
        sa.Column("other_address", sa.String(length=64), nullable=True),
        sa.Column("moved_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("flagged_at", UtcDateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("thumbprint", name=op.f("pk_airbridge_certificate")),
    )
    op.create_index("idx_airbridge_certificate_worker", "airbridge_certificate", ["worker_id"], unique=False)


def _create_bundle() -> None:
    op.create_table(
        "airbridge_snapshot",
        sa.Column("bundle", sa.String(length=250), nullable=False),
        sa.Column("version", sa.String(length=80), nullable=False),
        sa.Column("publisher", sa.String(length=250), nullable=False),
        sa.Column("signature", sa.Text(), nullable=False),
        sa.Column("signed_at", UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("bundle", "version", name=op.f("pk_airbridge_snapshot")),
    )
    op.create_table(
        "airbridge_bundle",
        sa.Column("name", sa.String(length=250), nullable=False),
        sa.Column("serial", sa.Integer(), nullable=False),
        sa.Column("version", sa.String(length=80), nullable=False),
        sa.Column("previous", sa.String(length=80), nullable=True),
        sa.Column("publisher", sa.String(length=250), nullable=False),
        sa.Column("published_at", UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_airbridge_bundle")),
    )
