"""Error of a worker's last poll, and an index of the audit trail without granted claims.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("airbridge_worker", sa.Column("queue_error", sa.Text(), nullable=True))
    others = sa.text("event <> 'claim.granted'")
    op.create_index(
        "idx_airbridge_audit_without_claims",
        "airbridge_audit",
        ["id"],
        unique=False,
        postgresql_where=others,
        sqlite_where=others,
    )


def downgrade() -> None:
    op.drop_index("idx_airbridge_audit_without_claims", table_name="airbridge_audit")
    op.drop_column("airbridge_worker", "queue_error")
