"""The ledger's first tables: work items, records, workers, tokens, revocations, events.

Revision ID: 0001
Revises:
"""

from __future__ import annotations

import sqlalchemy as sa
from airflow.utils.sqlalchemy import UtcDateTime
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

UUID_TEXT = sa.String(36).with_variant(postgresql.UUID(as_uuid=False), "postgresql")


def upgrade() -> None:
    _create_event()
    _create_record()
    _create_revocation()
    _create_token()
    _create_work_item()
    _create_worker()


def downgrade() -> None:
    op.drop_index("idx_airbridge_worker_region", table_name="airbridge_worker")
    op.drop_table("airbridge_worker")
    op.drop_index(
        "uq_airbridge_work_item_open",
        table_name="airbridge_work_item",
        postgresql_where=sa.text("state <> 'settled'"),
        sqlite_where=sa.text("state <> 'settled'"),
    )
    op.drop_index("idx_airbridge_work_item_worker", table_name="airbridge_work_item")
    op.drop_index("idx_airbridge_work_item_task", table_name="airbridge_work_item")
    op.drop_index("idx_airbridge_work_item_sync", table_name="airbridge_work_item")
    op.drop_index("idx_airbridge_work_item_outbox", table_name="airbridge_work_item")
    op.drop_index("idx_airbridge_work_item_lost", table_name="airbridge_work_item")
    op.drop_index("idx_airbridge_work_item_fallback", table_name="airbridge_work_item")
    op.drop_table("airbridge_work_item")
    op.drop_table("airbridge_token")
    op.drop_table("airbridge_revocation")
    op.drop_table("airbridge_record")
    op.drop_index("idx_airbridge_event_ti", table_name="airbridge_event")
    op.drop_index("idx_airbridge_event_item", table_name="airbridge_event")
    op.drop_index("idx_airbridge_event_at", table_name="airbridge_event")
    op.drop_table("airbridge_event")


