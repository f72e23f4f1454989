"""Heartbeats that wait at the same time: which are answered together, and what becomes of each when that fails."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from sqlalchemy import exc as sql

from airbridge.control_plane.exceptions import Refused
from airbridge.control_plane.gateway.authentication import Caller
from airbridge.control_plane.gateway.lanes import Lane
from airbridge.control_plane.gateway.pulse import Answered, Beat, Pulse
from airbridge.executor.protocol import Heartbeat, HeartbeatResponse, RefusalReason, Versions

NOW = datetime(2026, 1, 1, tzinfo=UTC)
VERSIONS = Versions(airbridge="0.1.0", airflow="3.0.4", task_sdk="1.0.4", python="3.11.7")


def heartbeat(number: int) -> Heartbeat:
    return Heartbeat(sent_at=NOW, versions=VERSIONS, slots_total=number, slots_used=0)


def said(number: int) -> HeartbeatResponse:
    return HeartbeatResponse(server_time=NOW, lease_seconds=number, interval_seconds=10, commands=())


class Answers:
    """Answers a heartbeat with its number. The first batch waits until it is let go."""

    def __init__(self, together: Callable[[int], Answered] = said) -> None:
        self.batches: list[list[int]] = []
        self.alone: list[int] = []
        self.under_way = threading.Event()
        self.let_go = threading.Event()
        self._together = together

    def beat(self, caller: Caller, heartbeat: Heartbeat) -> HeartbeatResponse:
        self.alone.append(heartbeat.slots_total)
        return said(heartbeat.slots_total)

    def beat_together(self, beats: Sequence[Beat]) -> list[Answered]:
        numbers = [each.slots_total for _, each in beats]
        self.batches.append(numbers)
        self.under_way.set()
        assert self.let_go.wait(10)
        return [self._together(number) for number in numbers]


@pytest.fixture
def lanes() -> Iterator[tuple[Lane, Lane]]:
    both = Lane("together", threads=1, requests=100), Lane("alone", threads=1, requests=100)
    yield both
    for lane in both:
        lane.close()


async def ask(pulse: Pulse, answers: Answers, count: int) -> list[Any]:
    """Ask `count` times, the first alone and the others while it is being answered."""
    caller = cast("Caller", None)
    first = asyncio.create_task(pulse.beat(caller, heartbeat(1)))
    await asyncio.to_thread(answers.under_way.wait, 10)
    others = [asyncio.create_task(pulse.beat(caller, heartbeat(n))) for n in range(2, count + 1)]
    await asyncio.sleep(0)
    answers.let_go.set()
    return await asyncio.gather(first, *others, return_exceptions=True)


def test_heartbeats_that_come_while_others_are_answered_are_the_next_batch(lanes: tuple[Lane, Lane]) -> None:
    """Nothing waits for a batch to fill: a heartbeat that finds nobody is answered at once, and what comes meanwhile
    is answered together after it, in the order of its coming and no more than the bound at once."""
    answers = Answers()
    got = asyncio.run(ask(Pulse(*lanes, answers, most=3), answers, 6))
    assert got == [said(number) for number in range(1, 7)]
    assert answers.batches == [[1], [2, 3, 4], [5, 6]]
    assert answers.alone == []


def test_what_cannot_be_answered_together_is_answered_by_itself(lanes: tuple[Lane, Lane]) -> None:
    """A heartbeat that the batch leaves out still gets its answer."""
    answers = Answers(lambda number: None if number == 2 else said(number))
    got = asyncio.run(ask(Pulse(*lanes, answers), answers, 3))
    assert got == [said(1), said(2), said(3)]
    assert answers.alone == [2]


def test_a_refusal_reaches_the_one_who_is_refused(lanes: tuple[Lane, Lane]) -> None:
    """A revoked worker among others costs them nothing."""
    refused = Refused(403, RefusalReason.REVOKED, "this worker is revoked: stolen")
    answers = Answers(lambda number: refused if number == 2 else said(number))
    got = asyncio.run(ask(Pulse(*lanes, answers), answers, 3))
    assert got == [said(1), refused, said(3)]


def test_a_batch_that_breaks_is_answered_one_by_one(lanes: tuple[Lane, Lane]) -> None:
    """One heartbeat that cannot be written does not cost the others their leases."""

    def broken(_number: int) -> Answered:
        raise ValueError("a defect")

    answers = Answers(broken)
    got = asyncio.run(ask(Pulse(*lanes, answers), answers, 3))
    assert got == [said(1), said(2), said(3)]
    assert sorted(answers.alone) == [1, 2, 3]


def test_a_database_that_is_away_is_not_asked_again_for_each(lanes: tuple[Lane, Lane]) -> None:
    """All of the batch are told to come back: asking again for each would take as many times as long."""
    away = sql.OperationalError("SELECT 1", {}, Exception("the server closed the connection"))

    def fails(_number: int) -> Answered:
        raise away

    answers = Answers(fails)
    got = asyncio.run(ask(Pulse(*lanes, answers), answers, 3))
    assert got == [away, away, away]
    assert answers.alone == []


def test_one_that_has_gone_does_not_disturb_the_others(lanes: tuple[Lane, Lane]) -> None:
    """A request that was given up while it waited leaves the others' answers alone."""
    answers = Answers()
    pulse = Pulse(*lanes, answers)

    async def with_one_that_goes() -> list[Any]:
        caller = cast("Caller", None)
        tasks = [asyncio.create_task(pulse.beat(caller, heartbeat(n))) for n in range(1, 4)]
        await asyncio.to_thread(answers.under_way.wait, 10)
        tasks[1].cancel()
        await asyncio.sleep(0)
        answers.let_go.set()
        return await asyncio.gather(tasks[0], tasks[2])

    assert asyncio.run(with_one_that_goes()) == [said(1), said(3)]
