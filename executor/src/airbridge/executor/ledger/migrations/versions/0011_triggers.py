"""Triggers of deferred tasks as work items.

Revision ID: 0011
Revises: 0010
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

TABLE = "airbridge_work_item"
OPEN = "uq_airbridge_work_item_open"
OF_TRIGGER = "uq_airbridge_work_item_trigger"


def upgrade() -> None:
    op.add_column(TABLE, sa.Column("kind", sa.String(length=16), nullable=False, server_default="task"))
    op.add_column(TABLE, sa.Column("trigger_id", sa.Integer(), nullable=True))
    op.drop_index(OPEN, table_name=TABLE)
    _unique(OPEN, "ti_id", "state <> 'settled' AND kind = 'task'")
    _unique(OF_TRIGGER, "trigger_id", "state <> 'settled' AND trigger_id IS NOT NULL")


def downgrade() -> None:
    # Their job stays: classes of triggers at the edge are any, and Airflow's triggerer must not import them.
    op.execute("DELETE FROM airbridge_work_item WHERE kind = 'trigger'")
    op.drop_index(OF_TRIGGER, table_name=TABLE)
    op.drop_index(OPEN, table_name=TABLE)
    _unique(OPEN, "ti_id", "state <> 'settled'")
    with op.batch_alter_table(TABLE) as batch:
        batch.drop_column("trigger_id")
        batch.drop_column("kind")


def _unique(name: str, column: str, where: str) -> None:
    op.create_index(
        name, TABLE, [column], unique=True, postgresql_where=sa.text(where), sqlite_where=sa.text(where)
    )
