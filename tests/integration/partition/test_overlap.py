"""Two attempts of one task instance never run at once while its worker can be reached.

A case of https://github.com/apache/airflow/issues/55045 and https://github.com/apache/airflow/pull/55084: a cleared task
waits until its old process has ended.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from tests.integration.edge_worker.cut import LinkState
from tests.integration.partition.conftest import MakeWorld
from tests.integration.partition.world import World

from airbridge.edge_worker.testing import FakeSupervisor
from airbridge.executor.ledger import items, leases
from airbridge.executor.ledger.models import ItemState, Outcome, WorkItemRow

# httpcore does not close a connection whose TLS handshake is cancelled, as a worker that ends may have to do.
pytestmark = pytest.mark.filterwarnings("ignore:.*:pytest.PytestUnraisableExceptionWarning")


@dataclass
class Slow:
    """A task whose first attempt runs until it is cancelled, and then for `stopping` seconds, or until a second has begun.

    Later attempts succeed at once.
    """

    stopping: float = 3.0
    spans: list[list[float]] = field(default_factory=list)

    def __call__(self, task: FakeSupervisor) -> None:
        task.start()
        span = [time.monotonic(), float("inf")]
        self.spans.append(span)
        if len(self.spans) == 1:
            task.cancelled.wait(30)
            until = time.monotonic() + self.stopping
            while len(self.spans) == 1 and time.monotonic() < until:
                time.sleep(0.02)
            span[1] = time.monotonic()
            return
        task.succeed()
        span[1] = time.monotonic()

    @property
    def overlaps(self) -> bool:
        return any(after[0] < before[1] for before, after in zip(self.spans, self.spans[1:], strict=False))


def clear(world: World) -> None:
    """Clear every task, as a click in the UI does."""
    from airflow.models.taskinstance import TaskInstance, clear_task_instances
    from sqlalchemy import select

    with world.metadata.session() as session:
        clear_task_instances(session.scalars(select(TaskInstance)).unique().all(), session)
        session.commit()


def test_next_attempt_waits(make_world: MakeWorld) -> None:
    """On the same worker or another, the next attempt starts when the worker has confirmed the end of the process."""
    world, work = make_world(lost_after=60.0, lease_seconds=30.0), Slow()

    async def scenario() -> None:
        world.submit(first={"retries": 2, "retry_delay": timedelta(0)})
        async with world.workers("w1", "w2", script=work, cancel_grace_seconds=20):
            await world.turn_until(lambda: work.spans)
            await asyncio.to_thread(clear, world)
            await world.turn_until(lambda: world.state("first") == "success")
        assert not work.overlaps
        first, second = world.rows("first")
        assert (first.outcome, second.outcome) == (Outcome.CANCELLED, Outcome.SUCCESS)

    asyncio.run(scenario())


def test_settling_with_the_order_is_found(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """A control plane that settles the row when it gives the order starts two attempts at once: the check finds that."""

    def settle(session: Any, row: WorkItemRow, detail: str) -> None:
        leases.settle(session, row, Outcome.CANCELLED, detail)

    monkeypatch.setattr(items, "cancel", settle)
    world, work = make_world(lost_after=60.0, lease_seconds=30.0), Slow(stopping=30.0)

    async def scenario() -> None:
        world.submit(first={})
        async with world.workers("w1", "w2", script=work, cancel_grace_seconds=60):
            await world.turn_until(lambda: work.spans)
            await asyncio.to_thread(clear, world)
            await world.turn_until(lambda: world.state("first") == "success")
        assert work.overlaps

    asyncio.run(scenario())


def test_lease_delays_restart(make_world: MakeWorld) -> None:
    """A cleared task of a worker that is cut off is restarted when the lease has run out, long before `lost_after`."""
    world, work = make_world(lost_after=600.0, lease_seconds=3.0), Slow()

    async def scenario() -> None:
        world.submit(first={})
        async with world.workers("w1", script=work, cancel_grace_seconds=20):
            await world.turn_until(lambda: work.spans)
            world.cuts["w1"].set(LinkState.BLACK_HOLE)
            clear(world)
            async with world.workers("w2", script=work):
                await world.turn_until(lambda: world.state("first") == "success")
            world.cuts["w1"].set(LinkState.UP)
        first = world.rows("first")[0]
        assert first.settled_at >= first.lease_until

    asyncio.run(scenario())


def test_cancelled_attempt_writes_nothing_more(make_world: MakeWorld) -> None:
    """From the order to stop on, what the old process writes is refused, though its worker still holds the lease."""
    world = make_world(lost_after=60.0, lease_seconds=30.0)
    replies: list[Any] = []

    def work(task: FakeSupervisor) -> None:
        task.start()
        if not replies:
            while (row := world.rows("first")[0]).outcome is None and row.state == ItemState.CLAIMED:
                time.sleep(0.02)
            replies.append(task.set_xcom("by_first", 1))
            task.call("GET", "variables/none")
            task.cancelled.wait(10)
            return
        task.succeed()

    async def scenario() -> None:
        world.submit(first={})
        async with world.workers("w1", script=work):
            await world.turn_until(lambda: world.state("first") == "running")
            clear(world)
            await world.turn_until(lambda: world.state("first") == "success")
        assert world.xcoms("first", "by_first") == []

    asyncio.run(scenario())
