"""The heartbeat batcher: the composition of batches, and the answers when a batch fails."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest
from sqlalchemy import exc as sql

from airbridge.control_plane.exceptions import Refused
from airbridge.control_plane.gateway.auth.authentication import Caller
from airbridge.control_plane.gateway.heartbeat.batcher import Answered, CallerHeartbeat, HeartbeatBatcher
from airbridge.control_plane.gateway.heartbeat.pace import Pace
from airbridge.control_plane.gateway.net.thread_pools import ThreadPool
from airbridge.core.protocol import Heartbeat, HeartbeatResponse, RefusalReason, Versions

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PACE = Pace(10.0, 10.0)
VERSIONS = Versions(airbridge="0.1.0", airflow="3.0.4", task_sdk="1.0.4", python="3.11.7")


def caller_of(worker: str) -> Caller:
    return cast("Caller", SimpleNamespace(name=SimpleNamespace(worker=worker)))


def heartbeat(number: int) -> Heartbeat:
    return Heartbeat(sent_at=NOW, versions=VERSIONS, slots_total=number, slots_used=0)


def answer_of(number: int) -> HeartbeatResponse:
    return HeartbeatResponse(server_time=NOW, lease_seconds=number, interval_seconds=10, commands=())


class Answers:
    """Answers a heartbeat with its number. The first batch waits until it is released."""

    def __init__(self, together: Callable[[int], Answered] = answer_of) -> None:
        self.batches: list[list[int]] = []
        self.alone: list[int] = []
        self.under_way = threading.Event()
        self.released = threading.Event()
        self._together = together

    def handle(self, caller: Caller, heartbeat: Heartbeat) -> HeartbeatResponse:
        self.alone.append(heartbeat.slots_total)
        return answer_of(heartbeat.slots_total)

    def handle_batch(self, heartbeats: Sequence[CallerHeartbeat]) -> list[Answered]:
        numbers = [each.slots_total for _, each in heartbeats]
        self.batches.append(numbers)
        self.under_way.set()
        assert self.released.wait(10)
        return [self._together(number) for number in numbers]


@pytest.fixture
def pools() -> Iterator[tuple[ThreadPool, ThreadPool]]:
    both = ThreadPool("together", threads=1, requests=100), ThreadPool("alone", threads=1, requests=100)
    yield both
    for threads in both:
        threads.close()


async def ask(batcher: HeartbeatBatcher, answers: Answers, count: int) -> list[Any]:
    """Send `count` heartbeats, the first alone and the others while it is being answered."""
    caller = caller_of("worker")
    first = asyncio.create_task(batcher.handle(caller, heartbeat(1)))
    await asyncio.to_thread(answers.under_way.wait, 10)
    others = [asyncio.create_task(batcher.handle(caller, heartbeat(n))) for n in range(2, count + 1)]
    await asyncio.sleep(0)
    answers.released.set()
    return await asyncio.gather(first, *others, return_exceptions=True)


def test_waiting_heartbeats_form_next_batch(
    pools: tuple[ThreadPool, ThreadPool],
) -> None:
    """No heartbeat waits for a batch to fill: one that arrives after a pause is answered at once; those that arrive meanwhile
    are answered together after it, in order of arrival and at most the bound in one batch."""
    answers = Answers()
    got = asyncio.run(ask(HeartbeatBatcher(*pools, answers, PACE, most=3), answers, 6))
    assert got == [answer_of(number) for number in range(1, 7)]
    assert answers.batches == [[1], [2, 3, 4], [5, 6]]
    assert answers.alone == []


def test_batches_start_apart(pools: tuple[ThreadPool, ThreadPool]) -> None:
    """Heartbeats that arrive after a batch was answered form one batch, a while after its start; after a pause one is
    answered at once."""
    answers = Answers()
    answers.released.set()
    starts: list[float] = []

    async def scene() -> None:
        loop = asyncio.get_running_loop()
        handle_batch = answers.handle_batch

        def noted(heartbeats: Sequence[CallerHeartbeat]) -> list[Answered]:
            starts.append(loop.time())
            return handle_batch(heartbeats)

        answers.handle_batch = noted  # type: ignore[method-assign] # the same, with its time
        batcher = HeartbeatBatcher(*pools, answers, PACE, spacing=1.0)
        caller = caller_of("worker")
        await batcher.handle(caller, heartbeat(1))
        second = asyncio.create_task(batcher.handle(caller, heartbeat(2)))
        await asyncio.sleep(0)
        await asyncio.gather(second, batcher.handle(caller, heartbeat(3)))
        await asyncio.sleep(1.1)
        asked_at = loop.time()
        await batcher.handle(caller, heartbeat(4))
        assert starts[-1] - asked_at < 0.9

    asyncio.run(scene())
    assert answers.batches == [[1], [2, 3], [4]]
    assert starts[1] - starts[0] >= 0.99


def test_full_batch_waits_for_nothing(pools: tuple[ThreadPool, ThreadPool]) -> None:
    """A batch with as many heartbeats as the bound starts when the one before it has ended."""
    answers = Answers()
    got = asyncio.run(
        asyncio.wait_for(ask(HeartbeatBatcher(*pools, answers, PACE, most=2, spacing=60), answers, 5), 5)
    )
    assert got == [answer_of(number) for number in range(1, 6)]
    assert answers.batches == [[1], [2, 3], [4, 5]]


def test_unbatchable_heartbeat_is_handled_alone(pools: tuple[ThreadPool, ThreadPool]) -> None:
    """A heartbeat that the batch leaves out still gets its answer."""
    answers = Answers(lambda number: None if number == 2 else answer_of(number))
    got = asyncio.run(ask(HeartbeatBatcher(*pools, answers, PACE), answers, 3))
    assert got == [answer_of(1), answer_of(2), answer_of(3)]
    assert answers.alone == [2]


def test_denial_affects_only_its_worker(pools: tuple[ThreadPool, ThreadPool]) -> None:
    """A revoked worker among others costs them nothing."""
    refused = Refused(403, RefusalReason.REVOKED, "this worker is revoked: stolen")
    answers = Answers(lambda number: refused if number == 2 else answer_of(number))
    got = asyncio.run(ask(HeartbeatBatcher(*pools, answers, PACE), answers, 3))
    assert got == [answer_of(1), refused, answer_of(3)]


def test_failed_batch_is_handled_singly(pools: tuple[ThreadPool, ThreadPool]) -> None:
    """One heartbeat that cannot be written does not cost the others their leases."""

    def broken(_number: int) -> Answered:
        raise ValueError("a defect")

    answers = Answers(broken)
    got = asyncio.run(ask(HeartbeatBatcher(*pools, answers, PACE), answers, 3))
    assert got == [answer_of(1), answer_of(2), answer_of(3)]
    assert sorted(answers.alone) == [1, 2, 3]


def test_database_outage_fails_whole_batch(pools: tuple[ThreadPool, ThreadPool]) -> None:
    """All of the batch fail as unavailable: retrying each one alone would multiply the outage's wait."""
    away = sql.OperationalError("SELECT 1", {}, Exception("the server closed the connection"))

    def fails(_number: int) -> Answered:
        raise away

    answers = Answers(fails)
    got = asyncio.run(ask(HeartbeatBatcher(*pools, answers, PACE), answers, 3))
    assert got == [away, away, away]
    assert answers.alone == []


