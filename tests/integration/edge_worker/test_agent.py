"""The worker, from a message on the queue to a result in the ledger."""

from __future__ import annotations

import asyncio

from tests.integration.edge_worker.conftest import World, until

from airbridge.edge_worker.agent import ExitCode
from airbridge.edge_worker.testing import FakeSupervisor


def succeed(task: FakeSupervisor) -> None:
    task.start()
    task.log("hello")
    task.set_xcom("return_value", 42)
    task.succeed()


def test_a_task_runs_and_its_result_is_committed(world: World) -> None:
    """A message becomes a grant, a run, an XCom, one final state and a whole log; the message is gone."""

    async def scenario() -> None:
        item = world.submit()
        async with world.worker(succeed):
            await until(lambda: item.state == "settled")
            await until(lambda: world.log_of(item))
        assert item.states == ["success"]
        assert item.xcoms == {"return_value": 42}
        assert world.log_of(item) == '{"event": "hello"}\n'
        assert world.queue.depth().visible == world.queue.depth().in_flight == 0
        assert world.exit_code is ExitCode.OK

    asyncio.run(scenario())
