"""A running task as the agent sees it: its supervisor's process and status socket."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import structlog

from airbridge.edge_worker.runner import messages, process
from airbridge.edge_worker.runner.limits.enforcer import Held
from airbridge.edge_worker.runner.limits.limits import Hit
from airbridge.edge_worker.runner.messages import Ended, Go, Started
from airbridge.edge_worker.work.task import Exit

# Seconds to wait for the zygote's `Reaped` after a supervisor's death.
_REAP_SECONDS: Final = 1.0

log = structlog.get_logger()


class WarmTask:
    """A supervisor and the task beneath it."""

    def __init__(self, status: socket.socket, held: Held) -> None:
        self._status = status
        self._held = held
        self._started: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._status_at_death: int | None = None
        self._pid = 0
        self._warm = False
        self.template_pid = 0
        self._pidfd = -1
        status.setblocking(False)
        asyncio.get_running_loop().add_reader(status, self._on_readable)

    @property
    def pid(self) -> int:
        """The supervisor's process id."""
        return self._pid

    @property
    def warm(self) -> bool:
        """Return whether the task came from a process that had parsed the DAG file already."""
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

    def exceed(self, hit: Hit) -> None:
        """Kill the task because of a limit that it has exceeded."""
        self._held.exceed(hit)
        self.kill()

    def record_wait_status(self, status: int) -> None:
        """Take note of how the supervisor ended, from a process that could wait for it."""
        self._status_at_death = status

    def abandon(self) -> None:
        """Close the status socket: a supervisor that is running is killed, one that starts later ends at once."""
        self.kill()
        self._close()
        if not self._started.done():
            self._started.set_result(0)

    def _on_readable(self) -> None:
        try:
            message, fds = messages.receive(self._status, 1)
        except BlockingIOError:
            return
        except OSError:
            message, fds = None, []
        match message:
            case Started() if fds:
                self._warm = message.warm
                self.template_pid = message.template
                self._confirm_start(message, fds[0])
            case Ended():
                self._finish(Exit(message.code, None, message.detail, message.exception, message.used))
            case _:
                self._on_eof()

    def _confirm_start(self, started: Started, task_pidfd: int) -> None:
        self._pid = pid = started.pid
        # Before the start is confirmed: until then the supervisor waits, so the process id is its own.
        with suppress(ProcessLookupError):
            self._pidfd = os.pidfd_open(pid)
        try:
            self._held.admit(started.task, task_pidfd)
        except OSError as error:
            log.warning("runner.not_limited", pid=started.task, detail=str(error))
            self._started.set_result(0)
            return
        with suppress(OSError):  # it has died already, which the next read shows
            messages.send(self._status, Go())
        self._started.set_result(pid)

    def _on_eof(self) -> None:
        asyncio.get_running_loop().remove_reader(self._status)
        if not self._started.done():
            self._started.set_result(0)
        else:
            self._finding = asyncio.ensure_future(self._finish_with_cause())

    async def _finish_with_cause(self) -> None:
        """Finish with the cause of the supervisor's death, from its parent: the zygote, or this process if that has died."""
        deadline = time.monotonic() + _REAP_SECONDS
        while self._status_at_death is None and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
            self._reap_if_child()
        self._finish(_exit_of(self._status_at_death))

    def _reap_if_child(self) -> None:
        with suppress(ChildProcessError):
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self.record_wait_status(status)

    def _finish(self, exit_: Exit) -> None:
        self._close()
        if not self._exit.done():
            self._exit.set_result(self._held.settle(exit_))

    def _close(self) -> None:
        if self._status.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._status)
            self._status.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


def _exit_of(status: int | None) -> Exit:
    """Return the exit for a status of `os.waitpid`, or for the lack of one."""
    if status is None:
        return Exit(1, None, "the supervisor ended without a result")
    detail = f"the supervisor ended: {process.describe(status)}"
    if os.WIFSIGNALED(status):
        return Exit(None, os.WTERMSIG(status), detail)
    return Exit(os.waitstatus_to_exitcode(status), None, detail)
