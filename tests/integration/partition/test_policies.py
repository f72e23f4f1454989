"""`lost_after`, `stop_after` and `replace`, by deployment and by task: the defaults, 300 times as fast."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from tests.integration.edge_worker.cut import LinkState
from tests.integration.partition.conftest import MakeWorld
from tests.integration.partition.world import HEARTBEAT, LOST_AFTER

from airbridge.core import near
from airbridge.core.aws.queue import Received, WorkQueue
from airbridge.core.exceptions import QueueError
from airbridge.edge_worker.agent import Agent
from airbridge.edge_worker.journal.journal import Journal
from airbridge.edge_worker.journal.rows import AddGrant, Contents, Op
from airbridge.edge_worker.testing import FakeSupervisor
from airbridge.executor.ledger.models import Outcome

# httpcore does not close a connection whose TLS handshake is cancelled, as a worker that ends may have to do.
pytestmark = pytest.mark.filterwarnings("ignore:.*:pytest.PytestUnraisableExceptionWarning")

LONG = 600.0
RETRIES = {"retries": 2, "retry_delay": timedelta(0)}

Levels = tuple[dict[str, Any], Mapping[str, Any], Mapping[str, Any]]
"""Settings of the deployment, arguments of the task under test, and of the one beside it."""


def with_policy(**disconnect: Any) -> dict[str, Any]:
    """Return a task's arguments with this policy."""
    return {**RETRIES, "executor_config": near(**disconnect)}


@dataclass
class Work:
    """Task that runs until it is released or cancelled, and then records its worker."""

    go: dict[str, threading.Event] = field(default_factory=dict)
    running: set[tuple[str, str]] = field(default_factory=set)
    """(worker, task id)"""

    def __call__(self, task: FakeSupervisor) -> None:
        task.start()
        grant = task.spec.grant
        me = (grant.started_as.hostname, str(grant.ti["task_id"]))
        self.running.add(me)
        try:
            while not self.go.setdefault(me[0], threading.Event()).wait(0.01):
                if task.cancelled.is_set():
                    return
            task.set_xcom("return_value", me[0])
            task.succeed()
        finally:
            self.running.discard(me)

    def release(self, worker: str) -> None:
        self.go.setdefault(worker, threading.Event()).set()


def both_running_on(work: Work, worker: str) -> bool:
    return {(worker, "first"), (worker, "other")} <= work.running


LOST: dict[str, Levels] = {
    "deployment": ({"lost_after": LOST_AFTER}, RETRIES, with_policy(lost_after=LONG)),
    "task": ({"lost_after": LONG}, with_policy(lost_after=LOST_AFTER), RETRIES),
}


@pytest.mark.parametrize("level", LOST)
def test_lost_after_fails_the_attempt(make_world: MakeWorld, level: str) -> None:
    """A cut longer than the scheduler's heartbeat timeout kills nothing; one longer than `lost_after` fails the attempt."""
    changes, first, other = LOST[level]
    world, work = make_world(**changes), Work()

    async def scenario() -> None:
        world.submit(first=first, other=other)
        async with world.workers("w1", script=work):
            await world.turn_until(lambda: both_running_on(work, "w1"))
            world.cuts["w1"].set(LinkState.BLACK_HOLE)
            work.release("w1")
            await world.turn_until(lambda: world.rows("first")[0].outcome)
            lost = world.rows("first")[0]
            assert lost.outcome == Outcome.LOST
            # By the database's clock alone, which both times are from.
            assert lost.settled_at - lost.renewed_at >= timedelta(seconds=LOST_AFTER)
            assert f"sent no heartbeat for {LOST_AFTER:g} s" in lost.detail
            assert world.state("other") == "running"
            async with world.workers("w2", script=work):
                await world.turn_until(lambda: ("w2", "first") in work.running)
                work.release("w2")
                await world.turn_until(lambda: world.state("first") == "success")
            world.cuts["w1"].set(LinkState.UP)
            await world.turn_until(lambda: world.state("other") == "success")
            await world.turn_until(lambda: world.events("exchange.refused"))
        [refusal] = world.events("exchange.refused")
        assert (refusal["worker"], refusal["reason"]) == ("w1", "lost")
        assert world.xcoms("first") == ["w2"]
        assert world.xcoms("other") == ["w1"]
        assert [row.outcome for row in world.rows("first")] == [Outcome.LOST, Outcome.SUCCESS]
        assert [row.try_number for row in world.rows("first")] == [1, 2]

    asyncio.run(scenario())


STOPPED: dict[str, Levels] = {
    "deployment": ({"lost_after": LONG, "stop_after": 1.0}, RETRIES, with_policy(stop_after=LONG)),
    "task": ({"lost_after": LONG}, with_policy(stop_after=1.0), RETRIES),
}


@pytest.mark.parametrize("level", STOPPED)
def test_stop_after_stops_one_task(make_world: MakeWorld, level: str) -> None:
    """Cut off for `stop_after` a task is stopped on its worker; the task beside it runs on. Both are reported after the cut."""
    changes, first, other = STOPPED[level]
    world, work = make_world(**changes), Work()

    async def scenario() -> None:
        world.submit(first=first, other=other)
        async with world.workers("w1", script=work):
            await world.turn_until(lambda: both_running_on(work, "w1"))
            world.cuts["w1"].set(LinkState.BLACK_HOLE)
            await world.turn_until(lambda: ("w1", "first") not in work.running)
            assert ("w1", "other") in work.running
            assert world.state("first") == "running", "nobody has told the control plane yet"
            world.cuts["w1"].set(LinkState.UP)
            await world.turn_until(lambda: len(world.rows("first")) > 1)
            work.release("w1")
            await world.turn_until(lambda: world.state("other") == world.state("first") == "success")
        stopped, again = world.rows("first")
        assert (stopped.outcome, stopped.detail) == (Outcome.FAILED, "up_for_retry")
        assert again.try_number == 2
        assert "its stop_after is 1 s" in world.log_of("first")

    asyncio.run(scenario())


