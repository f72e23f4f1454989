"""Interruptible sleep, in place of the scheduler's idle sleep."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

# Shortest interval between two wakes, so that outcomes that arrive together are read at once.
REST_SECONDS = 0.05


class InterruptibleSleep:
    """Sleep of one thread that `wake` from any other thread ends. A wake between two sleeps ends the next one."""

    def __init__(
        self, rest_seconds: float = REST_SECONDS, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._rest = rest_seconds
        self._monotonic = monotonic
        self._woken = threading.Event()
        self._woken_at = -rest_seconds

    def wake(self) -> None:
        """End the sleep."""
        self._woken.set()

    def sleep(self, seconds: float, least: float = 0.0) -> None:
        """Sleep for `seconds` or until woken, but for `least` at least, and no less than the interval since the last wake."""
        began = self._monotonic()
        if not self._woken.wait(seconds):
            return
        until = min(max(self._woken_at + self._rest, began + least), began + seconds)
        rest = until - self._monotonic()
        if rest > 0:
            time.sleep(rest)
        self._woken.clear()
        self._woken_at = self._monotonic()
