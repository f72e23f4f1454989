"""A template: a process that tasks of one DAG file are forked from, with the file parsed if that can be shared."""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

import structlog

from airbridge.edge_worker import _airflow
from airbridge.edge_worker.runner import messages, process
from airbridge.edge_worker.runner.event_loop import ChildSignals, Waitable, wait_readable
from airbridge.edge_worker.runner.forking import fork_safety, huge_pages
from airbridge.edge_worker.runner.messages import (
    Exited,
    Expect,
    Fork,
    Forked,
    Parse,
    Parsed,
    ProcessLimits,
    Source,
)
from airbridge.edge_worker.runner.sandbox.sandbox import Sandbox

_PRINTED_BYTES: Final = 64 * 1024

# Descriptors that come with a `Fork`.
_FORKED_WITH: Final = 6


def run(
    source: Source, control: socket.socket, sandbox: Sandbox, admission: socket.socket, *, parse: bool
) -> None:
    """Enter the sandbox, parse the file if wanted, report to the zygote, and fork tasks until it hangs up.

    It parses once the agent has sent `Parse` over `admission`.
    """
    process.name_self(process.TEMPLATE, f"airbridge template {source.dag_rel_path}")
    process.adopt_orphans()
    shared = huge_pages.private_memory()
    with admission:
        limits = _admitted(admission) if parse else ProcessLimits()
    if limits is None:
        messages.send(control, Parsed(violations=("has no place to be parsed ahead of its tasks",)))
        return
    sandbox = sandbox.with_view(source).with_visible_paths()
    sandbox.restrict_template(source)
    parsed = None
    if parse:
        process.prefer_for_oom_kill()
        process.limit_own_memory(limits.memory)
        parsed, found = _parse(source)
        process.limit_own_memory(0)  # tasks have limits of their own
        if found:
            messages.send(control, Parsed(violations=tuple(found)))
            return
        sandbox = sandbox.after_parse()
        # What the parse left as garbage would be collected in every task, and its pages copied.
        gc.collect()
        gc.freeze()
        huge_pages.collapse(shared)
    messages.send(control, Parsed(pss_bytes=process.pss_bytes()))
    Template(control, parsed, sandbox).serve()


def _admitted(admission: socket.socket) -> ProcessLimits | None:
    message, _fds = messages.receive_or_eof(admission)
    return message.limits if isinstance(message, Parse) else None


def _parse(source: Source) -> tuple[_airflow.ParsedFile, list[str]]:
    """Parse, and keep what the file logs and prints for the logs of its tasks."""
    _airflow.LOG_CHANNEL.buffer(True)
    with (
        _output_logged(),
        fork_safety.watching(Path(source.bundle_path), source.environment) as watch,
        _airflow.parsing_ahead(watch.add),
    ):
        parsed = _airflow.parse(source)
    _airflow.LOG_CHANNEL.buffer(False)
    for error in parsed.errors.values():
        watch.add(f"cannot be imported: {error.strip().splitlines()[-1]}")
    return parsed, watch.violations


@contextmanager
def _output_logged() -> Iterator[None]:
    channels = {"stdout": 1, "stderr": 2}
    saved = {name: os.dup(fd) for name, fd in channels.items()}
    caught = {name: os.memfd_create(name, os.MFD_CLOEXEC) for name in channels}
    _flush()
    for name, fd in channels.items():
        os.dup2(caught[name], fd, inheritable=True)
    try:
        yield
    finally:
        _flush()
        for name, fd in channels.items():
            os.dup2(saved[name], fd, inheritable=True)
            os.close(saved[name])
            with os.fdopen(caught[name], errors="replace") as file:
                file.seek(0)
                _airflow.log_output(name, file.read(_PRINTED_BYTES).splitlines())


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


@dataclass
class _TaskHandle:
    """Socket to one supervisor; `task` is 0 until it is forked."""

    sock: socket.socket
    task: int = 0

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self.sock.fileno()


class Template:
    """Forks tasks for their supervisors and is their parent: it sends their exit status, and kills what they leave running."""

    def __init__(self, control: socket.socket, parsed: _airflow.ParsedFile | None, sandbox: Sandbox) -> None:
        self._control = control
        self._parsed = parsed
        self._sandbox = sandbox
        self._child_signals = ChildSignals()
        self._handles: list[_TaskHandle] = []
        self._tasks: dict[int, _TaskHandle] = {}
        self._hung_up = False

    def serve(self) -> None:
        """Serve until the zygote has hung up and the last task has ended."""
        while not self._hung_up or self._handles or self._tasks:
            sources: list[Waitable] = [self._child_signals, *self._handles]
            if not self._hung_up:
                sources.append(self._control)
            readable = wait_readable(sources)
            if self._child_signals in readable:
                self._child_signals.drain()
                self._reap()
            for handle in [source for source in readable if isinstance(source, _TaskHandle)]:
                if handle in self._handles:
                    self._handle_supervisor(handle)
            if self._control in readable:
                self._handle_zygote()

    def _handle_zygote(self) -> None:
        message, fds = messages.receive_or_eof(self._control, 1)
        if isinstance(message, Expect):
            self._handles.append(_TaskHandle(socket.socket(fileno=fds[0])))
        else:
            self._hung_up = True

    def _handle_supervisor(self, handle: _TaskHandle) -> None:
        """Fork the task, or kill it: its supervisor is gone or has closed the handle."""
        message, fds = messages.receive_or_eof(handle.sock, _FORKED_WITH)
        if isinstance(message, Fork) and not handle.task and self._fork(handle, fds):
            with suppress(OSError):
                messages.send(handle.sock, Forked(handle.task))
            return
        self._handles.remove(handle)
        handle.sock.close()
        if handle.task:
            os.kill(handle.task, signal.SIGKILL)  # not reaped yet, so it is still that process

    def _reap(self) -> None:
        """Send the exit status of tasks that have ended, once what they left running is killed."""
        ended = process.reap()
        handles = [(self._tasks.pop(pid, None), Exited(status, used)) for pid, status, used in ended]
        # A task adopts the orphans beneath it, so any other child of this process was left by a task that has ended.
        for pid in process.children():
            if pid not in self._tasks:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for handle, exited in handles:
            if handle is not None and handle in self._handles:
                with suppress(OSError):
                    messages.send(handle.sock, exited)
                self._handles.remove(handle)
                handle.sock.close()

    def _fork(self, handle: _TaskHandle, fds: list[int]) -> bool:
        """Fork the task; False if the system has no process left."""
        try:
            handle.task = os.fork()
        except OSError as error:
            structlog.get_logger().warning("runner.task_not_forked", error=str(error))
            return False
        else:
            if handle.task == 0:
                self._run_as_task(fds)
            self._tasks[handle.task] = handle
            return True
        finally:
            for fd in fds:
                os.close(fd)

    def _run_as_task(self, fds: list[int]) -> NoReturn:
        try:
            self._child_signals.close()
            self._control.close()
            for handle in self._handles:
                handle.sock.close()
            gc.enable()
            *sockets, job_fd = fds
            job = messages.read_job(job_fd)
            os.close(job_fd)

            def enter_sandbox() -> None:
                os.setsid()
                process.adopt_orphans()
                process.prefer_for_oom_kill()
                process.reseed()
                process.limit_self(job.limits)
                self._sandbox.restrict_task(job.source, Path(job.working_dir))

            _airflow.run_as_task(sockets, job, self._parsed, enter_sandbox)
        finally:
            os._exit(1)
