"""A supervisor's process: it sees tasks through, one after the other, and runs no code of theirs."""

from __future__ import annotations

import gc
import os
import signal
import socket
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any, Final, NoReturn

from airbridge.edge_worker import _airflow
from airbridge.edge_worker.runner import messages, process
from airbridge.edge_worker.runner.leash import Leash, NotForkedError
from airbridge.edge_worker.runner.link import Link
from airbridge.edge_worker.runner.messages import Ended, Free, Go, Job, Running, Started, Take
from airbridge.edge_worker.runner.walls import Walls

_TAKEN: Final = 5
"""How many descriptors come with a `Take`."""


def fork(walls: Walls, in_child: Callable[[], None]) -> tuple[int, socket.socket]:
    """Fork a supervisor from the zygote; return its process id and the socket to it.

    `in_child` lets go of what is the zygote's.
    """
    ours, theirs = messages.socket_pair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        _become(theirs, walls, in_child)
    theirs.close()
    return pid, ours


def _become(zygote: socket.socket, walls: Walls, in_child: Callable[[], None]) -> NoReturn:
    """Be a supervisor until the zygote hangs up; never return into the zygote's loop."""
    code = 1
    try:
        in_child()
        gc.enable()
        process.name_self(process.SUPERVISOR, "airbridge supervisor")
        walls.around_supervisor()
        forget = _airflow.forgetting()
        while _serve(zygote):
            forget()
        code = 0
    except BaseException:  # noqa: BLE001 - the outer edge of the process
        traceback.print_exc()
    finally:
        os._exit(code)


def _serve(zygote: socket.socket) -> bool:
    """See the next task through; False once the zygote has hung up."""
    message, fds = messages.hear(zygote, _TAKEN)
    if isinstance(message, Take):
        _see_through(message, fds, zygote)
        try:
            messages.send(zygote, Free())
        except OSError:
            return False
    return message is not None


def _see_through(take: Take, fds: list[int], zygote: socket.socket) -> None:
    """Supervise one task. If it cannot be forked, or is not wanted any more, the status socket ends without a word."""
    relay_fd, status_fd, job_fd, log_fd, leash_fd = fds
    with ExitStack() as held:
        status = held.enter_context(socket.socket(fileno=status_fd))
        link = Link(held.enter_context(socket.socket(fileno=relay_fd)))
        leash = Leash(held.enter_context(socket.socket(fileno=leash_fd)), zygote, take.template)
        log_file = held.enter_context(os.fdopen(log_fd, "ab"))
        held.callback(os.close, job_fd)
        job = messages.read_job(job_fd)
        process.name_self(process.SUPERVISOR, f"airbridge supervisor {job.ti.get('id')}")
        log = _airflow.task_log(log_file)
        try:
            task = _airflow.start_task(job, link, log, lambda fds: leash.fork([*fds, job_fd], status))
        except NotForkedError:
            return
        held.callback(task.ward.close)
        held.callback(task.selector.close)
        with suppress(OSError):  # it is gone, and its templates with it once their tasks are over
            messages.send(zygote, Running(task.pid))
        if leash.ended:
            return
        if _told_to_go(status, Started(os.getpid(), take.warm, take.template)):
            ended = _run(job, task, link, log)
            link.close()
            with suppress(OSError):
                messages.send(status, ended)
                # Until its end comes, the agent may still kill this process for that task.
                messages.receive(status)


def _told_to_go(status: socket.socket, started: Started) -> bool:
    """Report the task ready, and return whether the agent still wants it: it may have asked another since."""
    try:
        messages.send(status, started)
        answer, _fds = messages.receive(status)
    except OSError:
        return False
    return isinstance(answer, Go)


def _run(job: Job, task: _airflow.SupervisedTask, link: Link, log: Any) -> Ended:
    oom_kills = process.oom_kills()
    task.begin()
    try:
        task.wait()
    except Exception as error:  # noqa: BLE001 - the outer edge: the task has to end, and somebody has to hear of it
        return _give_up(job, task, link, log, error)
    return _last_word(task, link, log, process.oom_kills() - oom_kills)


def _last_word(task: _airflow.SupervisedTask, link: Link, log: Any, oom_kills: int) -> Ended:
    if link.ended is not None:
        return Ended(1, f"stopped: {link.ended.cancel}: {link.ended.detail}")
    if task.died_of is None:
        return Ended(0)
    detail = f"the task was killed by signal {task.died_of} ({_name(task.died_of)})"
    if task.died_of == signal.SIGKILL and oom_kills:
        detail += f"; the kernel killed {oom_kills} process(es) for want of memory while it ran"
        log.critical("The kernel killed processes for want of memory while the task ran", oom_kills=oom_kills)
    return Ended(0, detail)


def _name(number: int) -> str:
    known = {each.value: each.name for each in signal.Signals}
    return known.get(number, f"SIGRTMIN+{number - signal.SIGRTMIN}")


def _give_up(job: Job, task: _airflow.SupervisedTask, link: Link, log: Any, error: Exception) -> Ended:
    """End the task of a supervisor that failed, and report it as failed if that can still be done."""
    task.ward.send_signal(signal.SIGKILL)
    with suppress(OSError):  # it may be the log that cannot be written
        log.error("The supervisor failed", exc_info=error)
    try:
        _airflow.report_failed(job, link)
    except Exception as second:  # noqa: BLE001 - the outer edge: what cannot be reported is left to the agent
        return Ended(1, f"the supervisor failed: {error!r}; reporting that failed as well: {second!r}")
    return Ended(0, f"the supervisor failed: {error!r}")
