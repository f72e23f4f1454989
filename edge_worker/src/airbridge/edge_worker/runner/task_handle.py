"""A supervisor's handle of its task, which is another process's child."""

from __future__ import annotations

import enum
import os
import secrets
import signal
import socket
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import psutil

from airbridge.edge_worker.runner import messages, process
from airbridge.edge_worker.runner.event_loop import wait_readable
from airbridge.edge_worker.runner.messages import Exited, Fork, Forked, Reaped, Used

# Seconds after a task's end within which its template, or the zygote, must have sent the exit status.
_EXIT_STATUS_SECONDS: Final = 30.0

# Bytes that a task sends back over its requests socket before anything else.
CHALLENGE_BYTES: Final = 16

# Of `struct ucred`: process, user and group id.
_CREDENTIALS: Final = struct.Struct("3i")

# An exit code that names a signal, as psutil gives it.
KilledBy = enum.IntEnum("KilledBy", {each.name: -each.value for each in signal.Signals})  # type: ignore[misc] # made of another

_KILLED_BY: Final = frozenset(map(int, KilledBy))


class NotForkedError(Exception):
    """The task was not forked: its template has died, cannot fork, or sent a false process id; or the start was withdrawn."""


class TaskHandle:
    """Socket to the template, which forks the task, sends its exit status, and kills it when this end is closed.

    If the template dies, the task becomes the zygote's child, and the zygote sends the exit status.
    """

    def __init__(self, sock: socket.socket, zygote: socket.socket, template: int) -> None:
        self._sock = sock
        self.zygote = zygote
        self._template = template
        self.status: int | None = None
        self.used: Used | None = None
        self._task = 0

    def fileno(self) -> int:
        """Return the descriptor, for a selector; negative once it is closed."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close the socket; a task that still runs is killed."""
        self._sock.close()

    def fork(self, fds: Sequence[int], requests: socket.socket, wanted: socket.socket) -> RemoteProcess:
        """Have the task forked. `fds`: its ends of requests, stdout, stderr and logs, and its job. `requests`: the other end.

        Raises `NotForkedError`, also if `wanted` becomes readable first: the agent has withdrawn the start.
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
        # Sooner than the challenge, which another process would leave unanswered until the start times out.
        if process.parent_of(answer.pid) not in {self._template, 0}:
            raise NotForkedError(f"process {answer.pid}, which the template names, is no child of it")
        self._task = answer.pid
        task = RemoteProcess(answer.pid, self)
        try:
            task.verify(requests, [self._sock, wanted])
        except (OSError, NotForkedError) as error:
            task.close()
            raise NotForkedError(str(error)) from error
        return task

    @property
    def ended(self) -> bool:
        """Return whether the socket is readable: the task has ended, or the template has."""
        return bool(wait_readable([self._sock], 0))

    def receive(self) -> bool:
        """Receive the task's exit status from the template. Always False: no message follows it."""
        message, _fds = messages.receive_or_eof(self._sock)
        if isinstance(message, Exited):
            self.status, self.used = message.status, message.used
        return False

    def receive_from_zygote(self) -> bool:
        """Receive a message of the zygote. False once it is gone."""
        message, _fds = messages.receive_or_eof(self.zygote)
        if isinstance(message, Reaped) and message.pid == self._task:
            self.status, self.used = message.status, message.used
        return message is not None


class RemoteProcess:
    """The task's process, with the part of `psutil.Process` that the Task SDK's supervisor uses."""

    def __init__(self, pid: int, handle: TaskHandle) -> None:
        """Raises `NotForkedError` if there is no such process any more."""
        self.pid = pid
        self.handle = handle
        self._gone_since = 0.0
        try:
            self._pidfd = os.pidfd_open(pid)
        except (OSError, OverflowError) as error:
            raise NotForkedError("the task's process has ended before it began") from error

    def verify(self, requests: socket.socket, cancelled_by: Sequence[socket.socket]) -> None:
        """Verify that this is the process at the other end of `requests`. Raises `NotForkedError` or `OSError`.

        A template runs user code and may send any process id, and a supervisor may signal processes that no DAG file may. /proc
        is no proof everywhere: mounted with hidepid, it shows a supervisor no process that is not dumpable, as tasks are.
        """
        requests.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        challenge = secrets.token_bytes(CHALLENGE_BYTES)
        requests.sendall(challenge)
        if requests not in wait_readable([requests, *cancelled_by]):
            raise NotForkedError("the task has ended before it began, or is not wanted any more")
        space = socket.CMSG_SPACE(_CREDENTIALS.size)
        answer, ancillary, _flags, _address = requests.recvmsg(len(challenge), space, socket.MSG_CMSG_CLOEXEC)
        requests.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
        # The answer was sent after the pidfd was opened: if the pidfd's process still lives, the number was its own throughout.
        if answer != challenge or _sender(ancillary) != self.pid or wait_readable([self], 0):
            raise NotForkedError(f"process {self.pid}, which the template names, does not answer as the task")

    def close(self) -> None:
        """Close the handle; a task that still runs is killed."""
        os.close(self._pidfd)
        self.handle.close()

    def send_signal(self, number: int) -> None:
        """Signal the process, if it is still there."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def wait(self, timeout: float = 0) -> int:
        """Return the exit code if it is known; it does not wait. Raises `psutil.TimeoutExpired`."""
        if self.handle.status is not None:
            code = os.waitstatus_to_exitcode(self.handle.status)
            return KilledBy(code) if code in _KILLED_BY else code
        if self._is_lost():
            return 1
        raise psutil.TimeoutExpired(timeout, self.pid)

    def _is_lost(self) -> bool:
        """Return whether the process has ended, and neither template nor zygote will send its exit status."""
        if not wait_readable([self], 0):
            return False
        self._gone_since = self._gone_since or time.monotonic()
        no_parent = self.handle.fileno() < 0 and self.handle.zygote.fileno() < 0
        return no_parent or time.monotonic() - self._gone_since > _EXIT_STATUS_SECONDS

    def fileno(self) -> int:
        """Return the descriptor that is readable once the process has ended."""
        return self._pidfd


def _sender(ancillary: list[tuple[int, int, bytes]]) -> int:
    """Return the id of the process that sent a message, which the kernel adds; 0 if it did not."""
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
            pid, _uid, _gid = _CREDENTIALS.unpack(data)
            return int(pid)
    return 0
