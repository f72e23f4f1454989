"""The launcher: starts attempts as slots become free, waits for their supervisors, and has each outcome reported."""

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

from airbridge.edge_worker.clock import Clock
from airbridge.edge_worker.exceptions import JournalError, RunnerError, SnapshotError
from airbridge.edge_worker.gateway_client.connectivity import Connectivity
from airbridge.edge_worker.journal.journal import Journal
from airbridge.edge_worker.journal.rows import Forget, Key, LogRow, MarkStarted
from airbridge.edge_worker.ops.events import EventLog
from airbridge.edge_worker.proxy.execution_api import ExecutionApiProxy
from airbridge.edge_worker.proxy.read_cache import ReadCache
from airbridge.edge_worker.proxy.recorder import Recorder
from airbridge.edge_worker.proxy.region_calls import RegionCalls
from airbridge.edge_worker.storage.bundles import Bundles
from airbridge.edge_worker.storage.logs import LogShipper
from airbridge.edge_worker.work import outcome
from airbridge.edge_worker.work.attempts import Attempt, Attempts, Outcome, Phase, Stop
from airbridge.edge_worker.work.task import Exit, Runner, RunningTask, TaskSpec

log = structlog.get_logger(__name__)

# Seconds to wait for the proxy to see the end of file after the supervisor's exit; another process may hold
# the socket.
HANG_UP_SECONDS = 10.0

JOURNAL_RETRY_SECONDS = 1.0


