"""The agent: one asyncio process that wires the loops together, and lives from enrolment to drain."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from enum import IntEnum
from typing import Any
from uuid import UUID

import structlog

from airbridge.edge_worker import recovery
from airbridge.edge_worker.assembly import Assembly, backoff
from airbridge.edge_worker.deadline import Deadline, start_before
from airbridge.edge_worker.disk import Disk
from airbridge.edge_worker.drain import Drain, Mode
from airbridge.edge_worker.exceptions import (
    GatewayError,
    IdentityError,
    JournalError,
    JournalFull,
    SettingsError,
)
from airbridge.edge_worker.health import StatusServer
from airbridge.edge_worker.holdings import Entry, Holding, Stop
from airbridge.edge_worker.journal import Journal
from airbridge.edge_worker.journal_rows import Contents, Key, SetMeta
from airbridge.edge_worker.parts import Parts
from airbridge.edge_worker.poller import Poller
from airbridge.edge_worker.queue import AsyncQueue
from airbridge.edge_worker.region import Region
from airbridge.edge_worker.retry import Verdict
from airbridge.edge_worker.settings import MIB, WorkerSettings
from airbridge.edge_worker.status import Status, describe
from airbridge.edge_worker.waiting import within
from airbridge.executor.protocol import (
    CancelCommand,
    Credentials,
    RecordResult,
    RefusalReason,
    RegionSettings,
    TrustBundle,
    WorkerState,
)

log = structlog.get_logger(__name__)

OFFLINE_START_SECONDS = 5.0
"""How long a restarted worker waits for the gateway before it goes on with what it holds without it."""

FLUSH_ON_HARD_STOP_SECONDS = 5.0
LAST_POLL_SECONDS = 1.0
"""How long a stopping worker waits for its last long poll, to give back what that may receive."""

LAST_BEAT_SECONDS = 2.0
"""How long a drained worker tries to tell its last events."""

DISK_CHECK_SECONDS = 5.0


class ExitCode(IntEnum):
    """What the process's exit code says."""

    OK = 0
    HARD_STOP = 1
    """Stopped hard, or by a fault of its own; running tasks were failed."""
    BAD_SETTINGS = 2
    NO_IDENTITY = 3
    """Enrolment was refused, or this worker was revoked."""
    NOT_FLUSHED = 75
    """Drained, but results or logs are left in the state directory for the next start."""


