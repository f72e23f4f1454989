"""Forks of the scheduler while AirBridge's threads run: another executor beside it (LocalExecutor) forks its workers.

A child has a copy of every lock, and only the thread that forked: a lock that another thread held is held for ever. Python
itself takes care of few of them. AirBridge's threads are therefore started after what they import and use first has been
imported and made (`components.build`), and a fork waits for the locks that remain: those of modules that are being imported,
of structlog's output and of the database's connection pool.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib import _bootstrap
from typing import Any, Final

import structlog

# Seconds for which a fork waits for a lock. Imports and writes take milliseconds.
WAIT_SECONDS: Final = 5.0

# Exit status of a child that would have waited for ever: EX_TEMPFAIL of sysexits.h.
_EXIT_CODE: Final = 75

log = structlog.get_logger(__name__)

Locks = Callable[[], Iterable[Any]]


def importing() -> list[str]:
    """Return the modules that other threads are importing at the moment."""
    me = threading.get_ident()
    # They have no public interface.
    locks: dict[str, Callable[[], Any]] = _bootstrap._module_locks  # type: ignore[attr-defined] # noqa: SLF001 - as above
    found = ((name, reference()) for name, reference in list(locks.items()))
    return sorted(name for name, lock in found if lock is not None and lock.owner not in {None, me})


def output_locks() -> list[Any]:
    """Return the locks of structlog's output files."""
    return list(structlog._output.WRITE_LOCKS.values())  # noqa: SLF001 - they have no public interface


class ForkGuard:
    """Holds `locks` during each fork of this process, and lets no other thread's import be cut in two by it."""

    def __init__(self, locks: Locks, *, wait_seconds: float = WAIT_SECONDS) -> None:
        self._locks = locks
        self._wait_seconds = wait_seconds
        self._held: list[Any] = []
        self._cut: list[str] = []

    def install(self) -> None:
        """Guard every later fork; subprocesses are none. It cannot be undone."""
        os.register_at_fork(
            before=self.before, after_in_parent=self.after_in_parent, after_in_child=self.after_in_child
        )

    def before(self) -> None:
        """Wait until no other thread imports a module or holds one of the locks, and hold them."""
        deadline = time.monotonic() + self._wait_seconds
        while (modules := importing()) and time.monotonic() < deadline:
            time.sleep(0.001)
        self._cut = [f"the import of {name}" for name in modules]
        for lock in self._locks():
            if lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
                self._held.append(lock)
            else:
                self._cut.append(f"{lock!r}")

    def after_in_parent(self) -> None:
        """Release the locks, and name what the child would have waited for."""
        self._release()
        if self._cut:
            log.error(
                "fork.refused",
                waited_seconds=self._wait_seconds,
                held_by_other_threads=self._cut,
                child="ended",
            )

    def after_in_child(self) -> None:
        """Release the locks. End the child if another thread's lock is left: it would hang at its first use."""
        self._release()
        if self._cut:
            # Not by the logger, whose locks may be among them.
            with suppress(OSError):
                os.write(
                    2, f"fork.refused pid={os.getpid()}: held for ever: {', '.join(self._cut)}\n".encode()
                )
            os._exit(_EXIT_CODE)

    def _release(self) -> None:
        while self._held:
            self._held.pop().release()


_installed: list[ForkGuard] = []


def install(locks: Locks) -> None:
    """Guard the forks of this process, once."""
    if not _installed:
        guard = ForkGuard(lambda: [*output_locks(), *locks()])
        guard.install()
        _installed.append(guard)
