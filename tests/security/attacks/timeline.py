"""Attacks on tasks' timelines: events of items that a worker never held, and impossible times."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import select
from tests.security.attacks.registry import Result, attack


def _written(world: Any, uid: UUID) -> list[Any]:
    from airbridge.executor.ledger.models import EventRow

    with world.metadata.session() as session:
        return list(session.scalars(select(EventRow).where(EventRow.uid == str(uid))))


def _event(item: str, at: datetime, epoch: int = 1) -> Any:
    from airbridge.core.protocol import EdgeEvent

    return EdgeEvent(
        uid=uuid4(), event="task.failed", at=at, item_id=UUID(item), epoch=epoch, detail={"why": "forged"}
    )


@attack(row=16)
def event_of_another_pools_task(world: Any, directory: Path) -> Result:
    """A worker of one pool writes into the timeline of another pool's task of the same region."""
    [item] = world.items()
    world.worker().grant(item)
    forged = _event(item, datetime.now(UTC))
    world.worker(pool="gpu").beat(events=(forged,))
    return Result("the event is in the other task's timeline" if _written(world, forged.uid) else "")


@attack(row=16)
def event_of_another_epoch(world: Any, directory: Path) -> Result:
    """A worker that holds an item writes under an epoch that it never had."""
    [item] = world.items()
    worker = world.worker()
    worker.grant(item)
    forged = _event(item, datetime.now(UTC), epoch=7)
    worker.beat(events=(forged,))
    return Result("the event is in the timeline" if _written(world, forged.uid) else "")


@attack(row=16)
def backdated_event(world: Any, directory: Path) -> Result:
    """The holder of an item writes an event of a time before the item was placed."""
    [item] = world.items()
    worker = world.worker()
    worker.grant(item)
    forged = _event(item, datetime.now(UTC) - timedelta(days=30))
    worker.beat(events=(forged,))
    early = [row for row in _written(world, forged.uid) if datetime.now(UTC) - row.at > timedelta(days=1)]
    return Result("the event is dated a month back" if early else "")


@attack(row=16)
def postdated_event(world: Any, directory: Path) -> Result:
    """An event of a time to come stays the newest for ever, and no retention removes it."""
    worker = world.worker()
    from airbridge.core.protocol import EdgeEvent

    forged = EdgeEvent(uid=uuid4(), event="link.cut", at=datetime.now(UTC) + timedelta(days=3650))
    worker.beat(events=(forged,))
    late = [row for row in _written(world, forged.uid) if row.at - datetime.now(UTC) > timedelta(days=1)]
    return Result("the event is dated ten years ahead" if late else "")
