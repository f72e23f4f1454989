"""Edge events in the ledger: beside the control plane's own, once each, and only what a worker may say."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import select
from tests.integration.gateway.world import World

from airbridge.executor.ledger.models import EventRow, GatewayRow
from airbridge.executor.protocol import EdgeEvent


def event(name: str = "task.forked", item: str | None = None, **values: Any) -> EdgeEvent:
    at = values.pop("at", datetime.now(UTC))
    item_id = UUID(item) if item else None
    return EdgeEvent(uid=uuid4(), event=name, at=at, item_id=item_id, epoch=1 if item else None, **values)


def written(world: World, **columns: Any) -> list[EventRow]:
    with world.metadata.session() as session:
        query = select(EventRow).where(*(getattr(EventRow, key) == value for key, value in columns.items()))
        return list(session.scalars(query.order_by(EventRow.id)))


def test_an_edge_event_gets_its_task_and_trace_from_the_ledger(world: World) -> None:
    """The worker names the item; who it is of, and its trace, are the ledger's. Its times stay its own."""
    [item] = world.items()
    worker = world.worker()
    worker.grant(item)
    then = datetime.now(UTC) - timedelta(minutes=3)
    said = event(item=item, at=then, began_at=then - timedelta(seconds=2), detail={"warm": True})
    answer = worker.beat(events=(said,))
    assert 1 == answer.events_taken

    [row] = written(world, uid=str(said.uid))
    assert ("edge", worker.name.uri, worker.name.worker) == (row.source, row.actor, row.worker_id)
    assert (item, world.row(item).ti_id, 1) == (row.item_id, row.ti_id, row.epoch)
    assert then == row.at
    assert timedelta(seconds=2) == row.at - row.began_at
    assert abs(row.received_at - datetime.now(UTC)) < timedelta(minutes=1)
    assert abs(row.skew_seconds) < 5
    assert {"warm": True} == row.detail


def test_an_event_told_twice_is_written_once(world: World) -> None:
    """A heartbeat whose answer was lost is sent again with the same events."""
    worker = world.worker()
    said = event("link.cut")
    assert [1, 1] == [worker.beat(events=(said,)).events_taken for _ in range(2)]
    assert 1 == len(written(world, uid=str(said.uid)))


def test_a_skewed_clock_is_measured(world: World) -> None:
    """A worker whose clock is ahead has its skew written beside the time it says."""
    worker = world.worker()
    ahead = datetime.now(UTC) + timedelta(minutes=5)
    said = event("link.cut", at=ahead)
    worker.beat(events=(said,), sent_at=ahead)
    [row] = written(world, uid=str(said.uid))
    assert 290 < row.skew_seconds < 310


def test_a_worker_speaks_only_of_its_own_region_and_only_of_the_edge(world: World) -> None:
    """Events of another region's item, of no item that there is, or under a name of the control plane's are dropped."""
    [item] = world.items(region="us-east-1")
    worker = world.worker("eu-west-1")
    foreign, unknown, forged = event(item=item), event(item=str(uuid4())), event("token.created")
    mine = event("link.cut")
    assert 4 == worker.beat(events=(foreign, unknown, forged, mine)).events_taken
    assert [] == [row for each in (foreign, unknown, forged) for row in written(world, uid=str(each.uid))]
    assert 1 == len(written(world, uid=str(mine.uid)))


def test_a_refused_claim_is_an_event_of_its_task(world: World) -> None:
    """A refusal is found by the item and by the task instance that it was about."""
    [item] = world.items()
    world.worker("eu-west-1", "gpu").claim(world.envelope(item))
    [row] = written(world, event="claim.refused", item_id=item)
    assert (world.row(item).ti_id, "wrong_pool") == (row.ti_id, row.detail["reason"])


def test_the_gateway_says_that_it_is_there(world: World) -> None:
    """A running gateway has a row that was seen lately."""
    with world.metadata.session() as session:
        [row] = session.scalars(select(GatewayRow)).all()
        assert row.started_at <= row.seen_at
