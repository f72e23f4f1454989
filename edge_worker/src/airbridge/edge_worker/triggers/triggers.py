"""Triggers of the worker: started as they are granted, each in the host of its bundle version, and their events recorded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from airbridge.core import task_calls
from airbridge.core.backoff import Backoff
from airbridge.core.protocol import TRIGGER_EVENT
from airbridge.edge_worker.clock import Clock
from airbridge.edge_worker.exceptions import RunnerError, SnapshotError
from airbridge.edge_worker.proxy.execution_api import ExecutionApiProxy
from airbridge.edge_worker.proxy.protocol import Call
from airbridge.edge_worker.proxy.recorder import Recorder
from airbridge.edge_worker.storage.bundles import Bundles
from airbridge.edge_worker.storage.logs import LogShipper
from airbridge.edge_worker.triggers import host_log, log_file
from airbridge.edge_worker.triggers.host import TriggerHost
from airbridge.edge_worker.work import outcome
from airbridge.edge_worker.work.attempts import Attempt, Attempts, Phase, Stop
from airbridge.edge_worker.work.task import Runner

log = structlog.get_logger(__name__)

# A host without triggers ends after this long: the next deferral of its bundle often comes soon.
IDLE_SECONDS: Final = 30.0
# A host that ran this long is not failing.
_WORKED_SECONDS: Final = 60.0

# Characters of events on their way to the journal, after which hosts are read no further.
_MOST_RECORDING: Final = 32 * 1024 * 1024

# Name and version of a bundle: what a host has on its path.
_HostKey = tuple[str, str]


class Triggers:
    """See the module. `may_start` returns whether triggers may start at all; `settle` removes an attempt that is done."""

    def __init__(
        self,
        *,
        runner: Runner,
        attempts: Attempts,
        bundles: Bundles,
        logs: LogShipper,
        recorder: Recorder,
        clock: Clock,
        backoff: Callable[[], Backoff],
        directory: Path,
        proxy_of: Callable[[Attempt], ExecutionApiProxy],
        may_start: Callable[[], bool],
        settle: Callable[[Attempt], None],
        on_stopped: Callable[[], None],
    ) -> None:
        self._runner = runner
        self._attempts = attempts
        self._bundles = bundles
        self._logs = logs
        self._recorder = recorder
        self._clock = clock
        self._new_backoff = backoff
        self._directory = directory
        self._proxy_of = proxy_of
        self._may_start = may_start
        self._settle = settle
        self._on_stopped = on_stopped
        self._hosts: dict[_HostKey, TriggerHost] = {}
        self._tasks: dict[_HostKey, asyncio.Task[None]] = {}
        self._backoffs: dict[_HostKey, Backoff] = {}
        # Events on their way to the journal.
        self._recording: set[asyncio.Task[None]] = set()
        self._recording_characters = 0

    async def run(self) -> None:
        """Start triggers as they are granted, until cancelled."""
        host_log.remove_all(self._directory)
        try:
            while True:
                changed = asyncio.ensure_future(self._attempts.changed())
                self._start_waiting()
                await changed
        finally:
            await self.stop_all()

    def stop(self, attempt: Attempt, why: Stop) -> None:
        """Stop a trigger that is not wanted any more; it reports nothing."""
        if attempt.ended or attempt.stop is not None:
            return
        attempt.stop = why
        log.info("trigger.stopping", item_id=attempt.key[0], epoch=attempt.key[1], reason=why.reason)
        host = self._hosts.get(_key(attempt))
        if host is not None:
            host.remove(attempt)
        self._end(attempt)
        self._on_stopped()

    async def stop_all(self) -> None:
        """End every host; its triggers wait to be started again, or to be released."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def recorded(self) -> None:
        """Return once the events that hosts have sent are in the journal."""
        while self._recording:
            await asyncio.wait(self._recording)

    def _start_waiting(self) -> None:
        if not self._may_start():
            return
        for attempt in self._attempts.triggers:
            if attempt.waiting:
                attempt.enter(Phase.STARTING)
                self._host_of(attempt).add(attempt)

    def _host_of(self, attempt: Attempt) -> TriggerHost:
        key = _key(attempt)
        host = self._hosts.get(key)
        if host is None:
            host = self._hosts[key] = TriggerHost(
                self._runner,
                attempt,
                log_file=host_log.path_in(self._directory, *key),
                proxy_of=self._proxy_of,
                on_fired=self._fired,
                room=self._room,
                on_logged=self._logged,
            )
            self._tasks[key] = asyncio.create_task(self._run_host(key, host, attempt))
        return host

    async def _run_host(self, key: _HostKey, host: TriggerHost, first: Attempt) -> None:
        bundle, signature = first.grant.bundle, first.grant.bundle_signature
        began = self._clock.elapsed()
        failure = ""
        printed = host_log.path_in(self._directory, *key)
        watches = [
            asyncio.create_task(self._end_when_idle(host)),
            asyncio.create_task(host_log.bound(printed)),
        ]
        try:
            async with (
                self._bundles.pinned(bundle, signature) as code,
                self._bundles.environment(bundle.name, code) as packages,
            ):
                await host.run(code, packages)
        except SnapshotError as error:
            # The code will not come: the tasks fail with the reason, as they would if they ran.
            for attempt in host.attempts:
                host.remove(attempt)
                self._fired(attempt, _failure(str(error)))
        except RunnerError as error:
            failure = str(error)
        finally:
            for watch in watches:
                watch.cancel()
            await self._host_ended(key, host, began, failure)

    async def _host_ended(self, key: _HostKey, host: TriggerHost, began: float, failure: str) -> None:
        """Let the host's triggers start again, after a pause if it did not live long.

        What the host has printed is deleted with it, unless it is lost: it may have printed why.
        """
        left = [attempt for attempt in host.attempts if not attempt.ended]
        if left and self._may_start():
            backoff = self._backoffs.setdefault(key, self._new_backoff())
            if self._clock.elapsed() - began > _WORKED_SECONDS:
                backoff.succeeded()
            pause = backoff.failed()
            log.warning(
                "triggers.host_lost", bundle=key[0], triggers=len(left), detail=failure, retry_seconds=pause
            )
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(pause)
        else:
            host_log.remove(host_log.path_in(self._directory, *key))
        self._hosts.pop(key, None)
        self._tasks.pop(key, None)
        for attempt in host.attempts:
            if attempt.phase in {Phase.STARTING, Phase.STARTED}:
                attempt.enter(Phase.CLAIMED)
        self._attempts.notify()

    async def _end_when_idle(self, host: TriggerHost) -> None:
        while True:
            await asyncio.sleep(IDLE_SECONDS)
            if not host.attempts:
                host.kill()

    # --- what a host sends -------------------------------------------------------------------------

    def _fired(self, attempt: Attempt, body: str) -> None:
        """Record the event, whatever becomes of the host meanwhile. It is durable before anything of it is sent."""

        def recorded(task: asyncio.Task[None]) -> None:
            self._recording.discard(task)
            self._recording_characters -= len(body)

        recording = asyncio.create_task(self._record(attempt, body))
        self._recording.add(recording)
        self._recording_characters += len(body)
        recording.add_done_callback(recorded)

    async def _room(self) -> None:
        """Return once what waits for the journal is bounded: on a full disk it waits for long, and each trigger may have an event."""
        while self._recording_characters > _MOST_RECORDING:
            await asyncio.wait(self._recording, return_when=asyncio.FIRST_COMPLETED)

    async def _record(self, attempt: Attempt, body: str) -> None:
        if attempt.ended or attempt.finished:
            return
        most = task_calls.OTHER_BODY.size
        if len(body) > most:
            body = _failure(f"the trigger's event has {len(body)} characters; at most {most} are allowed")
        try:
            await self._write(attempt, body)
        except Exception:
            # A defect; without a record the trigger would be held for ever.
            log.exception("trigger.not_recorded", item_id=attempt.key[0], epoch=attempt.key[1])
            await self._write(attempt, _failure("the worker could not record the trigger's event"))
        log.info("trigger.fired", item_id=attempt.key[0], epoch=attempt.key[1])
        if not attempt.ended:  # it may have been stopped meanwhile
            self._end(attempt)

    async def _write(self, attempt: Attempt, body: str) -> None:
        await self._recorder.write(attempt, Call(0, "POST", TRIGGER_EVENT, "", body), final=True)

    def _end(self, attempt: Attempt) -> None:
        row = self._logs.row_for(attempt.grant)
        if Path(row.path).exists():
            # Also what an earlier process of the worker wrote.
            self._logs.written(row)
        self._logs.end(attempt.key)
        attempt.enter(Phase.ENDED)
        self._attempts.notify()
        self._settle(attempt)

    def _logged(self, attempt: Attempt, line: bytes) -> None:
        row = self._logs.row_for(attempt.grant)
        try:
            written = log_file.append(Path(row.path), line, self._clock.now())
        except OSError as error:
            log.warning("log.note_failed", path=row.path, detail=str(error))
            return
        if written:
            self._logs.written(row)


def _failure(message: str) -> str:
    return outcome.trigger_failure(message).body or ""


def _key(attempt: Attempt) -> _HostKey:
    bundle = attempt.grant.bundle
    return bundle.name, bundle.version
