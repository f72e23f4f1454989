"""Calls of the queues of one region, each pool's in a thread of its own: a call that hangs delays no other pool."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Final

# Time for which a turn of the outbox waits for the calls that it started. Those of a queue that took longer are not waited for.
WAIT_SECONDS: Final = 0.5


@dataclass(slots=True, eq=False)
class _Call:
    pool: str
    run: Callable[[], None]
    on_done: Callable[[], None]
    done: threading.Event = field(default_factory=threading.Event)
    seconds: float = 0.0
    error: Exception | None = None

    def __call__(self) -> None:
        began = time.monotonic()
        try:
            self.run()
        except Exception as error:  # noqa: BLE001 - the loop that takes the result raises it
            self.error = error
        finally:
            self.seconds = time.monotonic() - began
            self.done.set()
            self.on_done()


class QueueCalls:
    """Calls under way, at most one a pool. Used by one thread; `on_late` is called from another once a call has ended late."""

    def __init__(self, region: str, on_late: Callable[[], None]) -> None:
        self._region = region
        self._on_late = on_late
        self._running: dict[str, _Call] = {}
        # Pools whose last call took longer than `WAIT_SECONDS`.
        self._slow: set[str] = set()

    def is_busy(self, pool: str) -> bool:
        """Return whether a call of this pool is under way."""
        return pool in self._running

    def start(self, pool: str, run: Callable[[], None]) -> None:
        """Start a call; none of the pool may be under way."""
        call = _Call(pool, run, self._on_late)
        self._running[pool] = call
        # A daemon: the process may end while a queue is silent.
        threading.Thread(target=call, name=f"airbridge-queue-{pool}-{self._region}", daemon=True).start()

    def wait(self, pools: Collection[str]) -> None:
        """Wait a moment for the calls of these pools, except of queues that were slow before."""
        deadline = time.monotonic() + WAIT_SECONDS
        for pool in pools:
            if pool in self._running and pool not in self._slow:
                self._running[pool].done.wait(max(0.0, deadline - time.monotonic()))
        self._slow.update(pool for pool, call in self._running.items() if not call.done.is_set())

    def ended(self) -> Iterator[tuple[str, Exception | None]]:
        """Yield the calls that have ended, each once, with their errors."""
        for pool, call in list(self._running.items()):
            if call.done.is_set():
                del self._running[pool]
                if call.seconds < WAIT_SECONDS:
                    self._slow.discard(pool)
                yield pool, call.error