def test_cancelled_request_keeps_batch_intact(pools: tuple[ThreadPool, ThreadPool]) -> None:
    """A request that was given up while it waited leaves the others' answers alone."""
    answers = Answers()
    batcher = HeartbeatBatcher(*pools, answers, PACE)

    async def with_one_that_goes() -> list[Any]:
        caller = caller_of("worker")
        tasks = [asyncio.create_task(batcher.handle(caller, heartbeat(n))) for n in range(1, 4)]
        await asyncio.to_thread(answers.under_way.wait, 10)
        tasks[1].cancel()
        await asyncio.sleep(0)
        answers.released.set()
        return list(await asyncio.gather(tasks[0], tasks[2]))

    assert asyncio.run(with_one_that_goes()) == [answer_of(1), answer_of(3)]


def test_worker_takes_one_thread_for_itself() -> None:
    """While one heartbeat of a worker is handled alone its others wait, and another worker's has a thread."""

    class Slow(Answers):
        def handle(self, caller: Caller, heartbeat: Heartbeat) -> HeartbeatResponse:
            if caller.name.worker == "thief":
                assert self.released.wait(10)
            return super().handle(caller, heartbeat)

        def handle_batch(self, heartbeats: Sequence[CallerHeartbeat]) -> list[Answered]:
            return [None] * len(heartbeats)

    async def scene() -> None:
        pools = ThreadPool("together", threads=1, requests=9), ThreadPool("alone", threads=2, requests=9)
        answers = Slow()
        batcher = HeartbeatBatcher(*pools, answers, PACE)
        greedy = [asyncio.create_task(batcher.handle(caller_of("thief"), heartbeat(n))) for n in range(4)]
        try:
            assert await asyncio.wait_for(batcher.handle(caller_of("other"), heartbeat(7)), 5) == answer_of(7)
        finally:
            answers.released.set()
            await asyncio.gather(*greedy)
            for pool in pools:
                pool.close()
        assert answers.alone == [7, 0, 1, 2, 3]

    asyncio.run(scene())


def test_pace_counts_all_under_way() -> None:
    """Heartbeats that wait to be handled alone, as those with events do, count as those that wait for a batch."""
    under_way: list[int] = []

    class Noted(Pace):
        def record(self, under_way_now: int) -> None:
            under_way.append(under_way_now)

    class Slow(Answers):
        def handle(self, caller: Caller, heartbeat: Heartbeat) -> HeartbeatResponse:
            assert self.released.wait(10)
            return super().handle(caller, heartbeat)

        def handle_batch(self, heartbeats: Sequence[CallerHeartbeat]) -> list[Answered]:
            return [None] * len(heartbeats)

    async def scene() -> None:
        pools = ThreadPool("together", threads=1, requests=9), ThreadPool("alone", threads=2, requests=9)
        answers = Slow()
        batcher = HeartbeatBatcher(*pools, answers, Noted(10.0, 10.0))
        beats = []
        for number in range(8):
            beats.append(asyncio.create_task(batcher.handle(caller_of(f"w{number}"), heartbeat(number))))
            await asyncio.sleep(0.06)
        answers.released.set()
        await asyncio.gather(*beats)
        for pool in pools:
            pool.close()

    asyncio.run(scene())
    assert under_way == [*range(8)]