class Launcher:
    """Launches attempts. `may_start` returns whether an attempt may start at all.

    `on_stopped` is called when a task that was to be stopped has ended: the control plane waits for that.
    """

    def __init__(
        self,
        *,
        runner: Runner,
        attempts: Attempts,
        journal: Journal,
        bundles: Bundles,
        logs: LogShipper,
        recorder: Recorder,
        cache: ReadCache,
        connectivity: Connectivity,
        clock: Clock,
        events: EventLog,
        cut_off_after: float,
        cancel_grace: float,
        may_start: Callable[[Attempt], bool],
        on_stopped: Callable[[], None],
        region_calls: RegionCalls,
    ) -> None:
        self._region_calls = region_calls
        self._runner = runner
        self._attempts = attempts
        self._journal = journal
        self._bundles = bundles
        self._logs = logs
        self._recorder = recorder
        self._cache = cache
        self._connectivity = connectivity
        self._clock = clock
        self._events = events
        self._cut_off_after = cut_off_after
        self._cancel_grace = cancel_grace
        self._may_start = may_start
        self._on_stopped = on_stopped
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._proxies: dict[Key, ExecutionApiProxy] = {}
        self._processes: dict[Key, RunningTask] = {}
        self._killers: set[asyncio.Task[None]] = set()
        #: Stops an attempt that is a trigger's. Set once there is something that runs them.
        self.stop_trigger: Callable[[Attempt, Stop], None] = lambda *_: None

    def proxy_of(self, attempt: Attempt) -> ExecutionApiProxy:
        """Return a new proxy for an attempt."""
        return ExecutionApiProxy(
            attempt,
            recorder=self._recorder,
            cache=self._cache,
            connectivity=self._connectivity,
            events=self._events,
            cut_off_after=self._cut_off_after,
            region_calls=self._region_calls,
        )

    async def run(self) -> None:
        """Start attempts as slots become free, until cancelled."""
        log.info("launcher.started")
        try:
            while True:
                changed = asyncio.ensure_future(self._attempts.changed())
                self._start_ready()
                await changed
        finally:
            log.info("launcher.stopped")

    async def abandon(self) -> None:
        """Cancel everything, whatever runs: the process is about to end."""
        for task in [*self._tasks.values(), *self._killers]:
            task.cancel()
        await asyncio.gather(*self._tasks.values(), *self._killers, return_exceptions=True)

    def stop(self, attempt: Attempt, why: Stop) -> None:
        """Stop a task: send its supervisor a cancellation, and kill it if it has not ended after the grace period."""
        if attempt.is_trigger:
            self.stop_trigger(attempt, why)
            return
        if attempt.ended or attempt.stop is not None:
            return
        attempt.stop = why
        log.warning(
            "task.stopping",
            item_id=attempt.key[0],
            epoch=attempt.key[1],
            reason=why.reason,
            detail=why.detail,
        )
        self._events.emit("task.stopping", attempt.key, reason=why.reason, why=why.detail)
        proxy = self._proxies.get(attempt.key)
        if proxy is not None:
            proxy.cancel(why.reason, why.detail)
            killer = asyncio.create_task(self._kill_after_grace(attempt.key))
            self._killers.add(killer)
            killer.add_done_callback(self._killers.discard)
        elif attempt.key in self._tasks:
            self._tasks[attempt.key].cancel()
        else:
            attempt.enter(Phase.ENDED)
            self.settle(attempt)
            self._on_stopped()

    def kill(self, attempt: Attempt) -> None:
        """Kill a task's supervisor and the task, now."""
        process = self._processes.get(attempt.key)
        if process is not None:
            process.kill()

    def settle(self, attempt: Attempt) -> None:
        """Remove an attempt that has nothing left to run or to report."""
        if attempt.done and self._attempts.get(attempt.key) is attempt:
            self._journal.submit(Forget(attempt.key))
            self._attempts.remove(attempt)

    async def log_failure(self, attempt: Attempt, message: str, *, public: str | None = None) -> None:
        """Log the reason of a failure, also to the task's log. `public` replaces it in the event, which others may read."""
        log.warning("task.failed", item_id=attempt.key[0], epoch=attempt.key[1], detail=message)
        self._events.emit("task.failed", attempt.key, why=public or message)
        await asyncio.to_thread(self._append_to_log, self._logs.row_for(attempt.grant), message)

    def log_refused_write(self, attempt: Attempt, message: str) -> None:
        """Append to a task's log that a write accepted here was refused by the control plane."""
        if self._logs.reopen(attempt.key):
            self._append_to_log(self._logs.row_for(attempt.grant), message)

    def close_log(self, attempt: Attempt) -> None:
        """Let go of a task's log: nothing more will be known of its outcome."""
        self._logs.close(attempt.key)

    async def report_failure(self, attempt: Attempt, *, interrupted: bool) -> None:
        """Report the attempt failed on behalf of a task that did not report a final state."""
        if attempt.outcome is Outcome.OPEN:
            call = outcome.failure(attempt.grant, self._clock.now(), interrupted=interrupted)
            await self._recorder.write(attempt, call, final=True)

    # --- starting --------------------------------------------------------------------------------

    def _start_ready(self) -> None:
        for attempt in self._attempts.unstarted:
            if not self._may_start(attempt):
                continue
            slots = self._attempts.slots_taken(attempt)
            # Not `continue`: an attempt of many slots must not be overtaken for ever by those of few.
            if self._attempts.used + slots > self._attempts.slots:
                return
            attempt.enter(Phase.STARTING)
            task = asyncio.create_task(self._run_attempt(attempt))
            self._tasks[attempt.key] = task
            task.add_done_callback(partial(self._finished, attempt.key))

    def _finished(self, key: Key, task: asyncio.Task[None]) -> None:
        self._tasks.pop(key, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("launcher.crashed", item_id=key[0], exc_info=error)

    async def _run_attempt(self, attempt: Attempt) -> None:
        """Run an attempt from its slot to the end of the task."""
        grant = attempt.grant
        structlog.contextvars.bind_contextvars(ti_id=str(grant.ti_id), trace_id=grant.trace_id)
        row = self._logs.row_for(grant)
        try:
            await self._run_or_fail(attempt, row)
        except asyncio.CancelledError:
            # `stop` cancels whatever is waited for, the report of a failure included.
            if attempt.stop is None:
                raise
            if attempt.stop.report:
                await self._fail(attempt, row, attempt.stop.detail, interrupted=True)
        # A refusal of the recorded final state may still have to be logged.
        self._logs.end(attempt.key, keep=attempt.outcome is Outcome.PENDING)
        attempt.enter(Phase.ENDED)
        self._attempts.notify()
        self.settle(attempt)
        if attempt.stop is not None:
            self._on_stopped()

    async def _run_or_fail(self, attempt: Attempt, row: LogRow) -> None:
        """Run an attempt, or report why it could not be run."""
        began_at = self._clock.now()
        try:
            async with self._pinned(attempt, began_at) as code:
                await self._mark_started(attempt, row)
                await self._run(attempt, code, row, began_at)
        except (SnapshotError, RunnerError) as error:
            await self._fail(attempt, row, str(error))
        except Exception as error:
            # Anything else is a defect; without a report the attempt would keep its slot and its lease for ever.
            log.exception("launcher.crashed", item_id=attempt.key[0], epoch=attempt.key[1])
            name = type(error).__name__
            message = f"The worker could not run the task: {name}: {error}"
            await self._fail(attempt, row, message, public=f"The worker could not run the task: {name}")

    async def _fail(
        self,
        attempt: Attempt,
        row: LogRow,
        message: str,
        *,
        public: str | None = None,
        interrupted: bool = False,
    ) -> None:
        await self._mark_started(attempt, row)
        await self.log_failure(attempt, message, public=public)
        await self.report_failure(attempt, interrupted=interrupted)

    async def _mark_started(self, attempt: Attempt, row: LogRow) -> None:
        if attempt.phase is not Phase.STARTING:
            return
        while True:
            try:
                await self._journal.submit(MarkStarted(row))
                break
            except JournalError as error:
                log.warning("launcher.start_not_journalled", item_id=attempt.key[0], detail=str(error))
            await asyncio.sleep(JOURNAL_RETRY_SECONDS)
        attempt.enter(Phase.STARTED)
        self._logs.follow(row)

    @asynccontextmanager
    async def _pinned(self, attempt: Attempt, began_at: datetime) -> AsyncIterator[tuple[Path, Path | None]]:
        """Yield the paths of the task's code and of its environment, pinned; a fetch of them is an event."""
        bundle = attempt.grant.bundle
        name = f"{bundle.name} {bundle.version[:19]}"
        here = self._bundles.has(bundle)

        def failing(why: str) -> None:
            self._events.emit("bundle.failing", attempt.key, bundle=name, why=why)

        async with (
            self._bundles.pinned(bundle, attempt.grant.bundle_signature, failing) as path,
            self._bundles.environment(bundle.name, path, failing) as packages,
        ):
            moved = self._bundles.take_fetched(path, packages)
            if not here or moved:
                self._events.emit(
                    "bundle.fetched", attempt.key, began_at=began_at, bundle=name, code_bytes=moved
                )
            yield path, packages

    async def _run(
        self, attempt: Attempt, code: tuple[Path, Path | None], row: LogRow, began_at: datetime
    ) -> None:
        spec = self._spec(attempt, code, row)
        ours, theirs = socket.socketpair()
        proxy = self.proxy_of(attempt)
        serving = asyncio.create_task(proxy.serve(ours))
        process: RunningTask | None = None
        try:
            process = await self._runner.spawn(spec, theirs)
            self._proxies[attempt.key] = proxy
            self._processes[attempt.key] = process
            log.info("task.started", item_id=attempt.key[0], epoch=attempt.key[1], pid=process.pid)
            forked_at = self._clock.now()
            self._events.emit(
                "task.forked",
                attempt.key,
                at=forked_at,
                began_at=began_at,
                warm=process.warm,
                pid=process.pid,
            )
            exited = await self._ended(attempt, process)
            await asyncio.wait({serving}, timeout=HANG_UP_SECONDS)
            await self._close(attempt, exited, forked_at, row)
        except Exception:
            if process is not None:
                process.kill()
            raise
        finally:
            self._proxies.pop(attempt.key, None)
            self._processes.pop(attempt.key, None)
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    def _spec(self, attempt: Attempt, code: tuple[Path, Path | None], row: LogRow) -> TaskSpec:
        bundle_path, packages = code
        return TaskSpec(
            item_id=attempt.grant.item_id,
            epoch=attempt.grant.epoch,
            grant=attempt.grant,
            bundle_path=bundle_path,
            log_file=Path(row.path),
            warm=attempt.grant.warm,
            environment=packages,
        )

    # --- ending ----------------------------------------------------------------------------------

    async def _ended(self, attempt: Attempt, process: RunningTask) -> Exit:
        if attempt.stop is not None:
            # It was cancelled between its fork and now.
            process.kill()
        return await process.wait()

    async def _close(self, attempt: Attempt, exited: Exit, forked_at: datetime, row: LogRow) -> None:
        self._events.emit(
            "task.ended",
            attempt.key,
            began_at=forked_at,
            code=exited.code,
            signal=exited.signal,
            reported=attempt.finished,
            exception=exited.exception or None,
            cpu_seconds=round(exited.used.cpu_seconds, 6) if exited.used else None,
            peak_memory_bytes=exited.used.peak_memory_bytes if exited.used else None,
            log_bytes=await asyncio.to_thread(_size, Path(row.path)),
            limit=exited.hit.limit.value if exited.hit else None,
            why=exited.hit.detail if exited.hit else None,
        )
        log.info(
            "task.ended",
            item_id=attempt.key[0],
            epoch=attempt.key[1],
            code=exited.code,
            signal=exited.signal,
            reported=attempt.finished,
            limit=exited.hit.limit.value if exited.hit else None,
        )
        if attempt.stop is not None:
            if attempt.stop.report:
                await self.log_failure(attempt, attempt.stop.detail)
                await self.report_failure(attempt, interrupted=True)
            return
        if not attempt.finished:
            # What a supervisor died of may quote the task's own values.
            bare = outcome.explain(replace(exited, detail=""))
            await self.log_failure(attempt, outcome.explain(exited), public=bare)
            await self.report_failure(attempt, interrupted=False)
        elif exited.hit is not None:
            await asyncio.to_thread(self._append_to_log, row, exited.hit.detail)

    async def _kill_after_grace(self, key: Key) -> None:
        await asyncio.sleep(self._cancel_grace)
        process = self._processes.get(key)
        if process is not None:
            log.warning("task.killed", item_id=key[0], epoch=key[1])
            process.kill()

    def _append_to_log(self, row: LogRow, message: str) -> None:
        try:
            outcome.append_to_log(Path(row.path), self._clock.now(), message)
        except OSError as error:
            log.warning("log.note_failed", path=row.path, detail=str(error))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
