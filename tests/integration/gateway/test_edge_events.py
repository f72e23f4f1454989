"""Edge events in the ledger: beside the control plane's own, once each, and only those that a worker may report."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select
from tests.integration.gateway.world import World, lease

from airbridge.control_plane.read_model.history import clock_skew
from airbridge.core.protocol import EdgeEvent
from airbridge.executor.ledger.models import EventRow, GatewayRow


def event(name: str = "task.forked", item: str | None = None, **values: Any) -> EdgeEvent:
    at = values.pop("at", datetime.now(UTC))
    item_id = UUID(item) if item else None
    return EdgeEvent(uid=uuid4(), event=name, at=at, item_id=item_id, epoch=1 if item else None, **values)


def written(world: World, **columns: Any) -> list[EventRow]:
    with world.metadata.session() as session:
        query = select(EventRow).where(*(getattr(EventRow, key) == value for key, value in columns.items()))
        return list(session.scalars(query.order_by(EventRow.id)))


def test_edge_event_gets_task_from_ledger(world: World) -> None:
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


@pytest.mark.parametrize("year", [1, 9999])
def test_impossible_clock_is_corrected(world: World, year: int) -> None:
    """Times by a clock that is centuries off are corrected to the present, and fail neither a timeline nor the export of traces."""
    worker, then = world.worker(), datetime(year, 6, 1, tzinfo=UTC)
    said = event("link.cut", at=then)
    worker.beat(sent_at=then, events=(said,))
    [row] = written(world, uid=str(said.uid))
    assert abs(clock_skew.corrected(row.at, row.skew_seconds) - datetime.now(UTC)) <= timedelta(days=31)


@pytest.mark.parametrize(
    ("claimed", "kept"),
    [
        ("ValueError", {"exception": "ValueError"}),
        ("_Own_2", {"exception": "_Own_2"}),
        ("E" * 100, {"exception": "E" * 100}),
        ("E" * 101, {}),
        ("ValueError: customer 4711", {}),
        ("<script>", {}),
        ("Größe", {}),
        ("", {}),
        (4711, {}),
        (None, {}),
    ],
)
def test_exception_is_a_class_name(world: World, claimed: Any, kept: dict[str, str]) -> None:
    """What a worker reports as a task's exception is kept if it is the name of a class, and dropped otherwise."""
    worker = world.worker()
    said = event("task.ended", detail={"exception": claimed})
    worker.beat(events=(said,))
    [row] = written(world, uid=str(said.uid))
    assert kept == row.detail


@pytest.mark.parametrize(
    ("claimed", "kept"),
    [
        (1.25, 1.25),
        (0, 0.0),
        (-0.5, None),
        (1e300, None),
        (True, None),
        ("1.25", None),
        ("NaN", None),
        (None, None),
    ],
)
def test_use_is_a_number_in_a_column(world: World, claimed: Any, kept: float | None) -> None:
    """What a task's process used is summed: a number in its bounds is kept, in a column of its own, and nothing else is."""
    worker = world.worker()
    said = event("task.ended", detail={"cpu_seconds": claimed, "peak_memory_bytes": claimed, "code": 0})
    other = event("task.forked", detail={"cpu_seconds": 3.0})
    worker.beat(events=(said, other))
    [row] = written(world, uid=str(said.uid))
    assert row.cpu_seconds == kept
    assert row.peak_memory_bytes == (None if kept is None else int(kept))
    assert {"code": 0} == row.detail
    [row] = written(world, uid=str(other.uid))
    assert row.cpu_seconds is None


def test_repeated_event_is_written_once(world: World) -> None:
    """A heartbeat whose answer was lost is sent again with the same events."""
    worker = world.worker()
    said = event("link.cut")
    assert [1, 1] == [worker.beat(events=(said,)).events_taken for _ in range(2)]
    assert 1 == len(written(world, uid=str(said.uid)))


def test_a_skewed_clock_is_measured(world: World) -> None:
    """A worker whose clock is ahead has its skew recorded beside the time that it reports."""
    worker = world.worker()
    ahead = datetime.now(UTC) + timedelta(minutes=5)
    said = event("link.cut", at=ahead)
    worker.beat(events=(said,), sent_at=ahead)
    [row] = written(world, uid=str(said.uid))
    assert 290 < row.skew_seconds < 310


def test_foreign_edge_events_are_dropped(world: World) -> None:
    """Events of another region's item, of no item that there is, or under a name of the control plane's are dropped."""
    [item] = world.items(region="us-east-1")
    worker = world.worker("eu-west-1")
    foreign, unknown, forged = event(item=item), event(item=str(uuid4())), event("token.created")
    mine = event("link.cut")
    assert 4 == worker.beat(events=(foreign, unknown, forged, mine)).events_taken
    assert [] == [row for each in (foreign, unknown, forged) for row in written(world, uid=str(each.uid))]
    assert 1 == len(written(world, uid=str(mine.uid)))


def test_refused_claim_is_task_event(world: World) -> None:
    """A refusal is found by the item and by the task instance that it was about."""
    [item] = world.items()
    world.worker("eu-west-1", "gpu").claim(world.envelope(item))
    [row] = written(world, event="claim.refused", item_id=item)
    assert (world.row(item).ti_id, "wrong_pool") == (row.ti_id, row.detail["reason"])


def test_gateway_writes_liveness_row(world: World) -> None:
    """A running gateway has a row that was seen lately."""
    with world.metadata.session() as session:
        [row] = session.scalars(select(GatewayRow)).all()
        assert row.started_at <= row.seen_at


def test_event_requires_granted_epoch(world: World) -> None:
    """The holder's own epoch counts, and so does an earlier one of its own; another worker's pool and epoch do not."""
    [item] = world.items()
    first, second = world.worker(), world.worker()
    grant = first.grant(item)
    first.release(lease(grant))
    second.claim(world.envelope(item))
    late, current, foreign = event(item=item), event(item=item), event(item=item)
    first.beat(events=(late,))
    second.beat(events=(foreign,))
    # The second worker's grant has the next epoch: the same event passes with it.
    second.beat(events=(current.model_copy(update={"epoch": world.row(item).epoch}),))
    assert [1, 1, 0] == [len(written(world, uid=str(each.uid))) for each in (late, current, foreign)]
    assert world.audited("events.refused", worker_id=second.name.worker)


def test_impossible_time_is_clamped(world: World) -> None:
    """A time before the item was placed, or in the future, becomes the nearest possible one; the reported time is kept in the detail."""
    [item] = world.items()
    worker = world.worker()
    worker.grant(item)
    now = datetime.now(UTC)
    early, late = event(item=item, at=now - timedelta(days=9)), event(at=now + timedelta(days=9))
    worker.beat(events=(early, late))
    for said in (early, late):
        [row] = written(world, uid=str(said.uid))
        # The bounds allow for clock skew of some minutes.
        assert abs(row.at - now) < timedelta(minutes=12)
        assert said.at.isoformat() == row.detail["said_at"]
