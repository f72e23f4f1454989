"""Work items, with filters and search."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import load_only

from airbridge.control_plane.read_model import paging
from airbridge.control_plane.read_model.paging import FIRST, Page, PageRequest
from airbridge.core.protocol import ItemKind, exception_name
from airbridge.executor.ledger.models import EventRow, ItemState, Outcome, WorkItemRow

Order = Literal["newest", "oldest", "settled"]


@dataclass(frozen=True, slots=True)
class ItemView:
    """Work item without its large columns. Times are by the database's clock."""

    id: str
    #: A trigger has the names of the task that is deferred on it.
    kind: ItemKind
    ti_id: str
    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    try_number: int
    queue: str
    region: str
    pool: str
    team: str
    slots: int
    priority: int
    state: ItemState
    epoch: int
    worker_id: str | None
    placed_at: datetime
    sent_at: datetime | None
    sends: int
    not_before: datetime
    expires_at: datetime | None
    claimed_at: datetime | None
    renewed_at: datetime | None
    lease_until: datetime | None
    lost_at: datetime | None
    settled_at: datetime | None
    outcome: str | None
    detail: str | None
    trace_id: str | None

    @property
    def open(self) -> bool:
        """True if it has not ended."""
        return self.state is not ItemState.SETTLED

    @property
    def is_trigger(self) -> bool:
        """True if it is the trigger of a deferred task, and takes no slot."""
        return self.kind is ItemKind.TRIGGER


@dataclass(frozen=True, slots=True)
class WorkFilter:
    """Filter of work items; fields of None match all.

    `text` is the beginning of a DAG, run or task id; `open` selects items that have not ended, or have.
    """

    kind: ItemKind | None = None
    region: str | None = None
    pool: str | None = None
    state: ItemState | None = None
    outcome: str | None = None
    open: bool | None = None
    worker: str | None = None
    dag_id: str | None = None
    run_id: str | None = None
    text: str | None = None
    #: DAGs that the viewer may read.
    dag_ids: Collection[str] | None = None


_COLUMNS = tuple(
    getattr(WorkItemRow, name)
    for name in (
        *("id", "kind", "ti_id", "dag_id", "run_id", "task_id", "map_index", "try_number"),
        *("queue", "region", "pool", "team", "slots", "priority", "state", "epoch", "worker_id"),
        *("placed_at", "sent_at", "sends", "not_before", "expires_at", "claimed_at", "renewed_at"),
        *("lease_until", "lost_at", "settled_at", "outcome", "detail"),
        "trace",
    )
)


def listing(
    session: Any,
    which: WorkFilter = WorkFilter(),
    page: PageRequest = FIRST,
    order: Order = "newest",
) -> Page[ItemView]:
    """Return a page of work items."""
    query = _chosen(which).options(load_only(*_COLUMNS))
    row = WorkItemRow
    by = {"newest": row.placed_at.desc(), "oldest": row.placed_at, "settled": row.settled_at.desc()}[order]
    return paging.fetch(session, query.order_by(by, row.id), page, lambda found: view(found[0]))


def of_task(
    session: Any, dag_id: str, run_id: str, task_id: str, map_index: int, *, limit: int = 200
) -> tuple[ItemView, ...]:
    """Return the newest `limit` items of one task and of its triggers through all its tries, oldest first."""
    row = WorkItemRow
    query = (
        select(row)
        .options(load_only(*_COLUMNS))
        .where(row.dag_id == dag_id, row.run_id == run_id, row.task_id == task_id, row.map_index == map_index)
        .order_by(row.placed_at.desc())
        .limit(limit)
    )
    return tuple(view(found) for found in reversed(session.scalars(query).all()))


def exceptions(session: Any, items: Sequence[ItemView]) -> dict[str, str]:
    """Return the class of the exception that failed each attempt, by item, as its worker reported it; never its message."""
    epochs = {each.id: each.epoch for each in items if each.outcome == Outcome.FAILED}
    if not epochs:
        return {}
    row = EventRow
    query = select(row.item_id, row.epoch, row.detail).where(
        row.item_id.in_(epochs), row.event == "task.ended", row.source == "edge"
    )
    return {
        item_id: name
        for item_id, epoch, detail in session.execute(query)
        if epoch == epochs[item_id] and (name := exception_name(detail.get("exception")))
    }


def view(row: WorkItemRow) -> ItemView:
    """Return a row as a value."""
    from airbridge.executor.ledger.events import trace_id

    return ItemView(
        id=row.id,
        kind=ItemKind(row.kind),
        ti_id=row.ti_id,
        dag_id=row.dag_id,
        run_id=row.run_id,
        task_id=row.task_id,
        map_index=row.map_index,
        try_number=row.try_number,
        queue=row.queue,
        region=row.region,
        pool=row.pool,
        team=row.team,
        slots=row.slots,
        priority=row.priority,
        state=ItemState(row.state),
        epoch=row.epoch,
        worker_id=row.worker_id,
        placed_at=row.placed_at,
        sent_at=row.sent_at,
        sends=row.sends,
        not_before=row.not_before,
        expires_at=row.expires_at,
        claimed_at=row.claimed_at,
        renewed_at=row.renewed_at,
        lease_until=row.lease_until,
        lost_at=row.lost_at,
        settled_at=row.settled_at,
        outcome=row.outcome,
        detail=row.detail,
        trace_id=trace_id(row.trace),
    )


def _chosen(which: WorkFilter) -> Any:
    row = WorkItemRow
    query = select(row)
    for column, value in (
        (row.kind, which.kind),
        (row.region, which.region),
        (row.pool, which.pool),
        (row.state, which.state),
        (row.outcome, which.outcome),
        (row.worker_id, which.worker),
        (row.dag_id, which.dag_id),
        (row.run_id, which.run_id),
    ):
        if value is not None:
            query = query.where(column == value)
    if which.dag_ids is not None:
        query = query.where(row.dag_id.in_(which.dag_ids))
    if which.open is not None:
        settled = row.state == ItemState.SETTLED
        query = query.where(~settled if which.open else settled)
    if which.text:
        starts = [
            column.startswith(which.text, autoescape=True) for column in (row.dag_id, row.run_id, row.task_id)
        ]
        query = query.where(starts[0] | starts[1] | starts[2])
    return query
