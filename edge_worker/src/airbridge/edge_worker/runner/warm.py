"""The agent's side of the runner: starts the zygote, asks it for tasks, and hears what became of them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import structlog

from airbridge.edge_worker.exceptions import RunnerError
from airbridge.edge_worker.runner import home, messages, process
from airbridge.edge_worker.runner.messages import Ended, Job, Ready, Reaped, Source, Spawn, Started, Unshared
from airbridge.edge_worker.runner.settings import RunnerSettings
from airbridge.edge_worker.task import Exit, TaskSpec

_ATTEMPTS: Final = 3
"""How often a spawn is asked for; a template or zygote that dies takes along what was on its way to it."""

_LAST_WORD_SECONDS: Final = 1.0
"""How long to wait for the zygote to say what killed a supervisor."""

_STOP_SECONDS: Final = 10.0

log = structlog.get_logger()


class WarmTask:
    """A supervisor and the task beneath it."""

    def __init__(self, status: socket.socket) -> None:
        self._status = status
        self._started: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._status_at_death: int | None = None
        self._pid = 0
        self._pidfd = -1
        status.setblocking(False)
        asyncio.get_running_loop().add_reader(status, self._hear)

    @property
    def pid(self) -> int:
        """The supervisor's process id."""
        return self._pid

    async def started(self) -> bool:
        """Return whether the supervisor came up, once that is known."""
        return await asyncio.shield(self._started) != 0

    async def wait(self) -> Exit:
        """Return once the supervisor has ended."""
        return await asyncio.shield(self._exit)

    def on_exit(self, callback: Callable[[WarmTask], None]) -> None:
        """Have `callback` called once the supervisor has ended."""
        self._exit.add_done_callback(lambda _exit: callback(self))

    def kill(self) -> None:
        """Kill the supervisor; the kernel kills the task with it, the zygote what is below."""
        if self._pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def reaped(self, status: int) -> None:
        """Take note of how the supervisor ended, from a process that could wait for it."""
        self._status_at_death = status

    def abandon(self) -> None:
        """Stop listening."""
        self._close()
        if not self._started.done():
            self._started.set_result(0)

    def _hear(self) -> None:
        try:
            message, _fds = messages.receive(self._status)
        except BlockingIOError:
            return
        except OSError:
            message = None
        match message:
            case Started():
                self._come_up(message.pid)
            case Ended():
                self._finish(Exit(message.code, None, message.detail))
            case _:
                self._end_without_a_word()

    def _come_up(self, pid: int) -> None:
        self._pid = pid
        with suppress(ProcessLookupError):
            self._pidfd = os.pidfd_open(pid)
        self._started.set_result(pid)

    def _end_without_a_word(self) -> None:
        asyncio.get_running_loop().remove_reader(self._status)
        if not self._started.done():
            self._started.set_result(0)
        else:
            self._finding = asyncio.ensure_future(self._find_cause())

    async def _find_cause(self) -> None:
        """Finish with what killed the supervisor, as soon as its parent says so; if the zygote has died, that is us."""
        deadline = time.monotonic() + _LAST_WORD_SECONDS
        while self._status_at_death is None and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
            self._wait_if_ours()
        self._finish(_exit_of(self._status_at_death))

    def _wait_if_ours(self) -> None:
        with suppress(ChildProcessError):
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self.reaped(status)

    def _finish(self, exit_: Exit) -> None:
        self._close()
        if not self._exit.done():
            self._exit.set_result(exit_)

    def _close(self) -> None:
        if self._status.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._status)
            self._status.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


def _exit_of(status: int | None) -> Exit:
    """Return what a status of `os.waitpid`, or the lack of one, says."""
    if status is None:
        return Exit(1, None, "the supervisor ended without saying why")
    detail = f"the supervisor ended: {process.describe(status)}"
    if os.WIFSIGNALED(status):
        return Exit(None, os.WTERMSIG(status), detail)
    return Exit(os.waitstatus_to_exitcode(status), None, detail)


