"""The listener and the sleep that it ends."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

from airbridge.core.backoff import Backoff
from airbridge.executor.scheduling.interruptible_sleep import InterruptibleSleep
from airbridge.executor.scheduling.listener import READ_SECONDS, NotificationListener

LONG_SECONDS = 60.0


class Wire:
    """A line whose notices a test puts on it."""

    def __init__(self) -> None:
        self.near, self.far = socket.socketpair()
        self.payloads: set[str] = set()
        self.closed = threading.Event()

    def fileno(self) -> int:
        return self.near.fileno()

    def received(self) -> set[str]:
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

    def notify(self, payload: str) -> None:
        self.payloads.add(payload)
        self.far.send(b"x")


class Exchange:
    """Gives out lines, and the sleep of a scheduler that has taken the listener's."""

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

    def replace_sleep(self, sleep: Callable[[float], None]) -> Callable[[], None]:
        self.sleep = sleep

        def undo() -> None:
            self.undone = True

        return undo


def listener_on(exchange: Exchange) -> NotificationListener:
    listener = NotificationListener(
        owner_job_id=7,
        connect=exchange.connect,
        replace_sleep=exchange.replace_sleep,
        backoff=Backoff(0.01, 0.01, lambda: 0.5),
        sleep=InterruptibleSleep(rest_seconds=0.0),
    )
    listener.start()
    return listener


def test_a_notice_ends_the_sleep() -> None:
    """A database notice of this scheduler's item ends a sleep of a minute at once."""
    exchange = Exchange(lines=1)
    listener = listener_on(exchange)
    exchange.sleep(LONG_SECONDS)  # ended by the listener's own connecting: notices before it were missed
    exchange.lines[0].notify("7")
    exchange.sleep(LONG_SECONDS)
    listener.stop()


def test_other_schedulers_notices_are_ignored() -> None:
    """A notification for another scheduler does not wake this one."""
    exchange = Exchange(lines=1)
    listener = listener_on(exchange)
    exchange.sleep(LONG_SECONDS)
    exchange.lines[0].notify("8")
    asleep = threading.Thread(target=exchange.sleep, args=[LONG_SECONDS])
    asleep.start()
    asleep.join(0.1)
    assert asleep.is_alive()
    exchange.lines[0].notify("7")
    asleep.join(LONG_SECONDS)
    assert not asleep.is_alive()
    listener.stop()


def test_lost_connection_is_reopened() -> None:
    """The listener reconnects, and ends the sleep then, because it may have missed a notification."""
    exchange = Exchange(lines=2)
    listener = listener_on(exchange)
    exchange.sleep(LONG_SECONDS)
    exchange.lines[0].far.shutdown(socket.SHUT_RDWR)
    exchange.sleep(LONG_SECONDS)
    assert exchange.connected[1].wait(LONG_SECONDS)
    assert exchange.lines[0].closed.is_set()
    listener.stop()


def test_no_notifications_keeps_airflows_sleep() -> None:
    """A database without notifications ends the listener's thread; the scheduler sleeps for the full time."""
    exchange = Exchange(lines=0)
    listener = listener_on(exchange)
    exchange.sleep(0.01)
    listener.stop()
    assert exchange.undone


def test_stopping_restores_schedulers_sleep() -> None:
    """Stopping undoes the change to the scheduler's module and closes the connection."""
    exchange = Exchange(lines=1)
    listener = listener_on(exchange)
    assert exchange.connected[0].wait(LONG_SECONDS)
    listener.stop()
    assert exchange.undone
    assert exchange.lines[0].closed.wait(LONG_SECONDS)


def test_stopping_unstarted_listener_is_harmless() -> None:
    """Stopping a listener that was never started does nothing."""
    NotificationListener(
        owner_job_id=None,
        connect=lambda: None,
        replace_sleep=lambda _sleep: lambda: None,
        backoff=Backoff(0.01, 0.01, lambda: 0.5),
    ).stop()


def test_early_wake_ends_next_sleep() -> None:
    """An item that is settled while the scheduler's loop runs ends the sleep that follows."""
    sleep = InterruptibleSleep(rest_seconds=0.0)
    sleep.wake()
    sleep.sleep(LONG_SECONDS)


def test_wakes_that_come_together_are_one() -> None:
    """After a wake, further wakes are held back for the rest period, but never beyond the requested sleep."""
    now = [0.0]
    sleep = InterruptibleSleep(rest_seconds=LONG_SECONDS, monotonic=lambda: now[0])
    sleep.wake()
    sleep.sleep(LONG_SECONDS)
    sleep.wake()
    sleep.sleep(0.0)
    now[0] = LONG_SECONDS + 1
    sleep.wake()
    sleep.sleep(LONG_SECONDS)


def test_wake_respects_minimum_sleep() -> None:
    """A sleep with a minimum is not ended before that, and a longer minimum makes no sleep longer."""
    sleep = InterruptibleSleep(rest_seconds=0.0)
    for seconds, least in ((LONG_SECONDS, 0.05), (0.05, LONG_SECONDS)):
        sleep.wake()
        began = time.monotonic()
        sleep.sleep(seconds, least)
        assert 0.05 <= time.monotonic() - began < LONG_SECONDS


def test_notice_ends_throttling_pause() -> None:
    """A scheduler that pauses because of a backlog goes on as soon as a pool has run dry."""
    exchange = Exchange(lines=1)
    listener = listener_on(exchange)
    exchange.sleep(LONG_SECONDS)
    exchange.lines[0].notify("7")
    listener.rest(LONG_SECONDS, 0.0)
    listener.stop()


def test_no_pause_without_notifications() -> None:
    """Without a connection nothing could end the pause early, so there is none."""
    listener = listener_on(Exchange(lines=0))
    listener.rest(LONG_SECONDS, LONG_SECONDS)
    listener.stop()


def test_outcomes_are_read_after_notice() -> None:
    """Between notifications the ledger is read at intervals; without a connection, on every call."""
    exchange, now = Exchange(lines=1), [0.0]
    listener = NotificationListener(
        owner_job_id=7,
        connect=exchange.connect,
        replace_sleep=exchange.replace_sleep,
        backoff=Backoff(0.01, 0.01, lambda: 0.5),
        sleep=InterruptibleSleep(rest_seconds=0.0),
        monotonic=lambda: now[0],
    )
    assert [listener.has_news(), listener.has_news()] == [True, True]
    listener.start()
    exchange.sleep(LONG_SECONDS)
    assert [listener.has_news(), listener.has_news()] == [True, False]
    exchange.lines[0].notify("7")
    exchange.sleep(LONG_SECONDS)
    assert [listener.has_news(), listener.has_news()] == [True, False]
    now[0] += READ_SECONDS
    assert listener.has_news()
    listener.stop()
