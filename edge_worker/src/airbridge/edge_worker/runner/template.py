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
from airbridge.edge_worker.runner import hazards, messages, process
from airbridge.edge_worker.runner.loop import ChildSignals, Waitable, wait_readable
from airbridge.edge_worker.runner.messages import Exited, Expect, Fork, Forked, Parsed, Source
from airbridge.edge_worker.runner.walls import Walls

_PRINTED_BYTES: Final = 64 * 1024

_REASON_CHARACTERS: Final = 500
"""How much of an import error is told as the reason why a file is not shared; all of it is in its tasks' logs."""

_FORKED_WITH: Final = 5
"""How many descriptors come with a `Fork`."""


def run(source: Source, control: socket.socket, walls: Walls, *, parse: bool) -> None:
    """Wall this process in, parse the file if wanted, tell the zygote, and fork tasks until it hangs up."""
    process.name_self(process.TEMPLATE, f"airbridge template {source.dag_rel_path}")
    process.adopt_orphans()
    walls = walls.surveyed()
    walls.around_template(source)
    parsed = None
    if parse:
        parsed, found = _parse(source)
        if found:
            messages.send(control, Parsed(hazards=tuple(found)))
            return
        walls = walls.after_parse()
        gc.collect()
        gc.freeze()
    messages.send(control, Parsed(pss_bytes=process.pss_bytes()))
    Template(control, parsed, walls).serve()


def _parse(source: Source) -> tuple[_airflow.ParsedFile, list[str]]:
    """Parse, and keep what the file logs and prints for the logs of its tasks."""
    _airflow.LOG_CHANNEL.keep(True)
    with (
        _printed_is_logged(),
        hazards.watching(Path(source.bundle_path)) as watch,
        _airflow.parsing_ahead(watch.note),
    ):
        parsed = _airflow.parse(source)
    _airflow.LOG_CHANNEL.keep(False)
    for error in parsed.errors.values():
        reason = f"cannot be imported: {error.strip().splitlines()[-1]}"
        watch.note(reason[:_REASON_CHARACTERS])
    return parsed, watch.hazards


@contextmanager
def _printed_is_logged() -> Iterator[None]:
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
class _Leash:
    """The socket to one supervisor; `task` is 0 until it has asked for it."""

    sock: socket.socket
    task: int = 0

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self.sock.fileno()


class Template:
    """Forks tasks on their supervisors' word, and is their parent: it tells how they ended, and kills what they leave.

    A task adopts the orphans beneath it, so what turns up among this process's children besides tasks was left by one that has
    ended.
    """

    def __init__(self, control: socket.socket, parsed: _airflow.ParsedFile | None, walls: Walls) -> None:
        self._control = control
        self._parsed = parsed
        self._walls = walls
        self._child_signals = ChildSignals()
        self._leashes: list[_Leash] = []
        self._tasks: dict[int, _Leash] = {}
        self._hung_up = False

    def serve(self) -> None:
        """Serve until the zygote has hung up and the last task has ended."""
        while not self._hung_up or self._leashes or self._tasks:
            sources: list[Waitable] = [self._child_signals, *self._leashes]
            if not self._hung_up:
                sources.append(self._control)
            readable = wait_readable(sources)
            if self._child_signals in readable:
                self._child_signals.drain()
                self._reap()
            for leash in [source for source in readable if isinstance(source, _Leash)]:
                if leash in self._leashes:
                    self._hear(leash)
            if self._control in readable:
                self._hear_zygote()

    def _hear_zygote(self) -> None:
        message, fds = messages.hear(self._control, 1)
        if isinstance(message, Expect):
            self._leashes.append(_Leash(socket.socket(fileno=fds[0])))
        else:
            self._hung_up = True

    def _hear(self, leash: _Leash) -> None:
        """Fork the task, or kill it: its supervisor is gone, or wants it no more."""
        message, fds = messages.hear(leash.sock, _FORKED_WITH)
        if isinstance(message, Fork) and not leash.task and self._fork(leash, fds):
            with suppress(OSError):
                messages.send(leash.sock, Forked(leash.task))
            return
        self._leashes.remove(leash)
        leash.sock.close()
        if leash.task:
            os.kill(leash.task, signal.SIGKILL)  # not reaped yet, so it is still that process

    def _reap(self) -> None:
        """Take note of tasks that have ended, once what they left running is killed."""
        ended = process.reap()
        leashes = [(self._tasks.pop(pid, None), status) for pid, status in ended]
        for pid in process.children():
            if pid not in self._tasks:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for leash, status in leashes:
            if leash is not None and leash in self._leashes:
                with suppress(OSError):
                    messages.send(leash.sock, Exited(status))
                self._leashes.remove(leash)
                leash.sock.close()

    def _fork(self, leash: _Leash, fds: list[int]) -> bool:
        """Fork the task; False if there is no process to be had."""
        try:
            leash.task = os.fork()
        except OSError as error:
            structlog.get_logger().warning("runner.task_not_forked", error=str(error))
            return False
        else:
            if leash.task == 0:
                self._be_task(fds)
            self._tasks[leash.task] = leash
            return True
        finally:
            for fd in fds:
                os.close(fd)

    def _be_task(self, fds: list[int]) -> NoReturn:
        try:
            self._child_signals.close()
            self._control.close()
            for leash in self._leashes:
                leash.sock.close()
            gc.enable()
            *sockets, job_fd = fds
            job = messages.read_job(job_fd)
            os.close(job_fd)

            def wall_in() -> None:
                os.setsid()
                process.adopt_orphans()
                process.offer_to_oom_killer()
                process.reseed()
                self._walls.around_task(job.source, Path(job.room))

            _airflow.be_task(sockets, job, self._parsed, wall_in)
        finally:
            os._exit(1)