class WarmRunner:
    """Runs tasks from processes that have Airflow loaded and DAG files parsed; see the package's docstring."""

    def __init__(self, settings: RunnerSettings) -> None:
        self._settings = settings
        self._tasks: dict[int, WarmTask] = {}
        self._zygote: _Zygote | None = None
        self._starting = asyncio.Lock()
        self._stopped = False
        self._lost_zygote = False

    @property
    def zygote_pid(self) -> int | None:
        """The zygote's process id while there is one."""
        return self._zygote.pid if self._zygote and self._zygote.alive else None

    async def start(self) -> None:
        """Start the zygote and wait until it has loaded Airflow. Raises `RunnerError`."""
        home.prepare(self._settings.airflow_home)
        process.adopt_orphans()
        await self._ensure_zygote()

    async def spawn(self, spec: TaskSpec, relay: socket.socket) -> WarmTask:
        """Start the task; see `airbridge.edge_worker.task.Runner`."""
        job_fd = messages.write_job(_job(spec, self._settings.kill_grace_seconds))
        try:
            for _attempt in range(_ATTEMPTS):
                task = await self._try_spawn(_source(spec), spec.warm, relay, job_fd)
                if task is not None:
                    return task
        finally:
            os.close(job_fd)
            relay.close()
        raise RunnerError(f"no supervisor came up for work item {spec.item_id} in {_ATTEMPTS} attempts")

    async def stop(self) -> None:
        """Kill every running task and end the zygote and its templates."""
        self._stopped = True
        running = list(self._tasks.values())
        for task in running:
            task.kill()
        if self._zygote is not None:
            await self._zygote.stop()
        await asyncio.gather(*(task.wait() for task in running))
        self._sweep()

    async def _try_spawn(
        self, source: Source, warm: bool, relay: socket.socket, job_fd: int
    ) -> WarmTask | None:
        zygote = await self._ensure_zygote()
        ours, theirs = messages.socket_pair()
        task = WarmTask(ours)
        try:
            try:
                await zygote.send(Spawn(source, warm), (relay.fileno(), theirs.fileno(), job_fd))
            finally:
                theirs.close()
            up = await asyncio.wait_for(task.started(), self._settings.start_timeout_seconds)
        except (OSError, TimeoutError) as error:
            log.warning("runner.spawn_failed", dag_rel_path=source.dag_rel_path, error=repr(error))
            up = False
        if not up:
            task.abandon()
            return None
        self._keep(task)
        return task

    def _keep(self, task: WarmTask) -> None:
        self._tasks[task.pid] = task
        task.on_exit(self._forget)

    def _forget(self, task: WarmTask) -> None:
        self._tasks.pop(task.pid, None)
        self._sweep()
        if (
            self._lost_zygote
        ):  # what is below a killed supervisor becomes an orphan one generation after the other
            for seconds in (0.1, 1.0, 5.0):
                asyncio.get_running_loop().call_later(seconds, self._sweep)

    def _sweep(self) -> None:
        """Kill what tasks have left behind that only this process could adopt, because their zygote is dead."""
        if self._starting.locked():  # a new zygote looks the same; this is done again once it is known
            return
        while leftovers := self._leftovers():
            for pid in leftovers:
                process.kill_and_reap(pid)

    def _leftovers(self) -> list[int]:
        mark = f"AIRFLOW_HOME={self._settings.airflow_home}"
        known = {self._zygote.pid if self._zygote else 0, *self._tasks}
        return [
            pid
            for pid in process.children()
            if pid not in known
            and (process.has_in_environment(pid, mark) or process.name_of(pid).startswith(process.TASK))
        ]

    async def _ensure_zygote(self) -> _Zygote:
        async with self._starting:
            if self._stopped:
                raise RunnerError("the runner is stopped")
            if self._zygote is not None and self._zygote.alive:
                return self._zygote
            zygote = self._zygote = await _Zygote.start(self._settings, self._on_reaped, self._on_lost)
        self._sweep()
        return zygote

    def _on_lost(self) -> None:
        self._lost_zygote = True

    def _on_reaped(self, reaped: Reaped) -> None:
        task = self._tasks.get(reaped.pid)
        if task is not None:
            task.reaped(reaped.status)


