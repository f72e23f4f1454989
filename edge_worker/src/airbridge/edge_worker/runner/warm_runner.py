"""The runner: spawns tasks through the zygote, replaces it when it dies, and kills what it leaves behind."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from airbridge.core.sandbox import trees
from airbridge.core.task_options import Options
from airbridge.edge_worker.exceptions import RunnerError
from airbridge.edge_worker.runner import airflow_home, messages, process
from airbridge.edge_worker.runner.limits.disk_meter import DiskMeter, Metered
from airbridge.edge_worker.runner.limits.enforcer import Enforcer, Held
from airbridge.edge_worker.runner.messages import Job, Parse, Reaped, Source, Spawn
from airbridge.edge_worker.runner.running_task import WarmTask
from airbridge.edge_worker.runner.sandbox import short_path
from airbridge.edge_worker.runner.settings import NEEDED_FOR_SOCKETS, RunnerSettings, room_for_sockets
from airbridge.edge_worker.runner.zygote_client import ZygoteClient
from airbridge.edge_worker.work.task import HeldBy, TaskSpec

_APPEND: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW

# Attempts of a spawn: a template or zygote that dies loses the spawns sent to it.
_ATTEMPTS: Final = 3

# Seconds for the removal of a working directory. What is left is removed at the next start.
_REMOVAL_SECONDS: Final = 30.0

# Beginning of the names, beside the directory of working directories, of those of earlier processes.
_ASIDE: Final = ".removed-"

log = structlog.get_logger()


class WarmRunner:
    """Runs tasks from processes that have Airflow loaded and DAG files parsed; see the package's docstring."""

    def __init__(self, settings: RunnerSettings) -> None:
        self._settings = settings
        self._tasks: dict[int, WarmTask] = {}
        self._zygote: ZygoteClient | None = None
        self._options: Options = {}
        self._variables: dict[str, str] = {}
        self._configuring: asyncio.Task[None] | None = None
        # Zygotes of earlier options, until the last of their tasks has ended.
        self._retired: set[ZygoteClient] = set()
        self._starting = asyncio.Lock()
        self._stopped = False
        self._lost_zygote = False
        self._enforcer = Enforcer(settings.share, settings.cgroups)
        self._metered: dict[WarmTask, Metered] = {}
        self._metering: asyncio.Task[None] | None = None

    @property
    def limits(self) -> HeldBy:
        """See `airbridge.edge_worker.work.task.Runner`."""
        return self._enforcer.held_by

    @property
    def zygote_pid(self) -> int | None:
        """The zygote's process id while there is one."""
        return self._zygote.pid if self._zygote and self._zygote.alive else None

    def configure(self, options: Options, variables: Mapping[str, str]) -> None:
        """See `airbridge.edge_worker.work.task.Runner`. A zygote of other options ends with its last task."""
        if (options, variables) == (self._options, self._variables):
            return
        self._options, self._variables = options, dict(variables)
        if self._zygote is not None and not self._stopped:
            log.info("runner.options_changed", sections=sorted(options))
            # Now, so that the first task need not wait for it.
            self._configuring = asyncio.get_running_loop().create_task(self._reconfigure())

    async def start(self) -> None:
        """Start the zygote and wait until it has loaded Airflow. Raises `RunnerError`."""
        self._reset_tasks_dir()
        self._link_tasks_dir()
        process.adopt_orphans()
        self._limit_tasks()
        self._name_what_tasks_lack()
        await self._ensure_zygote()

    async def spawn(self, spec: TaskSpec, proxy_socket: socket.socket) -> WarmTask:
        """Start the task; see `airbridge.edge_worker.work.task.Runner`."""
        working_dir = job_fd = log_fd = None
        held: Held | None = None
        try:
            held = self._enforcer.hold(f"{spec.item_id}-{spec.epoch}", spec.grant)
            log_fd = os.open(spec.log_file, _APPEND, 0o600)
            source = _source(spec)
            working_dir = self._make_working_dir(source)
            job = _job(spec, source, working_dir, self._settings.kill_grace_seconds, held)
            job_fd = messages.write_job(job)
            for _attempt in range(_ATTEMPTS):
                fds = (proxy_socket.fileno(), job_fd, log_fd)
                task = await self._try_spawn(source, spec.warm, fds, held)
                if task is not None:
                    self._meter(task, working_dir, held)
                    task.on_exit(partial(self._remove_working_dir, working_dir))
                    working_dir = held = None
                    return task
        except OSError as error:
            raise RunnerError(f"work item {spec.item_id} has no place to run in: {error}") from error
        finally:
            for fd in (job_fd, log_fd):
                if fd is not None:
                    os.close(fd)
            proxy_socket.close()
            if working_dir is not None:
                self._remove_working_dir(working_dir)
            if held is not None:
                held.release()
        raise RunnerError(f"no supervisor came up for work item {spec.item_id} in {_ATTEMPTS} attempts")

    async def stop(self) -> None:
        """Kill every running task and end the zygote and its templates."""
        self._stopped = True
        running = list(self._tasks.values())
        if self._metering is not None:
            self._metering.cancel()
        for task in running:
            task.kill()
        if self._configuring is not None:
            await asyncio.gather(self._configuring, return_exceptions=True)
        for zygote in {*self._retired, *([self._zygote] if self._zygote else [])}:
            await zygote.stop()
        await asyncio.gather(*(task.wait() for task in running))
        self._kill_leftovers()
        self._enforcer.close()
        await asyncio.to_thread(trees.discard, self._settings.tasks_dir, seconds=_REMOVAL_SECONDS)
        if self._settings.tasks_link is not None:
            short_path.remove(self._settings.tasks_link)

    async def _try_spawn(
        self, source: Source, warm: bool, fds: tuple[int, int, int], held: Held
    ) -> WarmTask | None:
        zygote = await self._ensure_zygote()
        zygote.users += 1
        task = None
        try:
            task = await self._spawn_from(zygote, source, warm, fds, held)
        finally:
            if task is None:
                self._release(zygote)
            else:
                task.on_exit(partial(self._release, zygote))
        return task

    async def _spawn_from(
        self, zygote: ZygoteClient, source: Source, warm: bool, fds: tuple[int, int, int], held: Held
    ) -> WarmTask | None:
        proxy_fd, job_fd, log_fd = fds
        ours, theirs = messages.socket_pair()
        task = WarmTask(ours, held)
        try:
            with theirs:
                await zygote.send(Spawn(source, warm), (proxy_fd, theirs.fileno(), job_fd, log_fd))
            if await asyncio.wait_for(task.started(), self._settings.start_timeout_seconds):
                self._track(task)
                return task
            why = "it ended before it began"
        except (OSError, TimeoutError) as error:
            why = repr(error)
        except BaseException:
            task.abandon()
            raise
        log.warning("runner.spawn_failed", dag_rel_path=source.dag_rel_path, detail=why)
        task.abandon()
        return None

    def _reset_tasks_dir(self) -> None:
        """Create the directory of working directories anew, without what an earlier process left there.

        That is set aside, and removed while the worker runs: its size is for no task to decide, and no reason not to start.
        """
        folder, user = self._settings.tasks_dir, self._settings.task_user
        with suppress(OSError):  # there is none, or it stays
            folder.rename(folder.with_name(f"{_ASIDE}{secrets.token_hex(8)}"))
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Afterwards: a umask would take from it what the tasks' user needs.
        folder.chmod(0o700 if user is None else 0o711)
        left = [*folder.parent.glob(f"{_ASIDE}*")]
        # A daemon thread: the end of this process does not wait for it.
        threading.Thread(target=_discard_all, args=(left,), name="removal", daemon=True).start()

    def _link_tasks_dir(self) -> None:
        """Give the directory of working directories a short name if sockets have no room beneath its own.

        Also if tasks may write above it: in the link's folder, Landlock keeps one task's from the other's.
        """
        room = room_for_sockets(self._settings.airflow_home)
        if room >= NEEDED_FOR_SOCKETS and not self._settings.beneath_shared:
            return
        link = short_path.make(self._settings.tasks_dir)
        if link is None and room < NEEDED_FOR_SOCKETS:
            log.warning("runner.state_dir_long", room_for_sockets=room, needed=NEEDED_FOR_SOCKETS)
        self._settings = replace(self._settings, tasks_link=link)

    def _limit_tasks(self) -> None:
        """Make ready what holds tasks to their limits, and close to them what it can be changed by."""
        self._enforcer.start()
        self._settings = replace(self._settings, cgroup_mounts=self._enforcer.mounts)
        held_by = self._enforcer.held_by
        log.info("runner.limits", held_by=held_by.name, why_no_cgroup=held_by.why_no_cgroup or None)
        if self._settings.share.limits.disk is not None:
            meter = DiskMeter(self._metered.values)
            self._metering = asyncio.get_running_loop().create_task(meter.run())

    def _meter(self, task: WarmTask, working_dir: Path, held: Held) -> None:
        if held.limits.disk is not None:
            self._metered[task] = Metered(working_dir, held.limits.disk, task.exceed)
            task.on_exit(self._unmeter)

    def _unmeter(self, task: WarmTask) -> None:
        self._metered.pop(task, None)

    def _make_working_dir(self, source: Source) -> Path:
        working_dir, shared = self._settings.sandbox.make_working_dir(source)
        if self._settings.task_user is not None:
            # It stays the agent's: a task that could write to it could exchange a directory before its owner is changed.
            shared.chmod(0o711)
            self._settings.task_user.chown(working_dir)
        return working_dir

    def _remove_working_dir(self, working_dir: Path, _task: WarmTask | None = None) -> None:
        asyncio.get_running_loop().run_in_executor(
            None, partial(trees.discard, working_dir, seconds=_REMOVAL_SECONDS)
        )

    def _track(self, task: WarmTask) -> None:
        self._tasks[task.pid] = task
        task.on_exit(self._untrack)

    def _untrack(self, task: WarmTask) -> None:
        if self._tasks.get(task.pid) is task:  # the supervisor may have the next already
            del self._tasks[task.pid]
        self._kill_leftovers()
        if self._lost_zygote:
            # Processes below a killed supervisor become this process's children one generation after the other.
            for seconds in (0.1, 1.0, 5.0):
                asyncio.get_running_loop().call_later(seconds, self._kill_leftovers)

    def _kill_leftovers(self) -> None:
        """Kill what tasks have left behind that only this process could adopt, because their zygote is dead."""
        if self._starting.locked():  # a new zygote looks the same; this is done again once it is known
            return
        while leftovers := self._leftovers():
            for pid in leftovers:
                process.kill_and_reap(pid)

    def _leftovers(self) -> list[int]:
        mark = f"AIRFLOW_HOME={self._settings.airflow_home}"
        known = {self._zygote.pid if self._zygote else 0, *self._tasks}
        known |= {zygote.pid for zygote in self._retired}
        known |= {task.template_pid for task in self._tasks.values()}
        return [
            pid
            for pid in process.children()
            if pid not in known and (process.has_in_environment(pid, mark) or process.is_runner_process(pid))
        ]

    async def _ensure_zygote(self) -> ZygoteClient:
        async with self._starting:
            if self._stopped:
                raise RunnerError("the runner is stopped")
            current = self._zygote
            settings = self._settings.with_variables(self._variables)
            if current is not None and current.alive and current.began_as == (self._options, settings):
                return current
            airflow_home.prepare(self._settings.airflow_home, self._options, self._settings.task_user)
            if current is not None and current.alive:
                self._retired.add(current)
            zygote = self._zygote = await ZygoteClient.start(
                settings,
                self._options,
                self._on_reaped,
                self._on_lost,
                on_template=self._admit_template,
            )
        await self._end_retired()
        self._kill_leftovers()
        return zygote

    async def _reconfigure(self) -> None:
        try:
            await self._ensure_zygote()
        except RunnerError as error:  # the next spawn tries again
            log.warning("runner.not_reconfigured", detail=str(error))

    def _release(self, zygote: ZygoteClient, _task: WarmTask | None = None) -> None:
        zygote.users -= 1
        if zygote in self._retired and not zygote.users and not self._stopped:
            self._ending = asyncio.get_running_loop().create_task(self._end_retired())

    async def _end_retired(self) -> None:
        """Stop the zygotes of earlier options that no task needs any more."""
        for zygote in [each for each in self._retired if not each.users]:
            await zygote.stop()
            self._retired.discard(zygote)

    def _name_what_tasks_lack(self) -> None:
        """Log the variables of the worker's environment that tasks do not get, and what `task_env` overrides."""
        for name, why in self._settings.not_passed().items():
            log.warning("runner.variable_not_passed", variable=name, why=why)
        if overridden := self._settings.overridden():
            log.warning("runner.task_env_overrides", variables=overridden)

    def _admit_template(self, pid: int, pidfd: int, sock: socket.socket) -> None:
        with sock:
            try:
                limits = self._enforcer.admit_template(pid, pidfd)
                messages.send(sock, Parse(limits), wait=False)
            except OSError as error:  # each task parses the file itself, within its own limits
                log.warning("runner.template_not_limited", pid=pid, detail=str(error))
            finally:
                os.close(pidfd)

    def _on_lost(self) -> None:
        self._lost_zygote = True

    def _on_reaped(self, reaped: Reaped) -> None:
        task = self._tasks.get(reaped.pid)
        if task is not None:
            task.record_wait_status(reaped.status)


def _discard_all(folders: Iterable[Path]) -> None:
    for folder in folders:
        trees.discard(folder)


def _source(spec: TaskSpec) -> Source:
    """Return the DAG file of a task. Raises `OSError` if its code or environment is not there."""
    bundle = spec.grant.bundle
    packages = str(spec.environment) if spec.environment else ""
    source = Source(bundle.name, bundle.version, str(spec.bundle_path), spec.grant.dag_rel_path, packages)
    return source.on_disk()


def _job(spec: TaskSpec, source: Source, working_dir: Path, kill_grace_seconds: float, held: Held) -> Job:
    return Job(
        item_id=str(spec.item_id),
        epoch=spec.epoch,
        ti=spec.grant.ti,
        ti_context=spec.grant.ti_context,
        start_date=spec.grant.start_date,
        source=source,
        working_dir=str(working_dir),
        kill_grace_seconds=kill_grace_seconds,
        limits=held.of_process,
        supervisor_memory=held.of_supervisor,
        triggers=spec.triggers,
    )
