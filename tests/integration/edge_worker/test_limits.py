"""Tasks that run into a limit, and tasks that ask for more than a slot's share, on a whole worker."""

from __future__ import annotations

import asyncio
import json
import threading

from tests.integration.edge_worker.conftest import World, until

from airbridge.core.protocol import Resources
from airbridge.edge_worker.runner.limits.limits import MIB, Hit, Limit
from airbridge.edge_worker.testing import FakeSupervisor

DETAIL = "The task ran out of memory: it may use 256 MiB"


def test_limit_is_the_last_line_and_an_event(world: World) -> None:
    """A limit that the task ran into is the last line of its log, and in the event of its end."""

    def task(supervisor: FakeSupervisor) -> None:
        supervisor.start()
        supervisor.log("at work")
        supervisor.hit = Hit(Limit.MEMORY, DETAIL)
        supervisor.succeed()

    async def run() -> None:
        async with world.worker(task):
            item = world.submit()
            await until(lambda: world.log_of(item))
        last = json.loads((world.log_of(item) or "").splitlines()[-1])
        assert (DETAIL, "error") == (last["event"], last["level"])
        ended = [each for each in world.control_plane.events.values() if each.event == "task.ended"]
        assert [("memory", DETAIL)] == [(each.detail["limit"], each.detail["why"]) for each in ended]

    asyncio.run(run())


def test_slots_are_counted_by_what_a_task_asks_for(world: World) -> None:
    """A task that asks for the memory of three slots leaves one of four free."""
    release = threading.Event()

    def task(supervisor: FakeSupervisor) -> None:
        supervisor.start()
        release.wait(20)
        supervisor.succeed()

    async def run() -> None:
        async with world.worker(task, slot_memory_mib=1024, task_cgroups="off") as agent:
            world.submit(resources=Resources(memory=3000 * MIB))
            await until(lambda: agent.status()["slots"]["used"] == 3)
            world.submit()
            await until(lambda: agent.status()["slots"]["used"] == 4)
            assert "nothing" == agent.status()["limits"]["held_by"]
            release.set()

    asyncio.run(run())