class _Zygote:
    """The zygote's process and the socket to it."""

    def __init__(
        self,
        child: asyncio.subprocess.Process,
        control: socket.socket,
        on_reaped: Callable[[Reaped], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._child = child
        self._control = control
        self._on_reaped = on_reaped
        self._on_lost = on_lost
        self._ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self.alive = True
        control.setblocking(False)
        asyncio.get_running_loop().add_reader(control, self._hear)

    @property
    def pid(self) -> int:
        return self._child.pid

    @classmethod
    async def start(
        cls, settings: RunnerSettings, on_reaped: Callable[[Reaped], None], on_lost: Callable[[], None]
    ) -> _Zygote:
        ours, theirs = messages.socket_pair()
        limits = (settings.max_templates, settings.template_memory_bytes, settings.parse_ttl_seconds)
        command = [
            sys.executable,
            "-m",
            "airbridge.edge_worker.runner.zygote",
            str(theirs.fileno()),
            settings.worker_name,
        ]
        with theirs:
            child = await asyncio.create_subprocess_exec(
                *command,
                *map(str, limits),
                env={**settings.environment(), **home.WITHOUT_ORM},
                cwd=settings.airflow_home,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=sys.stderr.fileno(),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        zygote = cls(child, ours, on_reaped, on_lost)
        try:
            ready = await asyncio.wait_for(asyncio.shield(zygote._ready), settings.start_timeout_seconds)
        except (TimeoutError, RunnerError) as error:
            await zygote.stop()
            raise RunnerError(
                f"the zygote did not come up: {error or 'timeout'}; its stderr says more"
            ) from error
        log.info("runner.zygote_ready", pid=child.pid, pss_bytes=ready.pss_bytes)
        return zygote

    async def send(self, message: messages.Message, fds: tuple[int, ...]) -> None:
        """Send a message once the socket takes it."""
        while True:
            try:
                messages.send(self._control, message, fds)
                return
            except BlockingIOError:
                await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """Hang up and wait for the process's end."""
        self._hang_up()
        try:
            await asyncio.wait_for(self._child.wait(), _STOP_SECONDS)
        except TimeoutError:
            self._child.kill()
            await self._child.wait()

    def _hear(self) -> None:
        try:
            message, _fds = messages.receive(self._control)
        except BlockingIOError:
            return
        except OSError:
            message = None
        match message:
            case Ready():
                self._ready.set_result(message)
            case Reaped():
                self._on_reaped(message)
            case Unshared():
                log.info("runner.file_not_shared", path=message.source.dag_rel_path, hazards=message.hazards)
            case None:
                self._hang_up()
                self._on_lost()
                log.warning("runner.zygote_lost", pid=self._child.pid)

    def _hang_up(self) -> None:
        self.alive = False
        if self._control.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._control)
            self._control.close()
        if not self._ready.done():
            self._ready.set_exception(RunnerError("it ended while it was starting"))


def _source(spec: TaskSpec) -> Source:
    bundle = spec.grant.bundle
    return Source(bundle.name, bundle.version, str(spec.bundle_path), spec.grant.dag_rel_path)


def _job(spec: TaskSpec, kill_grace_seconds: float) -> Job:
    return Job(
        item_id=str(spec.item_id),
        epoch=spec.epoch,
        ti=spec.grant.ti,
        ti_context=spec.grant.ti_context,
        start_date=spec.grant.start_date,
        source=_source(spec),
        log_file=str(spec.log_file),
        kill_grace_seconds=kill_grace_seconds,
    )
