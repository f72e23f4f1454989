"""The bell: ends the scheduler's idle sleep when one of its work items is settled.

A task that has ended may have made others ready. Without the bell they wait until the scheduler's sleep is over; with
it the sleep can be long, which keeps an idle control plane idle. The bell only ever shortens a sleep: where there is
none (another database than Postgres, a connection pool that does not pass notices on, a cut), the scheduler looks when
its sleep is over, as Airflow's always does.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Protocol

import structlog

from airbridge.executor.backoff import Backoff
from airbridge.executor.idle import IdleSleep

log = structlog.get_logger(__name__)

CHECK_SECONDS = 30.0
"""A connection that has been silent for this long is tried: one that was cut somewhere on the way says nothing."""

LOOK_SECONDS = 0.5
"""How often the ledger is looked at for outcomes when the bell has not rung."""


class Line(Protocol):
    """A connection on which the database tells of settled items."""

    def fileno(self) -> int:
        """Return the descriptor to wait on."""

    def heard(self) -> set[str]:
        """Return the payloads of the notices that have come. Raises if the connection is gone."""

    def check(self) -> None:
        """Raise if the connection is gone."""

    def close(self) -> None:
        """Hang up."""


class Bell:
    """Listens in a thread, and ends the scheduler's sleep when this scheduler is told something.

    `idle_with` lets the scheduler sleep with a function of ours, and returns what undoes that.
    """

    def __init__(
        self,
        *,
        owner_job_id: int | None,
        connect: Callable[[], Line | None],
        idle_with: Callable[[Callable[[float], None]], Callable[[], None]],
        backoff: Backoff,
        sleep: IdleSleep | None = None,
        check_seconds: float = CHECK_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._owner = str(owner_job_id)
        self._connect = connect
        self._idle_with = idle_with
        self._sleep = sleep or IdleSleep()
        self._backoff = backoff
        self._check_seconds = check_seconds
        self._monotonic = monotonic
        self._listening = False
        self._rang = threading.Event()
        self._looked_at = -LOOK_SECONDS
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._undo: Callable[[], None] | None = None
        self._ends: tuple[socket.socket, socket.socket] | None = None

    def start(self) -> None:
        """Start listening in a thread, and let the scheduler's sleep be ended."""
        self._undo = self._idle_with(self._sleep.sleep)
        self._ends = socket.socketpair()
        self._thread = threading.Thread(
            target=self.run, args=[self._ends[1]], name="airbridge-bell", daemon=True
        )
        self._thread.start()

    def stop(self, timeout_seconds: float = 5.0) -> None:
        """Stop listening, and give the scheduler its own sleep back."""
        if self._thread is None or self._ends is None or self._undo is None:
            return
        self._undo()
        self._stopping.set()
        self._ends[0].close()
        self._thread.join(timeout_seconds)
        self._ends[1].close()
        self._thread = None

    def rest(self, seconds: float, least: float) -> None:
        """Let the scheduler rest until it is told something, but no less than `least`. It does not where it cannot be told."""
        if self._listening:
            self._sleep.sleep(seconds, least)

    def news(self) -> bool:
        """Whether outcomes should be looked for now: the bell has rung, cannot ring, or it has been a while.

        It does not ring while the workers have more to go on with. The scheduler, which takes no rest after a loop
        that has told it an outcome, then hears many at once.
        """
        now = self._monotonic()
        if self._listening and not self._rang.is_set() and now < self._looked_at + LOOK_SECONDS:
            return False
        self._rang.clear()
        self._looked_at = now
        return True

    def run(self, hung_up: socket.socket) -> None:
        """Listen until stopped. Nothing that happens here ends the loop, but a database that has no notices."""
        log.info("bell.started", owner_job_id=self._owner)
        while not self._stopping.is_set():
            try:
                line = self._connect()
                if line is None:
                    log.info("bell.unavailable", detail="this database has no notices; the idle sleep stands")
                    break
                self._listen(line, hung_up)
            except Exception as error:  # noqa: BLE001 - the outer edge of the loop
                pause = self._backoff.failed()
                log.warning("bell.cut", error=str(error).strip(), retry_seconds=round(pause, 2))
                self._stopping.wait(pause)
        log.info("bell.stopped", owner_job_id=self._owner)

    def _listen(self, line: Line, hung_up: socket.socket) -> None:
        self._listening = True
        try:
            # What was settled while nobody listened has rung no bell.
            self._ring()
            while not self._stopping.is_set():
                descriptors = [line.fileno(), hung_up.fileno()]
                readable, _, _ = select.select(descriptors, [], [], self._check_seconds)
                if not readable:
                    line.check()
                self._backoff.succeeded()
                if line.fileno() in readable and self._owner in line.heard():
                    self._ring()
        finally:
            self._listening = False
            line.close()

    def _ring(self) -> None:
        self._rang.set()
        self._sleep.wake()
