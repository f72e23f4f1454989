"""Notices: the database tells a scheduler that one of its work items was settled, so that it need not keep asking.

Postgres only. Elsewhere nothing is told, and a scheduler hears of it when it next looks.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select

from airbridge.executor.ledger.models import ItemState, WorkItemRow

CHANNEL = "airbridge_settled"


def announce(session: Any, row: WorkItemRow) -> None:
    """Tell the row's scheduler, once this transaction commits, unless its pool has more on its queue to go on with.

    A worker that takes its next item from the queue does not wait for the scheduler, so the scheduler is left to its
    own pace then: under load it looks at many outcomes at once.
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
