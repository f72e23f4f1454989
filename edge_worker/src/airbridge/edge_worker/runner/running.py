"""A task as the agent sees it: its supervisor's process, and the socket on which that reports."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from airbridge.edge_worker.runner import messages, process
from airbridge.edge_worker.runner.messages import Ended, Go, Started
from airbridge.edge_worker.task import Exit

_LAST_WORD_SECONDS: Final = 1.0
"""How long to wait for the zygote to say what killed a supervisor."""


class WarmTask:
    """A supervisor and the task beneath it."""

    def __init__(self, status: socket.socket) -> None:
        self._status = status
        self._started: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._status_at_death: int | None = None
        self._pid = 0
        self._warm = False
        self.template_pid = 0
        self._pidfd = -1
        status.setblocking(False)
        asyncio.get_running_loop().add_reader(status, self._hear)

    @property
    def pid(self) -> int:
        """The supervisor's process id."""
        return self._pid

    @property
    def warm(self) -> bool:
        """Whether the task came from a process that had parsed the DAG file already."""
        return self._warm

    async def started(self) -> bool:
        """Return whether the supervisor came up, once that is known."""
        return await asyncio.shield(self._started) != 0

    async def wait(self) -> Exit:
        """Return once the supervisor is done with the task, or has died."""
        return await asyncio.shield(self._exit)

    def on_exit(self, callback: Callable[[WarmTask], None]) -> None:
        """Have `callback` called once the supervisor is done with the task, or has died."""
        self._exit.add_done_callback(lambda _exit: callback(self))

    def kill(self) -> None:
        """Kill the supervisor; the template kills the task when it sees that, and what is below it."""
        if self._pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def reaped(self, status: int) -> None:
        """Take note of how the supervisor ended, from a process that could wait for it."""
        self._status_at_death = status

    def abandon(self) -> None:
        """Stop listening; a supervisor that comes up after this finds that nobody wants it, one that is up is killed."""
        self.kill()
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
                self._warm = message.warm
                self.template_pid = message.template
                self._come_up(message.pid)
            case Ended():
                self._finish(Exit(message.code, None, message.detail))
            case _:
                self._end_without_a_word()

    def _come_up(self, pid: int) -> None:
        self._pid = pid
        with suppress(ProcessLookupError):
            self._pidfd = os.pidfd_open(pid)
        with suppress(OSError):  # it has died already, which the next read will tell
            messages.send(self._status, Go())
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
