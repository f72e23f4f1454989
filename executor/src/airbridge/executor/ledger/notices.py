"""Database notifications to a scheduler that one of its work items was settled, so that it need not poll.

Postgres only. With other databases a scheduler reads outcomes at its next turn.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import bindparam, func, select

from airbridge.executor.ledger.models import ItemState, WorkItemRow

CHANNEL = "airbridge_settled"


_ITEM: Final = WorkItemRow.__table__
_ANNOUNCE: Final = select(func.pg_notify(CHANNEL, bindparam("owner"))).where(
    ~select(_ITEM.c.id)
    .where(
        _ITEM.c.state == ItemState.SENT,
        _ITEM.c.region == bindparam("region"),
        _ITEM.c.pool == bindparam("pool"),
        _ITEM.c.id != bindparam("item_id"),
    )
    .exists()
)


def announce(session: Any, row: WorkItemRow) -> None:
    """Notify the row's scheduler at the commit of this transaction, unless its pool has more items queued.

    A worker that takes its next item from the queue does not wait for the scheduler, so no notification is sent
    then: under load the scheduler reads many outcomes at once.
    """
    if row.owner_job_id is None or session.get_bind().dialect.name != "postgresql":
        return
    values = {"owner": str(row.owner_job_id), "region": row.region, "pool": row.pool, "item_id": row.id}
    session.execute(_ANNOUNCE, values)
