"""A supervisor's process: it supervises tasks, one after the other, and runs no code of theirs."""

from __future__ import annotations

import gc
import os
import signal
import socket
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any, Final, NoReturn

from msgspec.structs import replace

from airbridge.edge_worker import _airflow
from airbridge.edge_worker.runner import messages, process
from airbridge.edge_worker.runner.messages import Ended, Free, Go, Job, Running, Started, Take
from airbridge.edge_worker.runner.proxy_connection import ProxyConnection
from airbridge.edge_worker.runner.sandbox.sandbox import Sandbox
from airbridge.edge_worker.runner.task_handle import NotForkedError, TaskHandle

# Descriptors that come with a `Take`.
_TAKEN: Final = 5

# Of the reason why a supervisor failed: a message has at most 64 KiB.
_DETAIL_CHARACTERS: Final = 2000


def fork(sandbox: Sandbox, in_child: Callable[[], None]) -> tuple[int, socket.socket]:
    """Fork a supervisor from the zygote; return its process id and the socket to it.

    `in_child` closes what is the zygote's.
    """
    ours, theirs = messages.socket_pair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        _become(theirs, sandbox, in_child)
    theirs.close()
    return pid, ours


def _become(zygote: socket.socket, sandbox: Sandbox, in_child: Callable[[], None]) -> NoReturn:
    """Supervise tasks until the zygote hangs up; never return into the zygote's loop."""
    code = 1
    try:
        in_child()
        # The zygote has disabled it for the sake of its shared pages.
        gc.enable()
        process.name_self(process.SUPERVISOR, "airbridge supervisor")
        sandbox.restrict_supervisor()
        forget = _airflow.secrets_reset()
        while _serve(zygote):
            forget()
        code = 0
    except BaseException:  # noqa: BLE001 - the outer edge of the process
        traceback.print_exc()
    finally:
        os._exit(code)


def _serve(zygote: socket.socket) -> bool:
    """Supervise the next task; False once the zygote has hung up."""
    message, fds = messages.receive_or_eof(zygote, _TAKEN)
    if isinstance(message, Take):
        _supervise(message, fds, zygote)
        try:
            messages.send(zygote, Free())
        except OSError:
            return False
    return message is not None


def _supervise(take: Take, fds: list[int], zygote: socket.socket) -> None:
    """Supervise one task. If it cannot be forked, or is not wanted any more, the status socket ends without a message."""
    proxy_fd, status_fd, job_fd, log_fd, handle_fd = fds
    with ExitStack() as held:
        status = held.enter_context(socket.socket(fileno=status_fd))
        proxy_socket = held.enter_context(socket.socket(fileno=proxy_fd))
        handle = TaskHandle(held.enter_context(socket.socket(fileno=handle_fd)), zygote, take.template)
        log_file = held.enter_context(os.fdopen(log_fd, "ab"))
        held.callback(os.close, job_fd)
        # Read by position: the task reads the same memfd.
        job = messages.read_job(job_fd)
        process.limit_own_memory(job.supervisor_memory)
        process.name_self(process.SUPERVISOR, f"airbridge supervisor {job.ti.get('id')}")
        note = _airflow.FailureNote()
        log = _airflow.task_log(log_file, note)
        passed: list[int] = []
        if job.triggers:
            # The host's own: its calls must not wait for one another. Nothing ever comes over what takes its place here.
            passed = [proxy_socket.fileno()]
            silent, other_end = socket.socketpair()
            held.enter_context(other_end)
            proxy = ProxyConnection(held.enter_context(silent))
        else:
            proxy = ProxyConnection(proxy_socket)
        try:
            task = _airflow.start_task(
                job,
                proxy,
                log,
                lambda fds, requests: handle.fork([*fds, *passed, job_fd], requests, status),
            )
        except NotForkedError:
            return
        if job.triggers:
            # With its host's end the agent sees the end of the socket.
            proxy_socket.close()
        held.callback(task.remote.close)
        held.callback(task.selector.close)
        with suppress(OSError):  # it is gone, and its templates with it once their tasks are over
            messages.send(zygote, Running(task.pid))
        if handle.ended:
            return
        started = Started(os.getpid(), take.warm, take.template, task.pid)
        if _start_confirmed(status, started, task.remote.fileno()):
            ended = replace(_run(job, task, proxy, log), exception=note.exception, used=handle.used)
            proxy.close()
            _report(status, ended)


def _report(status: socket.socket, ended: Ended) -> None:
    """Report the task's end to the agent."""
    with suppress(OSError):
        # What a supervisor fails of may quote the task's own values, of any length.
        messages.send(status, replace(ended, detail=ended.detail[:_DETAIL_CHARACTERS]))
        # Until its end comes, the agent may still kill this process for that task.
        messages.receive(status)


def _start_confirmed(status: socket.socket, started: Started, pidfd: int) -> bool:
    """Report the task ready, and return whether the agent confirms the start: it may have sent the spawn again since."""
    try:
        messages.send(status, started, (pidfd,))
        answer, _fds = messages.receive(status)
    except OSError:
        return False
    return isinstance(answer, Go)


def _run(job: Job, task: _airflow.SupervisedTask, proxy: ProxyConnection, log: Any) -> Ended:
    oom_kills = process.oom_kills()
    task.begin()
    try:
        task.wait()
    except Exception as error:  # noqa: BLE001 - the outer edge: the task must end and be reported
        return _give_up(job, task, proxy, log, error)
    return _result(task, proxy, log, process.oom_kills() - oom_kills)


def _result(task: _airflow.SupervisedTask, proxy: ProxyConnection, log: Any, oom_kills: int) -> Ended:
    if proxy.ended is not None:
        return Ended(1, f"stopped: {proxy.ended.cancel}: {proxy.ended.detail}")
    if task.killed_by is None:
        return Ended(0)
    detail = f"the task was killed by signal {task.killed_by} ({_name(task.killed_by)})"
    if task.killed_by == signal.SIGKILL and oom_kills:
        detail += f"; the kernel killed {oom_kills} process(es) when memory ran out while it ran"
        log.critical(
            "The kernel killed processes when memory ran out while the task ran", oom_kills=oom_kills
        )
    return Ended(0, detail)


def _name(number: int) -> str:
    known = {each.value: each.name for each in signal.Signals}
    return known.get(number, f"SIGRTMIN+{number - signal.SIGRTMIN}")


def _give_up(
    job: Job, task: _airflow.SupervisedTask, proxy: ProxyConnection, log: Any, error: Exception
) -> Ended:
    """End the task of a supervisor that failed, and report it as failed if that can still be done."""
    task.remote.send_signal(signal.SIGKILL)
    with suppress(OSError):  # it may be the log that cannot be written
        log.error("The supervisor failed", exc_info=error)
    try:
        _airflow.report_failed(job, proxy)
    except Exception as second:  # noqa: BLE001 - the outer edge: what cannot be reported is left to the agent
        return Ended(1, f"the supervisor failed: {error!r}; reporting that failed as well: {second!r}")
    return Ended(0, f"the supervisor failed: {error!r}")
