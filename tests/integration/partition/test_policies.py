"""`lost_after`, `stop_after` and `replace`, as the deployment has them and as a task asks: defaults, 300 times as fast."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from tests.integration.edge_worker.cut import Weather
from tests.integration.partition.conftest import MakeWorld
from tests.integration.partition.world import HEARTBEAT, LOST_AFTER

from airbridge.edge_worker.agent import Agent
from airbridge.edge_worker.journal_rows import Op
from airbridge.edge_worker.poller import Poller
from airbridge.edge_worker.testing import FakeSupervisor
from airbridge.executor import near
from airbridge.executor.exceptions import QueueError
from airbridge.executor.ledger.models import Outcome
from airbridge.executor.protocol import RegionSettings
from airbridge.executor.queue import Received, WorkQueue

# httpcore does not close a connection whose TLS handshake is cancelled, as a worker that ends may have to do.
pytestmark = pytest.mark.filterwarnings("ignore:.*:pytest.PytestUnraisableExceptionWarning")

LONG = 600.0
RETRIES = {"retries": 2, "retry_delay": timedelta(0)}

Levels = tuple[dict[str, Any], Mapping[str, Any], Mapping[str, Any]]
"""Settings of the deployment, arguments of the task under test, and of the one beside it."""


def asked(**disconnect: Any) -> dict[str, Any]:
    """A task's arguments that ask for this policy."""
    return {**RETRIES, "executor_config": near(**disconnect)}


@dataclass
class Work:
    """A task that runs until it is let go, or told to stop, and then says who ran it."""

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

    def let_go(self, worker: str) -> None:
        self.go.setdefault(worker, threading.Event()).set()


def both_running_on(work: Work, worker: str) -> bool:
    return {(worker, "first"), (worker, "other")} <= work.running


LOST: dict[str, Levels] = {
    "deployment": ({"lost_after": LOST_AFTER}, RETRIES, asked(lost_after=LONG)),
    "task": ({"lost_after": LONG}, asked(lost_after=LOST_AFTER), RETRIES),
}


@pytest.mark.parametrize("level", LOST)
def test_after_lost_after_the_attempt_is_failed_and_its_late_result_refused(
    make_world: MakeWorld, level: str
) -> None:
    """A cut longer than the scheduler's own patience kills nothing; one longer than `lost_after` fails the attempt.

    Another worker makes the retry. When the first is back its result is refused, with a reason that both sides keep;
    the task beside it, whose `lost_after` is longer, is reported as if nothing had happened.
    """
    changes, first, other = LOST[level]
    world, work = make_world(**changes), Work()

    async def scenario() -> None:
        world.submit(first=first, other=other)
        async with world.workers("w1", script=work):
            await world.turn_until(lambda: both_running_on(work, "w1"))
            world.cuts["w1"].set(Weather.BLACK_HOLE)
            work.let_go("w1")
            await world.turn_until(lambda: world.rows("first")[0].outcome)
            lost = world.rows("first")[0]
            assert lost.outcome == Outcome.LOST
            assert lost.settled_at - lost.renewed_at >= timedelta(seconds=LOST_AFTER)
            assert f"was not heard of for {LOST_AFTER:g} s" in lost.detail
            assert world.state("other") == "running"
            async with world.workers("w2", script=work):
                await world.turn_until(lambda: ("w2", "first") in work.running)
                work.let_go("w2")
                await world.turn_until(lambda: world.state("first") == "success")
            world.cuts["w1"].set(Weather.FAIR)
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
    "deployment": ({"lost_after": LONG, "stop_after": 1.0}, RETRIES, asked(stop_after=LONG)),
    "task": ({"lost_after": LONG}, asked(stop_after=1.0), RETRIES),
}