REPLACED: dict[str, Levels] = {
    "deployment": ({"replace": False}, RETRIES, with_policy(replace=True)),
    "task": ({}, with_policy(replace=False), RETRIES),
}


@pytest.mark.parametrize("level", REPLACED)
def test_irreplaceable_task_fails_for_good(make_world: MakeWorld, level: str) -> None:
    """Lost in the same cut, one task fails though it has retries left, and its code ran once; the other is retried."""
    changes, first, other = REPLACED[level]
    world, work = make_world(**changes), Work()

    async def scenario() -> None:
        world.submit(first=first, other=other)
        async with world.workers("w1", "w2", script=work, slots=2):
            await world.turn_until(lambda: len(work.running) == 2)
            for cut in world.cuts.values():
                cut.set(LinkState.BLACK_HOLE)
            await world.turn_until(lambda: all(row.outcome == Outcome.LOST for row in world.rows()[:2]))
            for cut in world.cuts.values():
                cut.set(LinkState.UP)
            work.release("w1")
            work.release("w2")
            await world.turn_until(lambda: world.state("other") == "success")
            await world.turn_until(lambda: world.state("first") == "failed")
        assert [name for _, name, _ in world.runs].count("first") == 1
        assert [name for _, name, _ in world.runs].count("other") == 2
        assert "it is not retried (replace is false)" in world.rows("first")[0].detail

    asyncio.run(scenario())


class Connection:
    """The queue as one process sees it: once it is closed no poll under way takes another message."""

    def __init__(self, queue: WorkQueue) -> None:
        self._queue = queue
        self._lock = threading.Lock()
        self._closed = False

    def close(self) -> None:
        with self._lock:
            self._closed = True

    def receive(self, *, limit: int, wait_seconds: float, visibility_seconds: float) -> list[Received]:
        until = time.monotonic() + wait_seconds
        while True:
            with self._lock:
                if self._closed:
                    raise QueueError("the process has ended")
                messages = self._queue.receive(limit=limit, visibility_seconds=visibility_seconds)
            if messages or time.monotonic() > until:
                return messages
            time.sleep(0.01)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)


class ForgetfulAgent(Agent):
    """An agent that ends before its journal has written a grant."""

    async def _open_journal(self) -> tuple[Journal, Contents]:
        journal, contents = await super()._open_journal()
        submit = journal.submit

        def submit_but_grants(op: Op) -> asyncio.Future[None]:
            # Never resolved: to the claimer the journal is still writing.
            return asyncio.get_running_loop().create_future() if isinstance(op, AddGrant) else submit(op)

        journal.submit = submit_but_grants  # type: ignore[method-assign]
        return journal, contents


def test_unjournalled_grant_is_reassigned(
    make_world: MakeWorld,
) -> None:
    """A grant that a dead worker did not journal is given to another long before `lost_after`. No attempt is lost by it."""
    world, work = make_world(lost_after=LONG), Work()
    work.release("w1")
    work.release("w2")

    async def scenario() -> None:
        connection = Connection(world.queue)
        dying = world.agent("w1", work, kind=ForgetfulAgent, queue=connection)
        running = asyncio.create_task(dying.run())
        world.submit(first=RETRIES)
        await world.turn_until(lambda: world.rows("first") and world.rows("first")[0].state == "claimed")
        await asyncio.sleep(10 * HEARTBEAT)
        assert world.rows("first")[0].worker_id == "w1", "while it lives the claim is its own"
        connection.close()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

        async with world.workers("w2", script=work), world.workers("w1", script=work):
            await world.turn_until(lambda: world.state("first") == "success")
        [row] = world.rows("first")
        # Granted twice, tried once: the lost grant costs no retry.
        assert (row.epoch, row.try_number) == (2, 1)
        assert [task_id for _, task_id, _ in world.runs] == ["first"]

    asyncio.run(scenario())


def test_lost_task_does_not_start(make_world: MakeWorld) -> None:
    """Work that waited for a slot through a cut longer than `lost_after` is not started by the worker that lost it."""
    world, work = make_world(), Work()

    async def scenario() -> None:
        world.submit(first=RETRIES, other=RETRIES)
        async with world.workers("w1", script=work, slots=1, prefetch=1) as [agent]:
            await world.turn_until(lambda: len(agent.status()["tasks"]) == 2 and len(work.running) == 1)
            world.cuts["w1"].set(LinkState.BLACK_HOLE)
            await world.turn_until(lambda: all(row.outcome == Outcome.LOST for row in world.rows()[:2]))
            # On a busy machine the ledger may know a heartbeat less than the worker, which was answered first.
            await asyncio.sleep(LOST_AFTER)
            work.release("w1")
            await world.turn_until(lambda: not work.running)
            await asyncio.sleep(10 * HEARTBEAT)
            assert len(world.runs) == 1
            world.cuts["w1"].set(LinkState.UP)
            await world.turn_until(lambda: world.state("first") == world.state("other") == "success")
        # The one that ran before the cut, and a second try of both.
        assert len(world.runs) == 3

    asyncio.run(scenario())