class Agent:
    """See the module. `drain` and `hard_stop` may be called from signal handlers of the event loop."""

    def __init__(self, settings: WorkerSettings, parts: Parts) -> None:
        self._settings = settings
        self._parts = parts
        self._clock = parts.clock
        self._mode = Mode.ACTIVE
        self._exit = ExitCode.OK
        self._asked = asyncio.Event()
        self._hurried = asyncio.Event()
        self._roomy = False
        self._region = Region(parts.store)
        self._loops: dict[str, asyncio.Task[None]] = {}
        self._disk = Disk(
            settings.state_dir,
            reserve_mib=settings.reserve_mib,
            min_free_mib=settings.min_free_mib,
            passable=(settings.state_dir, settings.bundles_dir) if settings.task_user else (),
        )

    # --- life ------------------------------------------------------------------------------------

    async def run(self) -> ExitCode:
        """Work until drained or stopped. Raises `SettingsError` if it cannot begin."""
        s = self._settings
        structlog.contextvars.bind_contextvars(worker=s.name, region=s.region)
        self._disk.prepare(s.logs_dir, s.bundles_dir)
        try:
            contents = await self._open_journal()
            await self._parts.runner.start()  # before there is a key in memory that a fork could carry away
            try:
                return await self._live(contents)
            finally:
                await self._parts.runner.stop()
        finally:
            self._disk.close()

    def drain(self) -> None:
        """Finish what runs, then end."""
        if self._mode in {Mode.ACTIVE, Mode.DRAINING}:
            log.warning("agent.stopping", running=len(self._holdings.running) if self._built else 0)
            self._mode = Mode.STOPPING
            self._asked.set()
            if self._built:
                self._heart.beat_soon()

    def hard_stop(
        self, code: ExitCode = ExitCode.HARD_STOP, why: str = "the worker was told to stop now"
    ) -> None:
        """Fail what runs, and end."""
        if self._mode is Mode.HARD_STOP:
            return
        log.error("agent.hard_stop", detail=why)
        self._mode = Mode.HARD_STOP
        self._exit = code
        self._asked.set()
        self._hurried.set()
        if not self._built:
            return
        for holding in self._holdings.running:
            self._launcher.stop(holding, Stop(RefusalReason.DRAINING, why, report=True))
            self._launcher.kill(holding)
        self._holdings.notify()

    async def _live(self, contents: Contents) -> ExitCode:
        leftovers = recovery.read(contents)
        self._region.remember(contents.meta)
        self._build()
        self._start("reporter", self._reporter.run())
        self._start("logs", self._logs.run())
        self._start("events", self._events.run())
        self._start("metrics", self._metrics.run())
        self._events.note("agent.started", airbridge=self._parts.versions.airbridge)
        await self._bundles.open()
        await self._status.start()
        try:
            if await self._enrolled_or_offline():
                await self._recover(leftovers, contents)
                self._start_the_rest()
                await self._asked.wait()
                await self._wind_down()
            elif leftovers.all and self._exit is ExitCode.OK:
                self._exit = ExitCode.NOT_FLUSHED
            return self._exit
        finally:
            await self._close()

    async def _wind_down(self) -> None:
        await self._cancel_loop("poller")
        drain = Drain(
            gateway=self._gateway,
            holdings=self._holdings,
            launcher=self._launcher,
            reporter=self._reporter,
            logs=self._logs,
        )
        if self._poller is not None:
            await self._unless_hurried(self._poller.settled(), self._settings.drain_flush_seconds)
            await self._poller.abandon()
        await drain.release_unstarted("the worker is draining")
        await drain.until_nothing_runs()
        flushed = await self._unless_hurried(drain.flush(), self._settings.drain_flush_seconds)
        if not flushed and self._mode is Mode.HARD_STOP:
            flushed = await within(FLUSH_ON_HARD_STOP_SECONDS, drain.flush())
        if not flushed and self._exit is ExitCode.OK:
            self._exit = ExitCode.NOT_FLUSHED
        if self._queue is not None:
            await within(LAST_POLL_SECONDS, self._queue.settled())
        await within(LAST_BEAT_SECONDS, self._heart.say_goodbye())
        log.info("agent.drained", flushed=flushed)

    async def _unless_hurried(self, work: Coroutine[Any, Any, None], seconds: float) -> bool:
        """Wait for `work` for at most `seconds`, or until a hard stop. Returns whether it ended by itself."""
        waits = [asyncio.ensure_future(work), asyncio.ensure_future(self._hurried.wait())]
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        ended = waits[0].done()
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        return ended

    async def _close(self) -> None:
        for name in [*self._loops]:
            await self._cancel_loop(name)
        await self._launcher.abandon()
        if self._poller is not None:
            await self._poller.abandon()
        if self._queue is not None:
            await self._queue.abandon()
        await self._status.close()
        await self._gateway.close()
        await self._journal.close()

    # --- beginning -------------------------------------------------------------------------------

    async def _open_journal(self) -> Contents:
        s = self._settings
        for attempt in (1, 2):
            try:
                self._journal, contents = await Journal.open(
                    s.journal_file,
                    clock=self._clock,
                    max_bytes=s.journal_max_mib * MIB,
                    fsync=s.journal_fsync,
                )
                break
            except JournalFull:
                if attempt == 2 or not self._disk.release_reserve():
                    raise
            except JournalError as error:
                raise SettingsError(f"the journal {s.journal_file} cannot be opened: {error}") from error
        self._journal.on_full = self._make_space
        return contents

    def _build(self) -> None:
        parts = Assembly(self._settings, self._parts, self._journal, self._region, self)
        self._link, self._gateway, self._identity = parts.link, parts.gateway, parts.identity
        self._holdings, self._reporter, self._launcher = parts.holdings, parts.reporter, parts.launcher
        self._bundles, self._logs, self._heart = parts.bundles, parts.logs, parts.heart
        self._events, self._metrics = parts.events, parts.metrics
        self._poller: Poller | None = None
        self._queue: AsyncQueue | None = None
        self._status = StatusServer(self._settings.status_socket, self.status)
        self._built = True

    _built = False

    async def _enrolled_or_offline(self) -> bool:
        """Enrol; or, if the gateway is away and an earlier process was here, go on without. False if told to end."""
        enrolling = asyncio.create_task(self._identity.enrol_persistently())
        asked = asyncio.create_task(self._asked.wait())
        patience = OFFLINE_START_SECONDS if self._region.settings is not None else None
        try:
            await asyncio.wait({enrolling, asked}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            if enrolling.done():
                enrolling.result()
                return True
            if asked.done():
                return False
        except (GatewayError, IdentityError) as error:
            log.error("agent.not_enrolled", detail=str(error))  # noqa: TRY400 - the refusal says it all
            self._exit = ExitCode.NO_IDENTITY
            return False
        finally:
            asked.cancel()
            if not enrolling.done() and self._asked.is_set():
                enrolling.cancel()
        log.warning("agent.started_offline", held=len(self._holdings))
        self._loops["enrolment"] = enrolling
        enrolling.add_done_callback(self._loop_ended)
        return True

    async def _recover(self, leftovers: recovery.Leftovers, contents: Contents) -> None:
        for holding in leftovers.interrupted:
            await self._launcher.note(holding, recovery.INTERRUPTED)
        for row in [*contents.logs.values()]:
            self._logs.adopt(row)
        for holding in leftovers.all:
            self._holdings.add(holding)
        for holding in leftovers.unreported:
            self._reporter.wake(holding)
        for holding in leftovers.interrupted:
            await self._launcher.report_failure(holding, interrupted=True)
        for holding in leftovers.settled:
            self._holdings.add(holding)
            self._launcher.settle(holding)
        if leftovers.unstarted and self._gateway.identified:
            try:
                await self._heart.beat()  # which of them are still ours?
            except GatewayError as error:
                log.warning("agent.leases_unconfirmed", detail=str(error))

    def _start_the_rest(self) -> None:
        self._start("heart", self._heart.run())
        self._start("launcher", self._launcher.run())
        deadline = Deadline(self._holdings, self._clock, self._launcher.stop, self._launcher.kill)
        self._start("deadline", deadline.run())
        self._start("disk", self._watch_disk())
        self._start("connected", self._when_enrolled())

    async def _when_enrolled(self) -> None:
        """What needs an identity: polling, and keeping the identity."""
        while not self._gateway.identified:
            await asyncio.sleep(0.2)
        if self._region.settings is None:
            raise IdentityError("enrolled without region settings")
        await asyncio.to_thread(self._region.warm)
        self._poller = self._make_poller(self._region.settings)
        self._start("poller", self._poller.run())
        await self._identity.keep()

    def _make_poller(self, region: RegionSettings) -> Poller:
        self._queue = self._parts.queue(region)
        return Poller(
            queue=self._queue,
            gateway=self._gateway,
            holdings=self._holdings,
            journal=self._journal,
            link=self._link,
            clock=self._clock,
            events=self._events,
            verifier=self._region.verifier,
            may_claim=self._may_claim,
            on_grant=self._holdings.add,
            on_identity=self.identity_refused,
            backoff=lambda: backoff(self._settings, self._parts),
            rng=self._parts.rng,
            poll_seconds=self._settings.poll_seconds,
        )

    # --- loops -----------------------------------------------------------------------------------

    def _start(self, name: str, loop: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(loop, name=name)
        self._loops[name] = task
        task.add_done_callback(self._loop_ended)

    def _loop_ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is None:
            return
        if isinstance(error, GatewayError | IdentityError):
            self.hard_stop(ExitCode.NO_IDENTITY, f"no identity: {error}")
            return
        log.critical("agent.loop_crashed", loop=task.get_name(), exc_info=error)
        self.hard_stop(why=f"the loop {task.get_name()} crashed")

    async def _cancel_loop(self, name: str) -> None:
        task = self._loops.pop(name, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _watch_disk(self) -> None:
        while True:
            self._disk.keep_reserve()
            roomy = self._disk.has_room and self._logs.bytes < self._settings.logs_max_mib * MIB
            if roomy != self._roomy:
                level = log.info if roomy else log.warning
                level("agent.disk", roomy=roomy, free_bytes=self._disk.free_bytes)
                self._roomy = roomy
            if self._journal.full:
                # Has space come back? Only a write can tell.
                self._journal.submit(SetMeta("last_full_at", self._clock.now().isoformat()))
            await asyncio.sleep(DISK_CHECK_SECONDS)

    # --- what the loops ask ------------------------------------------------------------------------

    def _may_claim(self) -> bool:
        return (
            self._mode is Mode.ACTIVE and self._gateway.identified and self._journal.has_room and self._roomy
        )

    @property
    def worker_state(self) -> WorkerState:
        """See `assembly.Owner`."""
        return self._mode.reported

    @property
    def claiming(self) -> tuple[UUID, ...]:
        """See `assembly.Owner`."""
        return () if self._poller is None else self._poller.claiming

    def may_start(self, holding: Holding) -> bool:
        """Whether a granted task may start: not once a drain has begun, nor what the control plane has given up by now.

        What a restarted worker finds claimed starts without contact, unless it must never run twice.
        """
        if self._mode in {Mode.STOPPING, Mode.HARD_STOP} or self._region.settings is None:
            return False
        policy = holding.grant.disconnect
        if holding.contact_at is None:
            return policy.stop_after is None
        return self._clock.elapsed() - holding.contact_at < start_before(policy)

    def _make_space(self) -> None:
        """The disk is full where a result should go: give up the reserve, then logs that have been kept waiting."""
        if not self._disk.release_reserve():
            self._logs.drop_oldest()

    # --- what the loops tell -----------------------------------------------------------------------

    def identity_changed(self, credentials: Credentials) -> None:
        """See `assembly.Owner`."""
        to_journal = self._region.adopt(credentials)
        if to_journal is not None:
            self._journal.submit(to_journal)
        self._holdings.notify()

    def answered(self, holding: Holding, entry: Entry, result: RecordResult) -> None:
        """See `assembly.Owner`."""
        if result.status >= 400 and entry.waiter is None:
            log.error(
                "record.refused_by_airflow",
                item_id=holding.key[0],
                epoch=holding.key[1],
                seq=entry.record.seq,
                path=entry.record.path,
                status=result.status,
                body=(result.body or "")[:500],
            )
            what = f"{entry.record.method} {entry.record.path}"
            self._launcher.note_refusal(
                holding, f"{what} was accepted here, and then refused by the control plane: {result.body}"
            )
        if entry.final:
            log.info("task.reported", item_id=holding.key[0], epoch=holding.key[1], status=result.status)
        self._launcher.settle(holding)

    def fenced(self, holding: Holding, result: RecordResult) -> None:
        """See `assembly.Owner`."""
        reason = result.refused or RefusalReason.UNKNOWN
        log.warning(
            "task.fenced", item_id=holding.key[0], epoch=holding.key[1], reason=reason, body=result.body
        )
        if not holding.ended:
            self._launcher.note_refusal(
                holding,
                f"The control plane gave this attempt up ({reason}); what it did since is not counted.",
            )
            self._launcher.stop(holding, Stop(reason, "the control plane gave this attempt up", report=False))
        self._launcher.settle(holding)

    # --- Listener: what the control plane wants ------------------------------------------------------

    def cancel(self, at: Key, command: CancelCommand) -> None:
        """See `heart.Listener`. A task whose final state is on its way is left alone: the answer to that decides."""
        holding = self._holdings.get(at)
        if holding is None or holding.finished:
            return
        self._launcher.stop(holding, Stop(command.reason, command.detail, report=False))

    def drain_requested(self, detail: str) -> None:
        """See `heart.Listener`."""
        if self._mode is Mode.ACTIVE:
            log.warning("agent.draining", detail=detail)
            self._mode = Mode.DRAINING
            self._heart.beat_soon()

    def resume(self) -> None:
        """See `heart.Listener`."""
        if self._mode is Mode.DRAINING:
            log.info("agent.resumed")
            self._mode = Mode.ACTIVE
            self._holdings.notify()
            self._heart.beat_soon()

    def renew(self) -> None:
        """See `heart.Listener`."""
        self._identity.renew_soon()

    def trust(self, trust: TrustBundle) -> None:
        """See `heart.Listener`."""
        try:
            self._identity.trust(trust)
        except IdentityError as error:
            log.error("identity.trust_unusable", detail=str(error))  # noqa: TRY400 - nothing of ours failed

    def identity_refused(self, verdict: Verdict, error: GatewayError) -> None:
        """See `heart.Listener`."""
        if verdict is Verdict.REVOKED:
            self.hard_stop(ExitCode.NO_IDENTITY, f"this worker is revoked: {error}")
        else:
            self._identity.renew_soon()

    @property
    def built(self) -> bool:
        """Whether the agent is far enough for `status`."""
        return self._built

    # --- status ----------------------------------------------------------------------------------

    def status(self) -> Status:
        """Return what this worker is doing, for people and probes. No secrets."""
        found = describe(self._holdings, self._link, self._journal, self._logs, self._disk)
        return {
            "worker": self._settings.name,
            "region": self._settings.region,
            "pool": self._settings.pool,
            "mode": self._mode.value,
            "enrolled": self._gateway.identified,
            "clock_skew_seconds": round(self._heart.skew_seconds, 3),
            **found,
        }
