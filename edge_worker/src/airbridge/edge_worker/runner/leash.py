"""A supervisor's hold on its task, which is another process's child."""

from __future__ import annotations

import enum
import os
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import psutil

from airbridge.edge_worker.runner import messages, process
from airbridge.edge_worker.runner.loop import wait_readable
from airbridge.edge_worker.runner.messages import Exited, Fork, Forked, Reaped

_UNHEARD_SECONDS: Final = 30.0
"""How long after a task's end its template, or the zygote, may take to tell how it ended."""

KilledBy = enum.IntEnum("KilledBy", {each.name: -each.value for each in signal.Signals})  # type: ignore[misc] # made of another
"""An exit code that names a signal, as psutil gives it."""

_KILLED_BY: Final = frozenset(map(int, KilledBy))


class NotForkedError(Exception):
    """There is no task: its template has died, has no process to fork, or does not tell the truth; or nobody wants it any more."""


class Leash:
    """The socket to the template, which forks the task, tells how it ended, and kills it when this end is closed.

    If the template dies, the task falls to the zygote, and that tells.
    """

    def __init__(self, sock: socket.socket, zygote: socket.socket, template: int) -> None:
        self._sock = sock
        self.zygote = zygote
        self._template = template
        self.status: int | None = None
        self._task = 0

    def fileno(self) -> int:
        """Return the descriptor, for a selector; negative once the template has nothing more to say."""
        return self._sock.fileno()

    def close(self) -> None:
        """Let go; a task that still runs is killed."""
        self._sock.close()

    def fork(self, fds: Sequence[int], wanted: socket.socket) -> Ward:
        """Have the task forked. `fds`: its ends of requests, stdout, stderr and logs, and its job.

        Raises `NotForkedError`, also if `wanted` ends or says something before the template does: nobody waits any more.
        """
        try:
            messages.send(self._sock, Fork(), tuple(fds))
            if wanted in wait_readable([self._sock, wanted]):
                raise NotForkedError("the task is not wanted any more")
            answer, _fds = messages.receive(self._sock)
        except OSError as error:
            raise NotForkedError(str(error)) from error
        if not isinstance(answer, Forked):
            raise NotForkedError("the template has ended")
        self._task = answer.pid
        return Ward(answer.pid, self, self._template)

    @property
    def ended(self) -> bool:
        """Whether the template has said something since it forked the task: that it has ended, or nothing any more."""
        return bool(wait_readable([self._sock], 0))

    def hear(self) -> bool:
        """Read what the template says: how the task ended, and nothing after it. Always False."""
        message, _fds = messages.hear(self._sock)
        if isinstance(message, Exited):
            self.status = message.status
        return False

    def hear_zygote(self) -> bool:
        """Read what the zygote says. Returns False once it is gone."""
        message, _fds = messages.hear(self.zygote)
        if isinstance(message, Reaped) and message.pid == self._task:
            self.status = message.status
        return message is not None


class Ward:
    """The task's process, with what the Task SDK's supervisor asks of a `psutil.Process`."""

    def __init__(self, pid: int, leash: Leash, template: int) -> None:
        """Raises `NotForkedError` if there is no such process any more, or it is no child of its template.

        What a template says is not to be trusted: a supervisor may signal processes that no DAG file may.
        """
        self.pid = pid
        self.leash = leash
        self._gone_since = 0.0
        try:
            self._pidfd = os.pidfd_open(pid)
        except (OSError, OverflowError) as error:
            raise NotForkedError("the task's process has ended before it began") from error
        # In this order: while the pidfd's process lives, the number is its own.
        if process.parent_of(pid) != template or wait_readable([self], 0):
            os.close(self._pidfd)
            raise NotForkedError("the task's process is no child of its template")

    def close(self) -> None:
        """Let go of the process; a task that still runs is killed."""
        os.close(self._pidfd)
        self.leash.close()

    def send_signal(self, number: int) -> None:
        """Signal the process, if it is still there."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def wait(self, timeout: float = 0) -> int:
        """Return the exit code if it is known; it does not wait. Raises `psutil.TimeoutExpired`."""
        if self.leash.status is not None:
            code = os.waitstatus_to_exitcode(self.leash.status)
            return KilledBy(code) if code in _KILLED_BY else code
        if self._is_lost():
            return 1
        raise psutil.TimeoutExpired(timeout, self.pid)

    def _is_lost(self) -> bool:
        """Whether the process has ended, and neither template nor zygote will say how."""
        if not wait_readable([self], 0):
            return False
        self._gone_since = self._gone_since or time.monotonic()
        nobody_left = self.leash.fileno() < 0 and self.leash.zygote.fileno() < 0
        return nobody_left or time.monotonic() - self._gone_since > _UNHEARD_SECONDS

    def fileno(self) -> int:
        """Return the descriptor that is readable once the process has ended."""
        return self._pidfd
