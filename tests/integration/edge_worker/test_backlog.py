"""A long backlog is reported without holding up new work; a wrong clock changes nothing."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from tests.integration.edge_worker.conftest import World, until
from tests.integration.edge_worker.control_plane import Item
from tests.integration.edge_worker.test_agent import Gate

from airbridge.core.protocol import Grant, Record
from airbridge.edge_worker.agent import Agent
from airbridge.edge_worker.clock import SystemClock
from airbridge.edge_worker.journal.file import JournalFile
from airbridge.edge_worker.journal.rows import AddGrant, AddRecord, Op
from airbridge.edge_worker.testing import FakeSupervisor


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


def test_backlog_does_not_delay_new_work(world: World) -> None:
    """With 25,000 records of backlog and a slow gateway a new task is claimed, runs and is committed meanwhile."""

    async def scenario() -> None:
        control_plane = world.control_plane
        backlog = write_backlog(world, 2500, 10)
        of_backlog = {str(item.item_id) for item in backlog}
        fresh = world.submit()  # waits on the queue when the worker comes back with its backlog
        held, released = 0, False

        def hold_back(what: str, content: bytes) -> bool:
            nonlocal held
            if what != "exchange" or released:
                return False
            records = json.loads(content)["records"]
            late = any(record["item_id"] in of_backlog for record in records)
            held += late
            return late

        control_plane.hold_back = hold_back
        async with world.worker(work_that_reads, request_timeout_seconds=200.0):
            await until(lambda: held, 60)
            await until(lambda: fresh.state == "settled", 60)
            assert all(item.state != "settled" for item in backlog)
            released = True
            await until(lambda: all(item.state == "settled" for item in backlog), 120)
        assert fresh.states == ["success"]
        assert all([record.seq for record in item.applied] == [*range(1, 11)] for item in backlog)

    asyncio.run(scenario())


def work_that_reads(task: FakeSupervisor) -> None:
    """A task that waits for the gateway three times: for a read, a write that may be refused, and a read again."""
    task.start()
    task.call("GET", "variables/none")
    task.call("PUT", "variables/colour", {"val": "blue"})
    task.call("GET", "variables/colour")
    task.succeed()


class WrongClock(SystemClock):
    """A host's clock that is off."""

    def __init__(self, off: timedelta) -> None:
        self._off = off

    def now(self) -> datetime:
        return super().now() + self._off


def test_wrong_clock_is_harmless(world: World) -> None:
    """With a clock ten minutes off there is no needless renewal and no lost lease; the skew is in the status."""
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
            await until(
                lambda: item.state == "settled" and "clock.skewed" in world.control_plane.reported_events
            )
            agent.drain()
            await asyncio.wait_for(running, 30)
            assert world.control_plane.renewals == 0
            assert item.states == ["success"]

        asyncio.run(scenario())
