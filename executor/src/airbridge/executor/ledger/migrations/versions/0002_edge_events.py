"""Edge events beside the control plane's own, liveness of gateways, and the position of the trace export.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from airflow.utils.sqlalchemy import UtcDateTime
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

UUID_TEXT = sa.String(36).with_variant(postgresql.UUID(as_uuid=False), "postgresql")

_EVENT = (
    sa.Column("began_at", UtcDateTime(timezone=True), nullable=True),
    sa.Column("source", sa.String(length=16), nullable=False, server_default="control"),
    sa.Column("uid", UUID_TEXT, nullable=True),
    sa.Column("received_at", UtcDateTime(timezone=True), nullable=True),
    sa.Column("skew_seconds", sa.Float(), nullable=True),
)


def upgrade() -> None:
    with op.batch_alter_table("airbridge_event") as table:
        for column in _EVENT:
            table.add_column(column)
    op.create_index("uq_airbridge_event_uid", "airbridge_event", ["uid"], unique=True)
    op.create_index("idx_airbridge_event_trace", "airbridge_event", ["trace_id"], unique=False)
    op.create_index("idx_airbridge_event_worker", "airbridge_event", ["worker_id", "at"], unique=False)
    op.create_index("idx_airbridge_work_item_placed", "airbridge_work_item", ["placed_at"], unique=False)
    op.create_index("idx_airbridge_work_item_settled", "airbridge_work_item", ["settled_at"], unique=False)
    op.create_table(
        "airbridge_gateway",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("started_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("seen_at", UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_airbridge_gateway")),
    )
    op.create_table(
        "airbridge_export",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("event_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("exported_at", UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_airbridge_export")),
    )


def downgrade() -> None:
    op.drop_table("airbridge_export")
    op.drop_table("airbridge_gateway")
    op.drop_index("idx_airbridge_work_item_settled", table_name="airbridge_work_item")
    op.drop_index("idx_airbridge_work_item_placed", table_name="airbridge_work_item")
    op.drop_index("idx_airbridge_event_worker", table_name="airbridge_event")
    op.drop_index("idx_airbridge_event_trace", table_name="airbridge_event")
    op.drop_index("uq_airbridge_event_uid", table_name="airbridge_event")
    with op.batch_alter_table("airbridge_event") as table:
        for column in reversed(_EVENT):
            table.drop_column(column.name)
