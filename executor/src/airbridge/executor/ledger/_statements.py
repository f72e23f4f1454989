"""Statements on work items that the outbox and the executor run in each of their turns.

They are built once, at import: SQLAlchemy takes longer to analyse a new statement than to run a known one.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import bindparam, select, update
from sqlalchemy.orm import aliased, defer

from airbridge.core.protocol import ItemKind
from airbridge.executor.ledger._locking import skipping_locked
from airbridge.executor.ledger.models import ItemState, WorkItemRow

# Columns that are read only where they are needed; a row loads them on access.
BIG: Final = (WorkItemRow.workload, WorkItemRow.placement, WorkItemRow.started)

_ITEM: Final = WorkItemRow.__table__
_CANDIDATE: Final = aliased(WorkItemRow)
_UNCLAIMED_IN_ORDER: Final = (
    select(_CANDIDATE.id)
    .where(
        _CANDIDATE.id.in_(bindparam("ids", expanding=True)),
        _CANDIDATE.state.in_((ItemState.PLACED, ItemState.SENT)),
    )
    .order_by(_CANDIDATE.id)
    .with_for_update()
)
"""Subquery of those of the rows `ids` that no worker holds, locked in the order of their ids.

An update locks the rows in any order, and workers claim them meanwhile, in the order of their ids: that could deadlock.
"""

# --- Sending ---

IN_ORDER: Final = skipping_locked(
    select(WorkItemRow)
    .where(
        WorkItemRow.state == ItemState.PLACED,
        WorkItemRow.region == bindparam("region"),
        WorkItemRow.pool == bindparam("pool"),
        WorkItemRow.not_before <= bindparam("at"),
        WorkItemRow.kind == ItemKind.TASK,
    )
    .order_by(WorkItemRow.priority.desc(), WorkItemRow.placed_at, WorkItemRow.id)
    .limit(bindparam("most"))
)
RESERVE: Final = (
    update(_ITEM)
    .where(_ITEM.c.id.in_(bindparam("ids", expanding=True)), _ITEM.c.state == ItemState.PLACED)
    .values(state=ItemState.SENT, sent_at=None, expires_at=bindparam("until"), sends=_ITEM.c.sends + 1)
)
POSTPONE: Final = (
    update(_ITEM)
    .where(_ITEM.c.id.in_(_UNCLAIMED_IN_ORDER))
    .values(
        state=ItemState.PLACED,
        sent_at=None,
        expires_at=None,
        not_before=bindparam("at"),
        detail=bindparam("why"),
    )
)
MARK_SENT: Final = (
    update(_ITEM)
    .where(_ITEM.c.id.in_(_UNCLAIMED_IN_ORDER))
    .values(state=ItemState.SENT, sent_at=bindparam("at"), expires_at=bindparam("until"), detail=None)
)


# --- Placing and reporting ---

OPEN: Final = (
    select(WorkItemRow)
    .where(
        WorkItemRow.ti_id.in_(bindparam("ti_ids", expanding=True)),
        WorkItemRow.state != ItemState.SETTLED,
        WorkItemRow.kind == ItemKind.TASK,
    )
    .order_by(WorkItemRow.id)
    .with_for_update()
    .execution_options(populate_existing=True)
)
OPENED: Final = select(WorkItemRow.ti_id).where(
    WorkItemRow.ti_id.in_(bindparam("ti_ids", expanding=True)),
    WorkItemRow.state != ItemState.SETTLED,
    WorkItemRow.kind == ItemKind.TASK,
)
_UNACKNOWLEDGED: Final = (
    select(WorkItemRow)
    .options(*(defer(column) for column in BIG))
    .where(
        WorkItemRow.state == ItemState.SETTLED,
        WorkItemRow.acknowledged_at.is_(None),
        WorkItemRow.kind == ItemKind.TASK,
    )
    .order_by(WorkItemRow.settled_at)
)
UNACKNOWLEDGED: Final = _UNACKNOWLEDGED.where(WorkItemRow.owner_job_id == bindparam("owner"))
UNACKNOWLEDGED_UNOWNED: Final = _UNACKNOWLEDGED.where(WorkItemRow.owner_job_id.is_(None))
ACKNOWLEDGE: Final = (
    update(_ITEM)
    .where(_ITEM.c.id.in_(bindparam("ids", expanding=True)))
    .values(acknowledged_at=bindparam("at"))
)
