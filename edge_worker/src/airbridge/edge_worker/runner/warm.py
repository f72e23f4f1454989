"""The runner: asks the zygote for tasks, starts another when it dies, and sees that nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from airbridge.edge_worker.exceptions import RunnerError
from airbridge.edge_worker.runner import home, messages, process
from airbridge.edge_worker.runner.messages import Job, Reaped, Source, Spawn
from airbridge.edge_worker.runner.nursery import Nursery
from airbridge.edge_worker.runner.running import WarmTask
from airbridge.edge_worker.runner.settings import RunnerSettings
from airbridge.edge_worker.task import TaskSpec

_APPEND: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW

_ATTEMPTS: Final = 3
"""How often a spawn is asked for; a template or zygote that dies takes along what was on its way to it."""

log = structlog.get_logger()


class WarmRunner:
    """Runs tasks from processes that have Airflow loaded and DAG files parsed; see the package's docstring."""

    def __init__(self, settings: RunnerSettings) -> None:
        self._settings = settings
        self._tasks: dict[int, WarmTask] = {}
        self._zygote: Nursery | None = None
        self._starting = asyncio.Lock()
        self._stopped = False
        self._lost_zygote = False

    @property
    def zygote_pid(self) -> int | None:
        """The zygote's process id while there is one."""
        return self._zygote.pid if self._zygote and self._zygote.alive else None

    async def start(self) -> None:
        """Start the zygote and wait until it has loaded Airflow. Raises `RunnerError`."""
        home.prepare(self._settings.airflow_home, shared=self._settings.task_user is not None)
        self._prepare_rooms()
        process.adopt_orphans()
        await self._ensure_zygote()

    async def spawn(self, spec: TaskSpec, relay: socket.socket) -> WarmTask:
        """Start the task; see `airbridge.edge_worker.task.Runner`."""
        room = job_fd = log_fd = None
        try:
            log_fd = os.open(spec.log_file, _APPEND, 0o600)
            room = self._make_room(_source(spec))
            job_fd = messages.write_job(_job(spec, room, self._settings.kill_grace_seconds))
            for _attempt in range(_ATTEMPTS):
                task = await self._try_spawn(_source(spec), spec.warm, (relay.fileno(), job_fd, log_fd))
                if task is not None:
                    task.on_exit(partial(self._clear_away, room))
                    room = None
                    return task
        except OSError as error:
            raise RunnerError(f"work item {spec.item_id} has no place to run in: {error}") from error
        finally:
            for fd in (job_fd, log_fd):
                if fd is not None:
                    os.close(fd)
            relay.close()
            if room is not None:
                self._clear_away(room)
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
        await asyncio.to_thread(shutil.rmtree, self._settings.tasks_dir, ignore_errors=True)

    async def _try_spawn(self, source: Source, warm: bool, fds: tuple[int, int, int]) -> WarmTask | None:
        relay_fd, job_fd, log_fd = fds
        zygote = await self._ensure_zygote()
        ours, theirs = messages.socket_pair()
        task = WarmTask(ours)
        try:
            with theirs:
                await zygote.send(Spawn(source, warm), (relay_fd, theirs.fileno(), job_fd, log_fd))
            if await asyncio.wait_for(task.started(), self._settings.start_timeout_seconds):
                self._keep(task)
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

    def _prepare_rooms(self) -> None:
        """Make the folder of working directories anew: what an earlier process left there is nobody's."""
        folder, user = self._settings.tasks_dir, self._settings.task_user
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700 if user is None else 0o711, parents=True, exist_ok=True)

    def _make_room(self, source: Source) -> Path:
        room, shared = self._settings.walls.make_room(source)
        if self._settings.task_user is not None:
            self._settings.task_user.give(room, shared)
        return room

    def _clear_away(self, room: Path, _task: WarmTask | None = None) -> None:
        asyncio.get_running_loop().run_in_executor(None, partial(shutil.rmtree, room, ignore_errors=True))

    def _keep(self, task: WarmTask) -> None:
        self._tasks[task.pid] = task
        task.on_exit(self._forget)

    def _forget(self, task: WarmTask) -> None:
        if self._tasks.get(task.pid) is task:  # the supervisor may have the next already
            del self._tasks[task.pid]
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
        known |= {task.template_pid for task in self._tasks.values()}
        return [
            pid
            for pid in process.children()
            if pid not in known and (process.has_in_environment(pid, mark) or process.is_the_runners(pid))
        ]

    async def _ensure_zygote(self) -> Nursery:
        async with self._starting:
            if self._stopped:
                raise RunnerError("the runner is stopped")
            if self._zygote is not None and self._zygote.alive:
                return self._zygote
            zygote = self._zygote = await Nursery.start(self._settings, self._on_reaped, self._on_lost)
        self._sweep()
        return zygote

    def _on_lost(self) -> None:
        self._lost_zygote = True

    def _on_reaped(self, reaped: Reaped) -> None:
        task = self._tasks.get(reaped.pid)
        if task is not None:
            task.reaped(reaped.status)


def _source(spec: TaskSpec) -> Source:
    bundle = spec.grant.bundle
    return Source(bundle.name, bundle.version, str(spec.bundle_path), spec.grant.dag_rel_path)


def _job(spec: TaskSpec, room: Path, kill_grace_seconds: float) -> Job:
    return Job(
        item_id=str(spec.item_id),
        epoch=spec.epoch,
        ti=spec.grant.ti,
        ti_context=spec.grant.ti_context,
        start_date=spec.grant.start_date,
        source=_source(spec),
        room=str(room),
        kill_grace_seconds=kill_grace_seconds,
    )
