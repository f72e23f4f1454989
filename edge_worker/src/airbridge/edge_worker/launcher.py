"""The launcher: starts what is held when there is a slot, watches it run, and sees that its end is reported."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path

import structlog

from airbridge.edge_worker import outcome
from airbridge.edge_worker.bundles import Bundles
from airbridge.edge_worker.cache import ReadCache
from airbridge.edge_worker.clock import Clock
from airbridge.edge_worker.events import EventLog
from airbridge.edge_worker.exceptions import JournalError, RunnerError, SnapshotError
from airbridge.edge_worker.holdings import Holding, Holdings, Stop
from airbridge.edge_worker.journal import Journal
from airbridge.edge_worker.journal_rows import Forget, GrantState, Key, LogRow, MarkStarted
from airbridge.edge_worker.link import Link
from airbridge.edge_worker.logs import LogShipper
from airbridge.edge_worker.outbox import Outbox
from airbridge.edge_worker.relay import Relay
from airbridge.edge_worker.task import Exit, Runner, RunningTask, TaskSpec

log = structlog.get_logger(__name__)

HANG_UP_SECONDS = 10.0
"""How long after its end a supervisor's last words are waited for; something else may hold its socket open."""

JOURNAL_RETRY_SECONDS = 1.0


class Launcher:
    """See the module. `may_start` says whether a holding may start at all."""

    def __init__(
        self,
        *,
        runner: Runner,
        holdings: Holdings,
        journal: Journal,
        bundles: Bundles,
        logs: LogShipper,
        outbox: Outbox,
        cache: ReadCache,
        link: Link,
        clock: Clock,
        events: EventLog,
        cut_off_after: float,
        cancel_grace: float,
        may_start: Callable[[Holding], bool],
    ) -> None:
        self._runner = runner
        self._holdings = holdings
        self._journal = journal
        self._bundles = bundles
        self._logs = logs
        self._outbox = outbox
        self._cache = cache
        self._link = link
        self._clock = clock
        self._events = events
        self._cut_off_after = cut_off_after
        self._cancel_grace = cancel_grace
        self._may_start = may_start
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._relays: dict[Key, Relay] = {}
        self._processes: dict[Key, RunningTask] = {}
        self._killers: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Start what fits until cancelled."""
        log.info("launcher.started")
        try:
            while True:
                changed = asyncio.ensure_future(self._holdings.changed())
                self._start_what_fits()
                await changed
        finally:
            log.info("launcher.stopped")

    async def abandon(self) -> None:
        """Stop watching, whatever runs; the process is about to end."""
        for task in [*self._tasks.values(), *self._killers]:
            task.cancel()
        await asyncio.gather(*self._tasks.values(), *self._killers, return_exceptions=True)

    def stop(self, holding: Holding, why: Stop) -> None:
        """Stop a task. The supervisor is told, and killed if it has not ended when its grace is over."""
        if holding.ended or holding.stop is not None:
            return
        holding.stop = why
        log.warning(
            "task.stopping",
            item_id=holding.key[0],
            epoch=holding.key[1],
            reason=why.reason,
            detail=why.detail,
        )
        self._events.note("task.stopping", holding.key, reason=why.reason, why=why.detail)
        relay = self._relays.get(holding.key)
        if relay is not None:
            relay.cancel(why.reason, why.detail)
            killer = asyncio.create_task(self._kill_after_grace(holding.key))
            self._killers.add(killer)
            killer.add_done_callback(self._killers.discard)
        elif holding.key in self._tasks:
            self._tasks[holding.key].cancel()
        else:
            holding.ended = True
            self.settle(holding)

    def kill(self, holding: Holding) -> None:
        """Kill a task's supervisor and the task, now."""
        process = self._processes.get(holding.key)
        if process is not None:
            process.kill()

    def settle(self, holding: Holding) -> None:
        """Let go of a holding that has nothing left to do or to say."""
        if holding.done and self._holdings.get(holding.key) is holding:
            self._journal.submit(Forget(holding.key))
            self._holdings.remove(holding)

    async def note(self, holding: Holding, message: str, *, public: str | None = None) -> None:
        """Say in the task's log why its attempt ends. `public` is what others may read, if not all of it."""
        log.warning("task.failed", item_id=holding.key[0], epoch=holding.key[1], detail=message)
        self._events.note("task.failed", holding.key, why=public or message)
        await asyncio.to_thread(self._note_in_log, self._logs.row_for(holding.grant), message)

    def note_refusal(self, holding: Holding, message: str) -> None:
        """Say in the log of a task that still runs what became of a write that it was told was accepted."""
        if not holding.ended:
            self._note_in_log(self._logs.row_for(holding.grant), message)

    async def report_failure(self, holding: Holding, *, interrupted: bool) -> None:
        """Report the attempt failed, for a task that can no longer say so itself."""
        if not holding.finished and holding.fenced is None:
            call = outcome.failure(holding.grant, self._clock.now(), interrupted=interrupted)
            await self._outbox.write(holding, call, final=True)

    # --- starting --------------------------------------------------------------------------------

    def _start_what_fits(self) -> None:
        for holding in self._holdings.unstarted:
            if not self._may_start(holding):
                continue
            slots = self._holdings.slots_of(holding.grant.slots)
            if self._holdings.used + slots > self._holdings.slots:
                return
            holding.starting = True
            task = asyncio.create_task(self._see_through(holding))
            self._tasks[holding.key] = task
            task.add_done_callback(partial(self._finished, holding.key))

    def _finished(self, key: Key, task: asyncio.Task[None]) -> None:
        self._tasks.pop(key, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("launcher.crashed", item_id=key[0], exc_info=error)

    async def _see_through(self, holding: Holding) -> None:
        """From a slot to the end of the task."""
        grant = holding.grant
        structlog.contextvars.bind_contextvars(ti_id=str(grant.ti_id), trace_id=grant.trace_id)
        row = self._logs.row_for(grant)
        began_at = self._clock.now()
        try:
            async with self._pinned(holding, began_at) as path:
                await self._mark_started(holding, row)
                await self._run(holding, path, row, began_at)
        except (SnapshotError, RunnerError) as error:
            await self._mark_started(holding, row)
            await self.note(holding, str(error))
            await self.report_failure(holding, interrupted=False)
        except asyncio.CancelledError:
            if holding.stop is None:
                raise
            if holding.stop.report:
                await self._mark_started(holding, row)
                await self.note(holding, holding.stop.detail)
                await self.report_failure(holding, interrupted=True)
        self._logs.end(holding.key)
        holding.starting = False
        holding.ended = True
        self._holdings.notify()
        self.settle(holding)

    async def _mark_started(self, holding: Holding, row: LogRow) -> None:
        if holding.state is not GrantState.CLAIMED:
            return
        while True:
            try:
                await self._journal.submit(MarkStarted(row))
                break
            except JournalError as error:
                log.warning("launcher.start_not_journalled", item_id=holding.key[0], detail=str(error))
            await asyncio.sleep(JOURNAL_RETRY_SECONDS)
        holding.state = GrantState.STARTED
        self._logs.follow(row)

    @asynccontextmanager
    async def _pinned(self, holding: Holding, began_at: datetime) -> AsyncIterator[Path]:
        """The task's code; a fetch of it is an event."""
        bundle = holding.grant.bundle
        name = f"{bundle.name} {bundle.version[:19]}"
        here = self._bundles.has(bundle)

        def failing(why: str) -> None:
            self._events.note("bundle.failing", holding.key, bundle=name, why=why)

        async with self._bundles.pinned(bundle, failing) as path:
            if not here:
                self._events.note("bundle.fetched", holding.key, began_at=began_at, bundle=name)
            yield path

    async def _run(self, holding: Holding, bundle_path: Path, row: LogRow, began_at: datetime) -> None:
        spec = self._spec(holding, bundle_path, row)
        ours, theirs = socket.socketpair()
        relay = Relay(
            holding,
            outbox=self._outbox,
            cache=self._cache,
            link=self._link,
            events=self._events,
            cut_off_after=self._cut_off_after,
        )
        serving = asyncio.create_task(relay.serve(ours))
        try:
            process = await self._runner.spawn(spec, theirs)
            self._relays[holding.key] = relay
            self._processes[holding.key] = process
            log.info("task.started", item_id=holding.key[0], epoch=holding.key[1], pid=process.pid)
            forked_at = self._clock.now()
            self._events.note(
                "task.forked",
                holding.key,
                at=forked_at,
                began_at=began_at,
                warm=process.warm,
                pid=process.pid,
            )
            exited = await self._ended(holding, process)
            await asyncio.wait({serving}, timeout=HANG_UP_SECONDS)
            await self._close(holding, exited, forked_at)
        finally:
            self._relays.pop(holding.key, None)
            self._processes.pop(holding.key, None)
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    def _spec(self, holding: Holding, bundle_path: Path, row: LogRow) -> TaskSpec:
        return TaskSpec(
            item_id=holding.grant.item_id,
            epoch=holding.grant.epoch,
            grant=holding.grant,
            bundle_path=bundle_path,
            log_file=Path(row.path),
            warm=holding.grant.warm,
        )

    # --- ending ----------------------------------------------------------------------------------

    async def _ended(self, holding: Holding, process: RunningTask) -> Exit:
        if holding.stop is not None:
            # It was cancelled between its fork and now.
            process.kill()
        return await process.wait()

    async def _close(self, holding: Holding, exited: Exit, forked_at: datetime) -> None:
        self._events.note(
            "task.ended",
            holding.key,
            began_at=forked_at,
            code=exited.code,
            signal=exited.signal,
            reported=holding.finished,
        )
        log.info(
            "task.ended",
            item_id=holding.key[0],
            epoch=holding.key[1],
            code=exited.code,
            signal=exited.signal,
            reported=holding.finished,
        )
        if holding.stop is not None:
            if holding.stop.report:
                await self.note(holding, holding.stop.detail)
                await self.report_failure(holding, interrupted=True)
            return
        if not holding.finished:
            # What a supervisor died of may quote the task's own values.
            bare = outcome.explain(replace(exited, detail=""))
            await self.note(holding, outcome.explain(exited), public=bare)
            await self.report_failure(holding, interrupted=False)

    async def _kill_after_grace(self, key: Key) -> None:
        await asyncio.sleep(self._cancel_grace)
        process = self._processes.get(key)
        if process is not None:
            log.warning("task.killed", item_id=key[0], epoch=key[1])
            process.kill()

    def _note_in_log(self, row: LogRow, message: str) -> None:
        try:
            outcome.append_to_log(Path(row.path), self._clock.now(), message)
        except OSError as error:
            log.warning("log.note_failed", path=row.path, detail=str(error))
