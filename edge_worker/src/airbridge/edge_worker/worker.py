"""The worker: one asyncio program from enrolment to the end of its drain, on an open journal."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog

from airbridge.core.protocol import RefusalReason
from airbridge.edge_worker.exceptions import GatewayError, IdentityError
from airbridge.edge_worker.gateway_client.region import WorkerRegion
from airbridge.edge_worker.journal.journal import Journal
from airbridge.edge_worker.journal.rows import Contents, key_of
from airbridge.edge_worker.lifecycle import ExitCode, Lifecycle, Mode
from airbridge.edge_worker.loops import Loops
from airbridge.edge_worker.ops.health import StatusServer
from airbridge.edge_worker.ops.status import Status, describe
from airbridge.edge_worker.settings import WorkerSettings
from airbridge.edge_worker.storage.disk import Disk
from airbridge.edge_worker.transfer.task_credentials import TaskCredentials
from airbridge.edge_worker.wiring import WorkerComponents, wire
from airbridge.edge_worker.work import recovery
from airbridge.edge_worker.work.attempts import Stop
from airbridge.edge_worker.work.bounded_wait import within
from airbridge.edge_worker.work.deadline import Deadline
from airbridge.edge_worker.work.drain import Drain

log = structlog.get_logger(__name__)

# Seconds for which a restarted worker waits for the gateway before it works on what it holds without it.
OFFLINE_START_SECONDS = 5.0

FLUSH_ON_HARD_STOP_SECONDS = 5.0

# Seconds between two attempts of a draining worker to give back what has not started.
RELEASE_RETRY_SECONDS = 5.0

# Seconds for which a drained worker tries to report its last events.
LAST_HEARTBEAT_SECONDS = 2.0

_IDENTITY_CHECK_SECONDS = 0.2


class Worker:
    """Runs once, on a journal and a disk that `agent.Agent` has opened."""

    def __init__(
        self,
        *,
        settings: WorkerSettings,
        components: WorkerComponents,
        journal: Journal,
        contents: Contents,
        lifecycle: Lifecycle,
        disk: Disk,
    ) -> None:
        self._settings = settings
        self._components = components
        self._journal = journal
        self._contents = contents
        self._lifecycle = lifecycle
        self._disk = disk
        self._region = WorkerRegion(components.store)
        self._region.restore(contents.meta)
        # Read before anything is submitted to the journal, which would change its contents.
        self._leftovers = recovery.read(contents)
        self._objects = wire(
            settings=settings,
            components=components,
            journal=journal,
            region=self._region,
            lifecycle=lifecycle,
            disk=disk,
        )
        self._status_server = StatusServer(settings.status_socket, self.status)
        self._loops = Loops(self._loop_failed)
        journal.on_full = self._objects.disk_watch.free_space
        lifecycle.on_change = self._mode_changed

    async def run(self) -> None:
        """Work until drained or stopped; the exit code is the lifecycle's."""
        objects = self._objects
        self._loops.start("reporter", objects.reporter.run())
        self._loops.start("logs", objects.logs.run())
        self._loops.start("events", objects.events.run())
        self._loops.start("metrics", objects.metrics.run())
        objects.events.emit("agent.started", airbridge=self._components.versions.airbridge)
        await objects.bundles.open()
        await self._status_server.start()
        try:
            if await self._enrol_or_start_offline():
                await self._recover()
                self._start_loops()
                await self._lifecycle.stop_requested.wait()
                await self._drain()
            elif self._leftovers.all:
                self._lifecycle.exit_with(ExitCode.NOT_FLUSHED)
        finally:
            await self._close()

    def status(self) -> Status:
        """Return the worker's status as a JSON object, without secrets."""
        objects = self._objects
        details = describe(
            objects.attempts,
            objects.connectivity,
            self._journal,
            objects.logs,
            self._disk,
            queue_error=objects.polling.queue_error,
            limits=self._components.runner.limits,
        )
        return {
            "worker": self._settings.name,
            "region": self._settings.region,
            "pool": self._settings.pool,
            "mode": self._lifecycle.mode.value,
            "enrolled": objects.gateway.identified,
            "clock_skew_seconds": round(objects.heartbeat.skew_seconds, 3),
            **details,
        }

    # --- starting --------------------------------------------------------------------------------

    async def _enrol_or_start_offline(self) -> bool:
        """Enrol; without the gateway, start offline if an earlier process has enrolled. False if the worker is to end."""
        enrolling = asyncio.create_task(self._objects.identity.enrol_persistently())
        stop = asyncio.create_task(self._lifecycle.stop_requested.wait())
        # The region's buckets are in the journal: without them a task could not even get its code.
        timeout = OFFLINE_START_SECONDS if self._region.settings is not None else None
        try:
            await asyncio.wait({enrolling, stop}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if enrolling.done():
                enrolling.result()
                return True
            if stop.done():
                return False
        except (GatewayError, IdentityError) as error:
            log.error("agent.not_enrolled", detail=str(error))  # noqa: TRY400 - the traceback adds nothing
            self._lifecycle.exit_code = ExitCode.NO_IDENTITY
            return False
        finally:
            stop.cancel()
            if not enrolling.done() and self._lifecycle.stop_requested.is_set():
                enrolling.cancel()
        log.warning("agent.started_offline", held=len(self._objects.attempts))
        self._loops.adopt("enrolment", enrolling)
        return True

    async def _recover(self) -> None:
        objects, leftovers = self._objects, self._leftovers
        for attempt in leftovers.interrupted:
            await objects.launcher.log_failure(attempt, recovery.INTERRUPTED)
        again = {attempt.key for attempt in leftovers.unstarted}
        for row in [*self._contents.logs.values()]:
            take = objects.logs.resume if key_of(row) in again else objects.logs.adopt
            take(row)
        for attempt in leftovers.all:
            objects.attempts.add(attempt)
        for attempt in leftovers.unreported:
            objects.reporter.wake(attempt)
        for attempt in leftovers.interrupted:
            await objects.launcher.report_failure(attempt, interrupted=True)
        for attempt in leftovers.settled:
            objects.attempts.add(attempt)
            objects.launcher.settle(attempt)
        if leftovers.unstarted and objects.gateway.identified:
            await self._confirm_leases()

    async def _confirm_leases(self) -> None:
        # The response cancels those that were given to another worker meanwhile, before any of them starts.
        try:
            await self._objects.heartbeat.send()
        except GatewayError as error:
            log.warning("agent.leases_unconfirmed", detail=str(error))

    def _start_loops(self) -> None:
        objects = self._objects
        launcher = objects.launcher
        deadline = Deadline(objects.attempts, self._components.clock, launcher.stop, launcher.kill)
        self._loops.start("heartbeat", objects.heartbeat.run())
        self._loops.start("launcher", launcher.run())
        self._loops.start("triggers", objects.triggers.run())
        self._loops.start("deadline", deadline.run())
        self._loops.start("disk", objects.disk_watch.run())
        if self._components.transfers is not None:
            credentials = TaskCredentials(
                self._components.transfers,
                self._settings,
                clock=self._components.clock,
                random=self._components.rng.random,
            )
            self._loops.start("task credentials", credentials.run(self._wants_task_credentials))
        self._loops.start("identity", self._poll_once_enrolled())

    def _wants_task_credentials(self) -> bool | None:
        """Return whether the gateway has credentials for tasks; None while it cannot be asked."""
        region = self._region.settings
        if region is None or not region.task_credentials:
            return False
        return True if self._objects.gateway.identified else None

    async def _poll_once_enrolled(self) -> None:
        """Start polling as soon as there is an identity, then keep the identity renewed."""
        while not self._objects.gateway.identified:
            await asyncio.sleep(_IDENTITY_CHECK_SECONDS)
        region = self._region.settings
        if region is None:
            raise IdentityError("enrolled without region settings")
        await asyncio.to_thread(self._region.create_stores)
        self._loops.start("poller", self._objects.polling.run(region))
        await self._objects.identity.keep_renewed()

    # --- ending ----------------------------------------------------------------------------------

    def _mode_changed(self, mode: Mode) -> None:
        if mode is Mode.HARD_STOP:
            self._fail_running(self._lifecycle.hard_stop_reason)
        else:
            # The control plane is to see the new mode at once, not at the end of the interval.
            self._objects.heartbeat.trigger()
        if mode is Mode.DRAINING:
            self._loops.start("release", self._give_back())
        self._objects.attempts.notify()

    def _fail_running(self, reason: str) -> None:
        launcher = self._objects.launcher
        for attempt in self._objects.attempts.running:
            launcher.stop(attempt, Stop(RefusalReason.DRAINING, reason, report=True))
            launcher.kill(attempt)

    def _loop_failed(self, name: str, error: BaseException) -> None:
        if isinstance(error, GatewayError | IdentityError):
            self._lifecycle.hard_stop(ExitCode.NO_IDENTITY, f"no identity: {error}")
            return
        log.critical("agent.loop_crashed", loop=name, exc_info=error)
        self._lifecycle.hard_stop(ExitCode.HARD_STOP, f"the loop {name} crashed")

    async def _drain(self) -> None:
        objects = self._objects
        await self._loops.cancel("poller")
        drain = self._new_drain()
        seconds = self._settings.drain_flush_seconds
        await self._until_hard_stop(objects.polling.claims_settled(), seconds)
        await objects.polling.abandon_claims()
        await objects.triggers.stop_all()
        await self._until_hard_stop(objects.triggers.recorded(), seconds)
        await drain.release_unstarted("the worker is draining")
        await drain.until_nothing_runs()
        flushed = await self._until_hard_stop(drain.flush(), seconds)
        if not flushed and self._lifecycle.mode is Mode.HARD_STOP:
            flushed = await within(FLUSH_ON_HARD_STOP_SECONDS, drain.flush())
        if not flushed:
            self._lifecycle.exit_with(ExitCode.NOT_FLUSHED)
        await objects.polling.last_poll()
        await within(LAST_HEARTBEAT_SECONDS, objects.heartbeat.send_last())
        log.info("agent.drained", flushed=flushed)

    async def _give_back(self) -> None:
        """Let other workers have what has not started while this one drains, and the triggers, which may wait for days."""
        await self._objects.triggers.stop_all()
        drain = self._new_drain()
        while self._lifecycle.mode is Mode.DRAINING:
            # A claim that was under way may still bring something.
            changed = asyncio.ensure_future(self._objects.attempts.changed())
            if await drain.release_unstarted("the worker is draining"):
                await changed
            else:
                changed.cancel()
                await asyncio.sleep(RELEASE_RETRY_SECONDS)

    def _new_drain(self) -> Drain:
        objects = self._objects
        return Drain(
            gateway=objects.gateway,
            attempts=objects.attempts,
            launcher=objects.launcher,
            reporter=objects.reporter,
            logs=objects.logs,
        )

    async def _until_hard_stop(self, work: Coroutine[Any, Any, None], seconds: float) -> bool:
        """Wait for `work` for at most `seconds`, or until a hard stop. Return whether it ended by itself."""
        hard_stop = self._lifecycle.hard_stop_requested.wait()
        waits = [asyncio.ensure_future(work), asyncio.ensure_future(hard_stop)]
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        ended = waits[0].done()
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        return ended

    async def _close(self) -> None:
        await self._loops.cancel_all()
        await self._objects.launcher.abandon()
        await self._objects.polling.close()
        await self._status_server.close()
        await self._objects.gateway.close()
        # Last: until here something may still be journalled.
        await self._journal.close()
