"""Options for tasks on their way from the gateway to the runner."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from tests.integration.edge_worker.conftest import World, until

from airbridge.edge_worker.agent import Agent
from airbridge.edge_worker.testing import FakeRunner, FakeSupervisor

OPTIONS = {"acme": {"lake": "s3://x"}}


def nothing(_supervisor: FakeSupervisor) -> None:
    """Run no task."""


class StartedWith(FakeRunner):
    """Runner that notes the options that it had when it was started."""

    at_start: Any = None

    async def start(self) -> None:
        """See `task.Runner.start`."""
        self.at_start = self.options


def test_options_come_with_the_identity(world: World) -> None:
    """A worker's runner has them from its enrolment; a later process starts with those of the journal."""
    world.control_plane.region = world.control_plane.region.model_copy(update={"task_options": OPTIONS})

    async def enrols() -> None:
        async with world.worker(nothing) as agent:
            runner = agent._components.runner
            assert isinstance(runner, FakeRunner)
            await until(lambda: runner.options == OPTIONS)

    async def starts_offline() -> StartedWith:
        runner = StartedWith(nothing)
        agent = Agent(world.settings(), replace(world.parts(nothing), runner=runner))
        running = asyncio.create_task(agent.run())
        await until(lambda: runner.at_start is not None)
        agent.drain()
        await running
        return runner

    asyncio.run(enrols())
    world.control_plane.stop()
    assert asyncio.run(starts_offline()).at_start == OPTIONS
