"""A long backlog is reported without holding up new work; a wrong clock changes nothing."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from tests.integration.edge_worker.conftest import World, until
from tests.integration.edge_worker.control_plane import Item
from tests.integration.edge_worker.test_agent import Gate, succeed

from airbridge.edge_worker.agent import Agent
from airbridge.edge_worker.clock import SystemClock
from airbridge.edge_worker.journal_file import JournalFile
from airbridge.edge_worker.journal_rows import AddGrant, AddRecord, Op
from airbridge.executor.protocol import Grant, Record


def write_backlog(world: World, tasks: int, records: int) -> list[Item]:
    """A journal as a worker leaves it that was cut off while it ran `tasks` tasks of `records` records each."""
    control_plane = world.control_plane
    ref = world.publish()
    items, ops = [], list[Op]()
    for _ in range(tasks):
        item, envelope = control_plane.place(ref)
        grant = control_plane._claim_one(0, envelope)
        assert isinstance(grant, Grant)
        items.append(item)
        ops.append(AddGrant(grant))
        for seq in range(1, records + 1):
            final = seq == records
            path = f"task-instances/{item.ti_id}/state" if final else f"xcoms/dag/run/task/k{seq}"
            ops.append(
                AddRecord(
                    Record(
                        item_id=item.item_id,
                        epoch=1,
                        seq=seq,
                        method="PATCH" if final else "POST",
                        path=path,
                        body='{"state": "success"}' if final else "1",
                        recorded_at=datetime.now(UTC),
                    ),
                    final,
                )
            )
    settings = world.settings()
    journal, _ = JournalFile.open(settings.journal_file, now=datetime.now(UTC), fsync=False)
    journal.apply(ops)
    journal.close()
    return items


def test_twenty_five_thousand_records_do_not_hold_up_new_work(world: World) -> None:
    """With a backlog to report, a new task is claimed, runs and is committed; the backlog arrives whole and in order.

    How much of the backlog is left by then depends on the machine's speed: it is printed, not asserted.
    """

    async def scenario() -> None:
        backlog = write_backlog(world, 2500, 10)
        fresh = world.submit()  # waits on the queue when the worker comes back with its backlog
        async with world.worker(succeed):
            await until(lambda: fresh.state == "settled", 60)
            left = sum(item.state != "settled" for item in backlog)
            await until(lambda: all(item.state == "settled" for item in backlog), 120)
        print(f"{left} of {len(backlog)} tasks of the backlog were left when the new one was committed")
        assert fresh.states == ["success"]
        assert all([record.seq for record in item.applied] == [*range(1, 11)] for item in backlog)

    asyncio.run(scenario())


class WrongClock(SystemClock):
    """A host's clock that is off."""

    def __init__(self, off: timedelta) -> None:
        self._off = off

    def now(self) -> datetime:
        return super().now() + self._off


def test_a_wrong_clock_changes_nothing_and_is_reported(world: World) -> None:
    """Ten minutes fast or slow: no needless renewal, no lost lease; the skew is in the status."""
    for off in (timedelta(minutes=10), timedelta(minutes=-10)):

        async def scenario(off: timedelta = off) -> None:
            gate = Gate()
            world.control_plane.certificate_seconds = 900.0  # half of it is less than the skew
            world.control_plane.renewals = 0
            item = world.submit()
            parts = replace(world.parts(gate), clock=WrongClock(off))
            agent = Agent(world.settings(), parts)
            running = asyncio.create_task(agent.run())
            await until(lambda: gate.running == 1)
            await asyncio.sleep(0.5)
            assert abs(agent.status()["clock_skew_seconds"] - off.total_seconds()) < 5
            gate.go.set()
            await until(lambda: item.state == "settled")
            agent.drain()
            await asyncio.wait_for(running, 30)
            assert world.control_plane.renewals == 0
            assert item.states == ["success"]

        asyncio.run(scenario())
