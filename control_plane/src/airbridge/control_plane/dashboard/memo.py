"""Answers kept for a moment and computed once, however many ask: twenty browsers cost what one does."""

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


class Memo(Generic[T]):
    """Values by key, each good for `seconds`. At most `size` keys; the ones that expire first go first."""

    def __init__(
        self, seconds: float, size: int = 256, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds = seconds
        self._size = size
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._slots: dict[Hashable, _Slot[T]] = {}

    def fresh(self, key: Hashable) -> T | None:
        """Return what is known under `key`, if it is still good; never waits."""
        slot = self._slots.get(key)
        return slot.value if slot is not None and slot.until > self._monotonic() else None

    def get(self, key: Hashable, compute: Callable[[], T]) -> T:
        """Return what is known under `key`, or compute it: one thread does, others wait for it."""
        slot = self._slot(key)
        with slot.lock:
            if slot.until <= self._monotonic():
                slot.value = compute()
                slot.until = self._monotonic() + self._seconds
            return cast("T", slot.value)

    def clear(self) -> None:
        """Forget everything: something was changed."""
        with self._lock:
            self._slots.clear()

    def _slot(self, key: Hashable) -> _Slot[T]:
        with self._lock:
            slot = self._slots.get(key)
            if slot is None:
                if len(self._slots) >= self._size:
                    for old in sorted(self._slots, key=lambda each: self._slots[each].until)[
                        : self._size // 4 or 1
                    ]:
                        del self._slots[old]
                slot = self._slots[key] = _Slot[T]()
            return slot
