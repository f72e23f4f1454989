"""Background loop: a daemon thread that repeats a turn until it is stopped."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import structlog

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Pause:
    """Pause between two turns, in seconds. A wake ends it, but not before `least_seconds` have passed."""

    seconds: float
    least_seconds: float = 0.0

    @classmethod
    def unwakeable(cls, seconds: float) -> Pause:
        """Return a pause that only `stop` ends: the one after a failure."""
        return cls(seconds, least_seconds=seconds)


class BackgroundLoop:
    """Repeats `turn` in a daemon thread; what `turn` returns is the pause before the next one.

    An exception of `turn` is logged and answered by a pause of `on_error_seconds`: nothing but `stop` ends the loop.
    """

    def __init__(self, name: str, turn: Callable[[], Pause], *, on_error_seconds: float = 1.0) -> None:
        self.name = name
        self._turn = turn
        self._on_error = Pause.unwakeable(on_error_seconds)
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread, named ``airbridge-<name>``."""
        self._thread = threading.Thread(target=self.run, name=f"airbridge-{self.name}", daemon=True)
        self._thread.start()

    def run(self) -> None:
        """Repeat the turn in the calling thread until stopped."""
        log.info("loop.started", loop=self.name)
        while not self._stopping.is_set():
            # Cleared before the turn: a wake during the turn must end the pause after it.
            self._woken.clear()
            self._wait(self._guarded_turn())
        log.info("loop.stopped", loop=self.name)

    def wake(self) -> None:
        """End the pause early."""
        self._woken.set()

    def request_stop(self) -> None:
        """Signal the loop to end after its turn, without waiting for it."""
        self._stopping.set()
        self._woken.set()

    def stop(self, timeout_seconds: float = 5.0) -> None:
        """End the loop after its turn, and wait for it for `timeout_seconds` at most."""
        self.request_stop()
        if self._thread is not None:
            self._thread.join(timeout_seconds)
            self._thread = None

    def _guarded_turn(self) -> Pause:
        try:
            return self._turn()
        except Exception:
            log.exception("loop.failed", loop=self.name)
            return self._on_error

    def _wait(self, pause: Pause) -> None:
        if not self._stopping.wait(pause.least_seconds):
            self._woken.wait(max(0.0, pause.seconds - pause.least_seconds))


class Timer:
    """Interval timer that is polled. It is due at the first call, and then once per interval."""

    def __init__(self, interval_seconds: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._interval = interval_seconds
        self._monotonic = monotonic
        self._due_at = -math.inf

    def is_due(self) -> bool:
        """Return whether the interval has passed, and restart it if so."""
        now = self._monotonic()
        if now < self._due_at:
            return False
        self._due_at = now + self._interval
        return True


def stop_all(loops: Iterable[BackgroundLoop], timeout_seconds: float = 5.0) -> None:
    """Stop several loops within one timeout: all are signalled before any is waited for."""
    stopping = list(loops)
    for loop in stopping:
        loop.request_stop()
    deadline = time.monotonic() + timeout_seconds
    for loop in stopping:
        loop.stop(max(0.0, deadline - time.monotonic()))
