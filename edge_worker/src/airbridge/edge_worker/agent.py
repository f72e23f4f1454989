"""The agent: the process around a worker. It locks the state directory, opens the journal and starts the runner."""

from __future__ import annotations

import structlog

from airbridge.edge_worker.exceptions import JournalError, JournalFull, StartError
from airbridge.edge_worker.gateway_client import region
from airbridge.edge_worker.journal.journal import Journal
from airbridge.edge_worker.journal.rows import Contents
from airbridge.edge_worker.lifecycle import ExitCode, Lifecycle
from airbridge.edge_worker.ops.status import Status
from airbridge.edge_worker.settings import MIB, WorkerSettings
from airbridge.edge_worker.storage.disk import Disk
from airbridge.edge_worker.transfer import task_credentials
from airbridge.edge_worker.wiring import WorkerComponents
from airbridge.edge_worker.worker import Worker

__all__ = ["Agent", "ExitCode"]


class Agent:
    """One worker process. `drain` and `hard_stop` may be called from signal handlers of the event loop."""

    def __init__(self, settings: WorkerSettings, components: WorkerComponents) -> None:
        self._settings = settings
        self._components = components
        self._lifecycle = Lifecycle()
        self._worker: Worker | None = None
        self._disk = Disk(
            settings.state_dir,
            reserve_mib=settings.reserve_mib,
            min_free_mib=settings.min_free_mib,
            passable=(settings.state_dir, settings.bundles_dir) if settings.task_user else (),
        )

    async def run(self) -> ExitCode:
        """Work until drained or stopped.

        Raises `SettingsError` if it cannot begin with these settings; `StartError` or `RunnerError` if it cannot now.
        """
        s = self._settings
        structlog.contextvars.bind_contextvars(worker=s.name, region=s.region)
        self._disk.prepare(s.logs_dir, s.bundles_dir)
        try:
            journal, contents = await self._open_journal()
            known = region.journalled_settings(contents.meta)
            if known is not None:
                self._components.runner.configure(known.task_options, task_credentials.prepare(known, s))
            # Before there is a key in memory: the runner's processes must not inherit one.
            await self._components.runner.start()
            try:
                await self._work(journal, contents)
            finally:
                await self._components.runner.stop()
        finally:
            self._disk.close()
        return self._lifecycle.exit_code

    def drain(self) -> None:
        """Let the running tasks finish, then end."""
        self._lifecycle.stop()

    def hard_stop(self) -> None:
        """Fail the running tasks, and end."""
        self._lifecycle.hard_stop(ExitCode.HARD_STOP, "the worker was stopped by an operator")

    @property
    def ready(self) -> bool:
        """Return whether `status` has something to return."""
        return self._worker is not None

    def status(self) -> Status:
        """Return the worker's status as a JSON object, without secrets; empty before the journal is open."""
        return {} if self._worker is None else self._worker.status()

    async def _work(self, journal: Journal, contents: Contents) -> None:
        worker = Worker(
            settings=self._settings,
            components=self._components,
            journal=journal,
            contents=contents,
            lifecycle=self._lifecycle,
            disk=self._disk,
        )
        self._worker = worker
        await worker.run()

    async def _open_journal(self) -> tuple[Journal, Contents]:
        s = self._settings
        for last in (False, True):
            try:
                return await Journal.open(
                    s.journal_file,
                    clock=self._components.clock,
                    max_bytes=s.journal_max_mib * MIB,
                    fsync=s.journal_fsync,
                )
            except JournalError as error:
                # Opening writes a little. A full disk is no reason not to start while the reserve can be freed.
                if isinstance(error, JournalFull) and not last and self._disk.release_reserve():
                    continue
                raise StartError(f"the journal {s.journal_file} cannot be opened: {error}") from error
        raise AssertionError("unreachable: the second attempt returns or raises")
