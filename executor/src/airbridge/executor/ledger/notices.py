"""Database notifications to a scheduler that one of its work items was settled, so that it need not poll.

Postgres only. With other databases a scheduler reads outcomes at its next turn.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select

from airbridge.executor.ledger.models import ItemState, WorkItemRow

CHANNEL = "airbridge_settled"


def announce(session: Any, row: WorkItemRow) -> None:
    """Notify the row's scheduler at the commit of this transaction, unless its pool has more items queued.

    A worker that takes its next item from the queue does not wait for the scheduler, so no notification is sent
    then: under load the scheduler reads many outcomes at once.
    """
    if row.owner_job_id is None or session.get_bind().dialect.name != "postgresql":
        return
    waiting = select(WorkItemRow.id).where(
        WorkItemRow.state == ItemState.SENT,
        WorkItemRow.region == row.region,
        WorkItemRow.pool == row.pool,
        WorkItemRow.id != row.id,
    )
    session.execute(select(func.pg_notify(CHANNEL, str(row.owner_job_id))).where(~waiting.exists()))
