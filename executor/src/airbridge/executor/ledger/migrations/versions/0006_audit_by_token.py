"""Indexes of the audit trail by the tokens that its rows name.

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

KEYS = ("token", "by_token", "parent")


def upgrade() -> None:
    """Create them on Postgres. SQLite's trail, of tests and trials, is small enough to scan."""
    if op.get_context().dialect.name != "postgresql":
        return
    for key in KEYS:
        # Partial: grants, which are most rows, name no token.
        op.execute(
            f"CREATE INDEX idx_airbridge_audit_{key} ON airbridge_audit ((detail ->> '{key}')) "
            f"WHERE (detail ->> '{key}') IS NOT NULL"
        )


def downgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        for key in KEYS:
            op.execute(f"DROP INDEX idx_airbridge_audit_{key}")
