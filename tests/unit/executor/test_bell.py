"""The bell and the sleep that it ends."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

from airbridge.executor.backoff import Backoff
from airbridge.executor.bell import LOOK_SECONDS, Bell
from airbridge.executor.idle import IdleSleep

LONG_SECONDS = 60.0


class Wire:
    """A line whose notices a test puts on it."""

    def __init__(self) -> None:
        self.near, self.far = socket.socketpair()
        self.payloads: set[str] = set()
        self.closed = threading.Event()

    def fileno(self) -> int:
        return self.near.fileno()

    def heard(self) -> set[str]:
        if not self.near.recv(1):
            raise OSError("the server has gone away")
        heard, self.payloads = self.payloads, set()
        return heard

    def check(self) -> None:
        """Nothing to find."""

    def close(self) -> None:
        self.near.close()
        self.far.close()
        self.closed.set()

    def tell(self, payload: str) -> None:
        self.payloads.add(payload)
        self.far.send(b"x")


class Exchange:
    """Gives out lines, and the sleep of a scheduler that has taken the bell's."""

    def __init__(self, lines: int) -> None:
        self.lines = [Wire() for _ in range(lines)]
        self.connected = [threading.Event() for _ in self.lines]
        self._next = iter(range(lines))
        self.undone = False

    def connect(self) -> Wire | None:
        number = next(self._next, None)
        if number is None:
            return None
        self.connected[number].set()
        return self.lines[number]

    def idle_with(self, sleep: Callable[[float], None]) -> Callable[[], None]:
        self.sleep = sleep

        def undo() -> None:
            self.undone = True

        return undo


def bell_on(exchange: Exchange) -> Bell:
    bell = Bell(
        owner_job_id=7,
        connect=exchange.connect,
        idle_with=exchange.idle_with,
        backoff=Backoff(0.01, 0.01, lambda: 0.5),
        sleep=IdleSleep(rest_seconds=0.0),
    )
    bell.start()
    return bell


def test_a_notice_ends_the_sleep() -> None:
    """A sleep of a minute is over at once when the database tells of this scheduler's item."""
    exchange = Exchange(lines=1)
    bell = bell_on(exchange)
    exchange.sleep(LONG_SECONDS)  # ended by the bell's connecting: nobody listened before
    exchange.lines[0].tell("7")
    exchange.sleep(LONG_SECONDS)
    bell.stop()


def test_notices_for_other_schedulers_end_no_sleep() -> None:
    """What another scheduler is told does not wake this one."""
    exchange = Exchange(lines=1)
    bell = bell_on(exchange)
    exchange.sleep(LONG_SECONDS)
    exchange.lines[0].tell("8")
    asleep = threading.Thread(target=exchange.sleep, args=[LONG_SECONDS])
    asleep.start()
    asleep.join(0.1)
    assert asleep.is_alive()
    exchange.lines[0].tell("7")
    asleep.join(LONG_SECONDS)
    assert not asleep.is_alive()
    bell.stop()


def test_a_line_that_is_cut_is_made_again() -> None:
    """The bell connects anew, and ends the sleep then, because it may have missed a notice."""
    exchange = Exchange(lines=2)
    bell = bell_on(exchange)
    exchange.sleep(LONG_SECONDS)
    exchange.lines[0].far.shutdown(socket.SHUT_RDWR)
    exchange.sleep(LONG_SECONDS)
    assert exchange.connected[1].wait(LONG_SECONDS)
    assert exchange.lines[0].closed.is_set()
    bell.stop()


def test_without_a_line_the_sleep_is_airflows_own() -> None:
    """A database without notices ends the bell's thread; the scheduler sleeps as long as it asks."""
    exchange = Exchange(lines=0)
    bell = bell_on(exchange)
    exchange.sleep(0.01)
    bell.stop()
    assert exchange.undone


def test_stopping_gives_the_scheduler_its_own_sleep_back() -> None:
    """What the start changed in the scheduler's module is undone, and the line is closed."""
    exchange = Exchange(lines=1)
    bell = bell_on(exchange)
    assert exchange.connected[0].wait(LONG_SECONDS)
    bell.stop()
    assert exchange.undone
    assert exchange.lines[0].closed.wait(LONG_SECONDS)


def test_a_bell_that_was_never_started_can_be_stopped() -> None:
    """Stopping it does nothing."""
    Bell(
        owner_job_id=None,
        connect=lambda: None,
        idle_with=lambda _sleep: lambda: None,
        backoff=Backoff(0.01, 0.01, lambda: 0.5),
    ).stop()


def test_a_wake_while_nobody_sleeps_ends_the_next_sleep() -> None:
    """An item that is settled while the scheduler's loop runs is not missed."""
    sleep = IdleSleep(rest_seconds=0.0)
    sleep.wake()
    sleep.sleep(LONG_SECONDS)


def test_wakes_that_come_together_are_one() -> None:
    """After it was woken, the scheduler rests before it can be woken again, but no longer than it asked to sleep."""
    now = [0.0]
    sleep = IdleSleep(rest_seconds=LONG_SECONDS, monotonic=lambda: now[0])
    sleep.wake()
    sleep.sleep(LONG_SECONDS)
    sleep.wake()
    sleep.sleep(0.0)
    now[0] = LONG_SECONDS + 1
    sleep.wake()
    sleep.sleep(LONG_SECONDS)


def test_a_wake_leaves_the_least_of_a_sleep() -> None:
    """A sleep with a least is not ended before that, and a longer least makes no sleep longer."""
    sleep = IdleSleep(rest_seconds=0.0)
    for seconds, least in ((LONG_SECONDS, 0.05), (0.05, LONG_SECONDS)):
        sleep.wake()
        began = time.monotonic()
        sleep.sleep(seconds, least)
        assert 0.05 <= time.monotonic() - began < LONG_SECONDS


def test_a_rest_is_ended_by_a_notice() -> None:
    """A scheduler that rests from a backlog goes on as soon as a pool has run dry."""
    exchange = Exchange(lines=1)
    bell = bell_on(exchange)
    exchange.sleep(LONG_SECONDS)
    exchange.lines[0].tell("7")
    bell.rest(LONG_SECONDS, 0.0)
    bell.stop()


def test_a_scheduler_that_cannot_be_told_does_not_rest() -> None:
    """Without a line nothing could end the rest, so there is none."""
    bell = bell_on(Exchange(lines=0))
    bell.rest(LONG_SECONDS, LONG_SECONDS)
    bell.stop()


def test_outcomes_are_looked_for_when_it_rang_or_after_a_while() -> None:
    """Between rings the ledger is looked at now and then; without a line, every time."""
    exchange, now = Exchange(lines=1), [0.0]
    bell = Bell(
        owner_job_id=7,
        connect=exchange.connect,
        idle_with=exchange.idle_with,
        backoff=Backoff(0.01, 0.01, lambda: 0.5),
        sleep=IdleSleep(rest_seconds=0.0),
        monotonic=lambda: now[0],
    )
    assert [bell.news(), bell.news()] == [True, True]
    bell.start()
    exchange.sleep(LONG_SECONDS)
    assert [bell.news(), bell.news()] == [True, False]
    exchange.lines[0].tell("7")
    exchange.sleep(LONG_SECONDS)
    assert [bell.news(), bell.news()] == [True, False]
    now[0] += LOOK_SECONDS
    assert bell.news()
    bell.stop()
