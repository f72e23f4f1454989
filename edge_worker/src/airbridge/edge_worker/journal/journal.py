"""The journal: the worker's durable record of what it holds and what it has yet to report.

Operations are submitted from the event loop and written by one thread, all that are waiting in one transaction (group
commit), in the order they were submitted. A future resolves when its operation is on the disk, not before.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from pathlib import Path

import structlog

from airbridge.edge_worker.clock import Clock
from airbridge.edge_worker.exceptions import (
    JournalBoundReached,
    JournalCorrupt,
    JournalError,
    JournalFull,
    RecordTooLarge,
)
from airbridge.edge_worker.journal.file import Damage, JournalFile
from airbridge.edge_worker.journal.rows import AddGrant, AddRecord, Contents, Op

log = structlog.get_logger(__name__)

MAX_GROUP = 512
# Above this share of its bound the journal takes results, but no new grants.
NEARLY_FULL = 0.8
# The last share of its bound is kept for final states: small, and worth more than an XCom that can wait.
FINAL_STATE_SHARE = 0.05

Done = asyncio.Future[None]


class Journal:
    """See the module. Make one with `Journal.open`."""

    def __init__(self, file: JournalFile, clock: Clock, max_bytes: int) -> None:
        self._file = file
        self._clock = clock
        self._max_bytes = max_bytes
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[tuple[Op, Done] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._closed = False
        self.damages: list[Damage] = []
        self.full = False
        """True if the last write failed because the disk, or the bound, was full."""
        self.on_full: Callable[[], None] = lambda: None
        """Called when the disk was full; not at the journal's own bound, which space on the disk does not move."""
        self.on_damage: Callable[[Damage], None] = lambda _: None

    @classmethod
    async def open(
        cls, path: Path, *, clock: Clock, max_bytes: int, fsync: bool = True
    ) -> tuple[Journal, Contents]:
        """Open the journal; return it and what it holds. Raises `JournalError`."""
        file, damage = await asyncio.to_thread(JournalFile.open, path, now=clock.now(), fsync=fsync)
        journal = cls(file, clock, max_bytes)
        if damage is not None:
            journal._report(damage)
        journal._thread.start()
        return journal, file.contents

    @property
    def bytes(self) -> int:
        """About how many bytes of grants and records it holds."""
        return self._file.contents.bytes

    @property
    def pending(self) -> int:
        """Number of records that the gateway has not answered yet."""
        return self._file.contents.pending

    @property
    def events(self) -> dict[int, str]:
        """The events that an earlier process left, by their number. Read it before any is added."""
        return dict(self._file.contents.events)

    @property
    def accepts_grants(self) -> bool:
        """Return whether it takes new grants."""
        return not self.full and self.bytes < NEARLY_FULL * self._max_bytes

    def check_size(self, op: Op) -> None:
        """Raise `RecordTooLarge` if `op` does not fit into the journal, however empty it is."""
        most = self._max_bytes - int(_reserved_share(op) * self._max_bytes)
        if op.size > most:
            raise RecordTooLarge(
                f"a record of {op.size} bytes; the worker's journal_max_mib allows at most {most}"
            )

    def submit(self, op: Op) -> Done:
        """Queue an operation; the future resolves when it is durable, or raises `JournalError`."""
        done: Done = self._loop.create_future()
        if self._closed:
            done.set_exception(JournalError("the journal is closed"))
        else:
            self._queue.put((op, done))
        return done

    async def close(self) -> None:
        """Write what was submitted, then close the file."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
            await asyncio.to_thread(self._thread.join)

    # --- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        open_for_more = True
        while open_for_more:
            group, open_for_more = self._next_group()
            if group:
                self._write(group)
        self._file.close()

    def _next_group(self) -> tuple[list[tuple[Op, Done]], bool]:
        group: list[tuple[Op, Done]] = []
        entry = self._queue.get()
        while entry is not None:
            group.append(entry)
            if len(group) >= MAX_GROUP:
                return group, True
            try:
                entry = self._queue.get_nowait()
            except queue.Empty:
                return group, True
        return group, False

    def _write(self, group: list[tuple[Op, Done]]) -> None:
        fitting = self._without_overflow(group)
        try:
            if fitting:
                self._apply([op for op, _ in fitting])
                self._resolve(fitting)
        except JournalError as error:
            if len(fitting) == 1:
                self._fail(fitting[0][1], error)
                return
            # One by one: what only deletes may still work where an insert does not.
            for entry in fitting:
                self._write([entry])
        except Exception as error:
            # A defect; the thread goes on, and nobody waits for ever.
            log.exception("journal.crashed", operations=len(fitting))
            for _, done in fitting:
                self._fail(done, JournalError(f"the journal cannot write: {error!r}"))

    def _without_overflow(self, group: list[tuple[Op, Done]]) -> list[tuple[Op, Done]]:
        capacity = self._max_bytes - self.bytes
        fitting = []
        for op, done in group:
            allowed = capacity - _reserved_share(op) * self._max_bytes
            if op.size > max(0, allowed) and op.size:
                reached = f"{self.bytes} bytes of at most {self._max_bytes} are in the journal"
                self._fail(done, JournalBoundReached(reached))
                continue
            capacity -= op.size
            fitting.append((op, done))
        return fitting

    def _apply(self, ops: list[Op]) -> None:
        try:
            self._file.apply(ops)
        except JournalCorrupt as corrupt:
            damage = self._file.rebuild(str(corrupt), self._clock.now())
            self._call(self._report, damage)
            self._file.apply(ops)

    def _resolve(self, group: list[tuple[Op, Done]]) -> None:
        def resolve() -> None:
            self.full = False
            for _, done in group:
                if not done.done():
                    done.set_result(None)

        self._call(resolve)

    def _fail(self, done: Done, error: JournalError) -> None:
        def fail() -> None:
            # First, so that nothing keeps who waits from its answer.
            if not done.done():
                done.set_exception(error)
                done.exception()  # retrieved, so that asyncio does not log it as lost
            if isinstance(error, JournalFull):
                self.full = True
                if not isinstance(error, JournalBoundReached):
                    self.on_full()

        self._call(fail)

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            return  # the loop is closed: there is no caller left

    def _report(self, damage: Damage) -> None:
        self.damages.append(damage)
        self.on_damage(damage)
        log.error(
            "journal.damaged",
            reason=damage.reason,
            set_aside=str(damage.set_aside) if damage.set_aside else None,
            carried_over=damage.carried_over,
        )


def _reserved_share(op: Op) -> float:
    """Return the share of the bound that is kept for more important things than `op`."""
    if isinstance(op, AddGrant):
        return 1 - NEARLY_FULL
    return FINAL_STATE_SHARE if isinstance(op, AddRecord) and not op.final else 0.0
