"""The scheduler's idle sleep, which can be ended early."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

REST_SECONDS = 0.05
"""The scheduler is woken no more often than this: outcomes that come together are one look."""


class IdleSleep:
    """A sleep for one thread, which `wake` from any other ends. A wake while it does not sleep ends the next one."""

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
        """Sleep for `seconds`, or until woken, but no less than `least`, nor than the rest since it was woken last."""
        began = self._monotonic()
        if not self._woken.wait(seconds):
            return
        until = min(max(self._woken_at + self._rest, began + least), began + seconds)
        rest = until - self._monotonic()
        if rest > 0:
            time.sleep(rest)
        self._woken.clear()
        self._woken_at = self._monotonic()
