"""The life of one supervisor, from its fork to its last word."""

from __future__ import annotations

import gc
import os
import signal
import socket
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from airbridge.edge_worker import _airflow
from airbridge.edge_worker.runner import messages, process
from airbridge.edge_worker.runner.link import Link
from airbridge.edge_worker.runner.messages import Ended, Go, Job, Started
from airbridge.edge_worker.runner.walls import Walls


@dataclass(frozen=True)
class _Channels:
    """What a supervisor holds and its task must not."""

    relay: socket.socket
    status: socket.socket
    log_file: BinaryIO

    def close(self) -> None:
        """Let go of all of them."""
        for held in (self.relay, self.status, self.log_file):
            held.close()


def fork(
    fds: list[int], parsed: _airflow.ParsedFile | None, walls: Walls, in_child: Callable[[], None]
) -> int:
    """Fork a supervisor and return its process id. `fds` (relay, status, job, log) are closed here in any case.

    `in_child` lets go of what belongs to the process that forks.
    """
    pid = os.fork()
    if pid == 0:
        _become(fds, parsed, walls, in_child)
    for fd in fds:
        os.close(fd)
    return pid


def _become(
    fds: list[int], parsed: _airflow.ParsedFile | None, walls: Walls, in_child: Callable[[], None]
) -> NoReturn:
    """Be a supervisor until the task has ended; never return into the forking process's loop."""
    code = 1
    try:
        in_child()
        process.ignore_stop_signals()
        gc.enable()
        process.adopt_orphans()
        relay_fd, status_fd, job_fd, log_fd = fds
        job = messages.read_job(job_fd)
        process.name_self(process.SUPERVISOR, f"airbridge supervisor {job.ti.get('id')}")
        walls.around_supervisor(job.source, Path(job.room))
        with os.fdopen(log_fd, "ab") as log_file:
            channels = _Channels(socket.socket(fileno=relay_fd), socket.socket(fileno=status_fd), log_file)
            code = _supervise(job, channels, parsed, walls)
    except BaseException:  # noqa: BLE001 - the outer edge of the process
        traceback.print_exc()
    finally:
        os._exit(code)


def _supervise(job: Job, channels: _Channels, parsed: _airflow.ParsedFile | None, walls: Walls) -> int:
    if not _told_to_go(channels.status, warm=parsed is not None):
        return 1
    link = Link(channels.relay)
    log = _airflow.task_log(channels.log_file)

    def in_task() -> None:
        channels.close()
        walls.around_task(Path(job.room))

    try:
        ended = _run(job, link, log, parsed, in_task)
    except Exception as error:  # noqa: BLE001 - the outer edge: the task has to end, and somebody has to hear of it
        ended = _give_up(job, link, log, error)
    _kill_leftovers()
    with suppress(OSError):
        messages.send(channels.status, ended)
    return ended.code


def _told_to_go(status: socket.socket, *, warm: bool) -> bool:
    """Report for duty, and return whether the agent still wants the task: it may have asked another since."""
    try:
        messages.send(status, Started(os.getpid(), warm))
        answer, _fds = messages.receive(status)
    except OSError:
        return False
    return isinstance(answer, Go)


def _run(
    job: Job,
    link: Link,
    log: Any,
    parsed: _airflow.ParsedFile | None,
    in_task: Callable[[], None],
) -> Ended:
    oom_kills = process.oom_kills()
    parent = os.getpid()

    def in_child() -> None:
        os.setsid()
        process.die_with(parent)
        process.offer_to_oom_killer()
        process.reseed()
        in_task()

    task = _airflow.start_task(job, parsed, link, log, in_child)
    task.wait()
    return _last_word(task, link, log, process.oom_kills() - oom_kills)


def _last_word(task: _airflow.SupervisedTask, link: Link, log: Any, oom_kills: int) -> Ended:
    if link.ended is not None:
        return Ended(1, f"stopped: {link.ended.cancel}: {link.ended.detail}")
    if task.died_of is None:
        return Ended(0)
    detail = f"the task was killed by signal {task.died_of.value} ({task.died_of.name})"
    if task.died_of == signal.SIGKILL and oom_kills:
        detail += f"; the kernel killed {oom_kills} process(es) for want of memory while it ran"
        log.critical("The kernel killed processes for want of memory while the task ran", oom_kills=oom_kills)
    return Ended(0, detail)


def _give_up(job: Job, link: Link, log: Any, error: Exception) -> Ended:
    """End the task of a supervisor that failed, and report it as failed if that can still be done."""
    log.error("The supervisor failed", exc_info=error)
    _kill_leftovers()
    try:
        _airflow.report_failed(job, link)
    except Exception as second:  # noqa: BLE001 - the outer edge: what cannot be reported is left to the agent
        return Ended(1, f"the supervisor failed: {error!r}; reporting that failed as well: {second!r}")
    return Ended(0, f"the supervisor failed: {error!r}")


def _kill_leftovers() -> None:
    """Kill what the task has left running: every descendant, since orphans of the task are this process's children."""
    while process.has_children():
        process.kill_descendants()
        with suppress(ChildProcessError):
            os.waitpid(-1, 0)
