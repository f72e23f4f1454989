"""Short-lived cache that computes each value once for any number of concurrent requests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar, cast

T = TypeVar("T")


@dataclass(slots=True)
class _Slot(Generic[T]):
    lock: threading.Lock = field(default_factory=threading.Lock)
    until: float = float("-inf")
    value: T | None = None


class ResponseCache(Generic[T]):
    """Cache of values that expire after `seconds`. Holds at most `size` keys; the first to expire are evicted first."""

    def __init__(
        self, seconds: float, size: int = 256, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds = seconds
        self._size = size
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._slots: dict[Hashable, _Slot[T]] = {}

    def peek(self, key: Hashable) -> T | None:
        """Return the value of `key` unless it has expired; never waits."""
        slot = self._slots.get(key)
        return slot.value if slot is not None and slot.until > self._monotonic() else None

    def get(self, key: Hashable, compute: Callable[[], T]) -> T:
        """Return the value of `key`, computed if it has expired: by one thread, while others wait."""
        slot = self._slot(key)
        with slot.lock:
            if slot.until <= self._monotonic():
                slot.value = compute()
                slot.until = self._monotonic() + self._seconds
            return cast("T", slot.value)

    def clear(self) -> None:
        """Drop every value, after a change."""
        with self._lock:
            self._slots.clear()

    def _slot(self, key: Hashable) -> _Slot[T]:
        with self._lock:
            slot = self._slots.get(key)
            if slot is None:
                if len(self._slots) >= self._size:
                    # A quarter at once: evicting one by one would sort at every new key.
                    for old in sorted(self._slots, key=lambda each: self._slots[each].until)[
                        : self._size // 4 or 1
                    ]:
                        del self._slots[old]
                slot = self._slots[key] = _Slot[T]()
            return slot