@pytest.mark.parametrize("level", STOPPED)
def test_after_stop_after_the_worker_stops_the_task_itself(make_world: MakeWorld, level: str) -> None:
    """Cut off for so long, a task is stopped where it runs; the task beside it runs on. Reported when the link is back."""
    changes, first, other = STOPPED[level]
    world, work = make_world(**changes), Work()

    async def scenario() -> None:
        world.submit(first=first, other=other)
        async with world.workers("w1", script=work):
            await world.turn_until(lambda: both_running_on(work, "w1"))
            world.cuts["w1"].set(Weather.BLACK_HOLE)
            await world.turn_until(lambda: ("w1", "first") not in work.running)
            assert ("w1", "other") in work.running
            assert world.state("first") == "running", "nobody has told the control plane yet"
            world.cuts["w1"].set(Weather.FAIR)
            await world.turn_until(lambda: len(world.rows("first")) > 1)
            work.let_go("w1")
            await world.turn_until(lambda: world.state("other") == world.state("first") == "success")
        stopped, again = world.rows("first")
        assert (stopped.outcome, stopped.detail) == (Outcome.SUCCESS, "up_for_retry")
        assert again.try_number == 2
        assert "its stop_after is 1 s" in world.log_of("first")

    asyncio.run(scenario())


REPLACED: dict[str, Levels] = {
    "deployment": ({"replace": False}, RETRIES, asked(replace=True)),
    "task": ({}, asked(replace=False), RETRIES),
}


@pytest.mark.parametrize("level", REPLACED)
def test_what_is_not_to_be_replaced_fails_for_good(make_world: MakeWorld, level: str) -> None:
    """Lost in the same cut, one task fails though it has retries left, and its code ran once; the other is retried."""
    changes, first, other = REPLACED[level]
    world, work = make_world(**changes), Work()

    async def scenario() -> None:
        world.submit(first=first, other=other)
        async with world.workers("w1", "w2", script=work, slots=2):
            await world.turn_until(lambda: len(work.running) == 2)
            for cut in world.cuts.values():
                cut.set(Weather.BLACK_HOLE)
            await world.turn_until(lambda: all(row.outcome == Outcome.LOST for row in world.rows()[:2]))
            for cut in world.cuts.values():
                cut.set(Weather.FAIR)
            work.let_go("w1")
            work.let_go("w2")
            await world.turn_until(lambda: world.state("other") == "success")
            await world.turn_until(lambda: world.state("first") == "failed")
        assert [name for _, name, _ in world.runs].count("first") == 1
        assert [name for _, name, _ in world.runs].count("other") == 2
        assert "it is not retried (replace is false)" in world.rows("first")[0].detail

    asyncio.run(scenario())


class NeverWritten:
    """A journal that takes operations and has not written them yet."""

    def submit(self, _: Op) -> asyncio.Future[None]:
        return asyncio.get_running_loop().create_future()


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


class Mortal(Agent):
    """An agent that will not live to write down what it is granted."""

    def _make_poller(self, region: RegionSettings) -> Poller:
        poller = super()._make_poller(region)
        poller._journal = NeverWritten()  # type: ignore[assignment]
        return poller


def test_a_worker_that_died_between_grant_and_journal_gets_its_task_run_elsewhere_soon(
    make_world: MakeWorld,
) -> None:
    """Long before `lost_after`: as soon as the worker is back and says what it holds. No attempt is lost by it."""
    world, work = make_world(lost_after=LONG), Work()
    work.let_go("w1")
    work.let_go("w2")

    async def scenario() -> None:
        connection = Connection(world.queue)
        dying = world.agent("w1", work, kind=Mortal, queue=connection)
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
        assert (row.epoch, row.try_number) == (2, 1)
        assert [task_id for _, task_id, _ in world.runs] == ["first"]

    asyncio.run(scenario())


def test_a_claimed_task_does_not_start_once_it_is_lost(make_world: MakeWorld) -> None:
    """Work that waited for a slot through a cut longer than `lost_after` is not started by the worker that lost it."""
    world, work = make_world(), Work()

    async def scenario() -> None:
        world.submit(first=RETRIES, other=RETRIES)
        async with world.workers("w1", script=work, slots=1, prefetch=1) as [agent]:
            await world.turn_until(lambda: len(agent.status()["tasks"]) == 2 and len(work.running) == 1)
            world.cuts["w1"].set(Weather.BLACK_HOLE)
            await world.turn_until(lambda: all(row.outcome == Outcome.LOST for row in world.rows()[:2]))
            await asyncio.sleep(10 * HEARTBEAT)
            work.let_go("w1")
            await world.turn_until(lambda: not work.running)
            await asyncio.sleep(10 * HEARTBEAT)
            assert len(world.runs) == 1
            world.cuts["w1"].set(Weather.FAIR)
            await world.turn_until(lambda: world.state("first") == world.state("other") == "success")
        assert len(world.runs) == 3

    asyncio.run(scenario())