def _create_event() -> None:
    op.create_table(
        "airbridge_event",
        sa.Column(
            "id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False
        ),
        sa.Column("at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("event", sa.String(length=64), nullable=False),
        sa.Column("actor", sa.String(length=250), nullable=False),
        sa.Column("region", sa.String(length=63), nullable=True),
        sa.Column("worker_id", sa.String(length=63), nullable=True),
        sa.Column("item_id", UUID_TEXT, nullable=True),
        sa.Column("ti_id", UUID_TEXT, nullable=True),
        sa.Column("epoch", sa.Integer(), nullable=True),
        sa.Column("trace_id", sa.String(length=32), nullable=True),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_airbridge_event")),
    )
    op.create_index("idx_airbridge_event_at", "airbridge_event", ["at"], unique=False)
    op.create_index("idx_airbridge_event_item", "airbridge_event", ["item_id"], unique=False)
    op.create_index("idx_airbridge_event_ti", "airbridge_event", ["ti_id"], unique=False)


def _create_record() -> None:
    op.create_table(
        "airbridge_record",
        sa.Column("item_id", UUID_TEXT, nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("headers", sa.JSON(), nullable=False),
        sa.Column("body", sa.Text(), nullable=True),
        sa.Column("applied_at", UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("item_id", "epoch", "seq", name=op.f("pk_airbridge_record")),
    )


def _create_revocation() -> None:
    op.create_table(
        "airbridge_revocation",
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("value", sa.String(length=128), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("actor", sa.String(length=250), nullable=False),
        sa.Column("revoked_at", UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("kind", "value", name=op.f("pk_airbridge_revocation")),
    )


def _create_token() -> None:
    op.create_table(
        "airbridge_token",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("owner", sa.String(length=250), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("uses_left", sa.Integer(), nullable=True),
        sa.Column("created_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("expires_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("last_used_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", UtcDateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_airbridge_token")),
        sa.UniqueConstraint("hash", name=op.f("uq_airbridge_token_hash")),
    )


def _create_work_item() -> None:
    op.create_table(
        "airbridge_work_item",
        sa.Column("id", UUID_TEXT, nullable=False),
        sa.Column("ti_id", UUID_TEXT, nullable=False),
        sa.Column("dag_id", sa.String(length=250), nullable=False),
        sa.Column("run_id", sa.String(length=250), nullable=False),
        sa.Column("task_id", sa.String(length=250), nullable=False),
        sa.Column("map_index", sa.Integer(), nullable=False),
        sa.Column("try_number", sa.Integer(), nullable=False),
        sa.Column("queue", sa.String(length=256), nullable=False),
        sa.Column("region", sa.String(length=63), nullable=False),
        sa.Column("pool", sa.String(length=63), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("epoch", sa.Integer(), server_default="0", nullable=False),
        sa.Column("owner_job_id", sa.Integer(), nullable=True),
        sa.Column("workload", sa.JSON(), nullable=False),
        sa.Column("placement", sa.JSON(), nullable=False),
        sa.Column("disconnect", sa.JSON(), nullable=False),
        sa.Column("warm", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("trace", sa.JSON(), nullable=False),
        sa.Column("placed_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("not_before", UtcDateTime(timezone=True), nullable=False),
        sa.Column("fallback_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("sends", sa.Integer(), server_default="0", nullable=False),
        sa.Column("sent_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("expires_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("worker_id", sa.String(length=63), nullable=True),
        sa.Column("claimed_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("renewed_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("lease_until", UtcDateTime(timezone=True), nullable=True),
        sa.Column("lost_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("started", sa.JSON(), nullable=True),
        sa.Column("settled_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("outcome", sa.String(length=16), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("acknowledged_at", UtcDateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_airbridge_work_item")),
    )
    op.create_index(
        "idx_airbridge_work_item_fallback",
        "airbridge_work_item",
        ["region", "state", "fallback_at"],
        unique=False,
    )
    op.create_index("idx_airbridge_work_item_lost", "airbridge_work_item", ["state", "lost_at"], unique=False)
    op.create_index(
        "idx_airbridge_work_item_outbox",
        "airbridge_work_item",
        ["state", "region", "pool", "priority"],
        unique=False,
    )
    op.create_index(
        "idx_airbridge_work_item_sync",
        "airbridge_work_item",
        ["owner_job_id", "state", "acknowledged_at"],
        unique=False,
    )
    op.create_index(
        "idx_airbridge_work_item_task", "airbridge_work_item", ["dag_id", "run_id", "task_id"], unique=False
    )
    op.create_index(
        "idx_airbridge_work_item_worker", "airbridge_work_item", ["worker_id", "state"], unique=False
    )
    op.create_index(
        "uq_airbridge_work_item_open",
        "airbridge_work_item",
        ["ti_id"],
        unique=True,
        postgresql_where=sa.text("state <> 'settled'"),
        sqlite_where=sa.text("state <> 'settled'"),
    )


def _create_worker() -> None:
    op.create_table(
        "airbridge_worker",
        sa.Column("id", sa.String(length=63), nullable=False),
        sa.Column("region", sa.String(length=63), nullable=False),
        sa.Column("pool", sa.String(length=63), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("wanted", sa.String(length=16), server_default="active", nullable=False),
        sa.Column("comment", sa.Text(), nullable=True),
        sa.Column("versions", sa.JSON(), nullable=False),
        sa.Column("slots_total", sa.Integer(), server_default="0", nullable=False),
        sa.Column("slots_used", sa.Integer(), server_default="0", nullable=False),
        sa.Column("journal_pending", sa.Integer(), server_default="0", nullable=False),
        sa.Column("journal_bytes", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("clock_skew_seconds", sa.Float(), server_default="0", nullable=False),
        sa.Column("certificate_thumbprint", sa.String(length=64), nullable=True),
        sa.Column("certificate_expires_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("enrolled_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("last_heartbeat_at", UtcDateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_airbridge_worker")),
    )
    op.create_index("idx_airbridge_worker_region", "airbridge_worker", ["region", "pool"], unique=False)
