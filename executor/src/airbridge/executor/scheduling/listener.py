"""Listener for database notifications: ends the scheduler's idle sleep when one of its work items is settled.

A task that has ended may have made others ready. Without notifications they wait until the scheduler's sleep is over; with them
the sleep can be long, which keeps an idle control plane idle. A notification only ever shortens a sleep: where there are none (another
database than Postgres, a connection pool in transaction mode, a cut), the scheduler continues when its sleep is over, as in plain Airflow.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Protocol

import structlog

from airbridge.core.backoff import Backoff
from airbridge.executor.scheduling.interruptible_sleep import InterruptibleSleep

log = structlog.get_logger(__name__)

# Silence after which the connection is checked: a connection that was cut by the network reports no error of
# its own.
CHECK_SECONDS = 30.0

# Interval of reading outcomes from the ledger while no notification arrives.
READ_SECONDS = 0.5


class NotificationConnection(Protocol):
    """Database connection that receives notifications of settled items."""

    def fileno(self) -> int:
        """Return the descriptor to wait on."""

    def received(self) -> set[str]:
        """Return the payloads received since the last call. Raises if the connection is gone."""

    def check(self) -> None:
        """Raise if the connection is gone."""

    def close(self) -> None:
        """Close the connection."""


class NotificationListener:
    """Listens in a thread, and ends the scheduler's sleep when a notification for this scheduler arrives.

    `replace_sleep` makes the scheduler sleep with a given function, and returns a function that undoes the replacement.
    """

    def __init__(
        self,
        *,
        owner_job_id: int | None,
        connect: Callable[[], NotificationConnection | None],
        replace_sleep: Callable[[Callable[[float], None]], Callable[[], None]],
        backoff: Backoff,
        sleep: InterruptibleSleep | None = None,
        check_seconds: float = CHECK_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._owner = str(owner_job_id)
        self._connect = connect
        self._replace_sleep = replace_sleep
        self._sleep = sleep or InterruptibleSleep()
        self._backoff = backoff
        self._check_seconds = check_seconds
        self._monotonic = monotonic
        self._listening = False
        self._notified = threading.Event()
        self._read_at = -READ_SECONDS
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._undo: Callable[[], None] | None = None
        self._ends: tuple[socket.socket, socket.socket] | None = None

    def start(self) -> None:
        """Start listening in a thread, and make the scheduler's sleep interruptible."""
        self._undo = self._replace_sleep(self._sleep.sleep)
        self._ends = socket.socketpair()
        self._thread = threading.Thread(
            target=self.run, args=[self._ends[1]], name="airbridge-listener", daemon=True
        )
        self._thread.start()

    def stop(self, timeout_seconds: float = 5.0) -> None:
        """Stop listening, and restore the scheduler's own sleep."""
        if self._thread is None or self._ends is None or self._undo is None:
            return
        self._undo()
        self._stopping.set()
        self._ends[0].close()
        self._thread.join(timeout_seconds)
        self._ends[1].close()
        self._thread = None

    def rest(self, seconds: float, least: float) -> None:
        """Sleep until a notification arrives, for `seconds` at most and `least` at least. Return at once while there is no connection."""
        if self._listening:
            self._sleep.sleep(seconds, least)

    def has_news(self) -> bool:
        """Return whether to read outcomes now: a notification arrived, none can arrive, or `READ_SECONDS` have passed.

        The database sends none while the workers have more to do. The scheduler does not sleep after a loop that reported an
        outcome, so it then reads many outcomes at once.
        """
        now = self._monotonic()
        if self._listening and not self._notified.is_set() and now < self._read_at + READ_SECONDS:
            return False
        self._notified.clear()
        self._read_at = now
        return True

    def run(self, closed: socket.socket) -> None:
        """Listen until stopped, or until the database turns out to have no notifications."""
        log.info("listener.started", owner_job_id=self._owner)
        while not self._stopping.is_set():
            try:
                connection = self._connect()
                if connection is None:
                    log.info(
                        "listener.unavailable",
                        detail="this database has no notifications; the idle sleep stays as long as configured",
                    )
                    break
                self._listen(connection, closed)
            except Exception as error:  # noqa: BLE001 - the outer edge of the loop
                pause = self._backoff.failed()
                log.warning("listener.cut", error=str(error).strip(), retry_seconds=round(pause, 2))
                self._stopping.wait(pause)
        log.info("listener.stopped", owner_job_id=self._owner)

    def _listen(self, connection: NotificationConnection, closed: socket.socket) -> None:
        self._listening = True
        try:
            # Items that were settled while there was no connection caused no notification.
            self._notify()
            while not self._stopping.is_set():
                descriptors = [connection.fileno(), closed.fileno()]
                readable, _, _ = select.select(descriptors, [], [], self._check_seconds)
                if not readable:
                    connection.check()
                self._backoff.succeeded()
                if connection.fileno() in readable and self._owner in connection.received():
                    self._notify()
        finally:
            self._listening = False
            connection.close()

    def _notify(self) -> None:
        self._notified.set()
        self._sleep.wake()
