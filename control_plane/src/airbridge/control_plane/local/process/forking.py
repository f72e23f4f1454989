"""Client of the fork server: starts it, and starts components through it."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import structlog

from airbridge.control_plane.local.exceptions import StartFailed
from airbridge.control_plane.local.process import child, fork_server
from airbridge.control_plane.local.process.privileges import child_setup

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airbridge.control_plane.local.process.component import Component

_PR_SET_CHILD_SUBREAPER: Final = 36
_LOAD_SECONDS: Final = 60.0
_FORK_SECONDS: Final = 20.0

log = structlog.get_logger(__name__)


class ForkedChild:
    """Child process that the fork server has forked, adopted by this process. It leads its own session and process group."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._status: int | None = None

    def poll(self) -> int | None:
        """Return the exit status, or None while it runs."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid == self.pid:
                self._status = os.waitstatus_to_exitcode(status)
        return self._status

    def send(self, number: int) -> None:
        """Send a signal to the process, if it has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill_group(self) -> None:
        """Kill the process and the rest of its group."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


class Forking:
    """Starts the components that are `preloaded` through a fork server, until `close`; the others by an exec.

    Without a fork server, because it ended or the system is not Linux, every component is started by an exec.
    """

    def __init__(self, env: Mapping[str, str], log_file: Path) -> None:
        self._env = env
        self._log_file = log_file
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._loaded = False

    def __enter__(self) -> Self:
        """Start the fork server; do not wait until it has loaded."""
        if sys.platform == "linux":
            self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the fork server."""
        self.close()

    def __call__(self, component: Component) -> child.Child:
        """Start a component. Raises `StartFailed` if the fork server takes the order and does not answer."""
        if not component.preloaded or self._control is None or not self._await_loaded(self._control):
            return child.spawn(component)
        pid = self._fork(self._control, component)
        return child.spawn(component) if pid is None else ForkedChild(pid)

    def close(self) -> None:
        """Stop the fork server: components are started by an exec from now on."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.kill()  # it may still be importing, and has nothing to save
            self._process.wait()
            self._process = None

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, self._log_file.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 - no untrusted arguments
                [sys.executable, "-m", fork_server.__name__, str(theirs.fileno()), str(os.getpid())],
                env=dict(self._env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                # The supervisor has one thread, and the function makes only system calls: safe between fork and exec.
                preexec_fn=child_setup(signal.SIGKILL),  # noqa: PLW1509
            )
        self._control = ours

    def _await_loaded(self, control: socket.socket) -> bool:
        """Wait until the fork server has loaded; give it up and return False if it does not."""
        if self._loaded:
            return True
        try:
            control.settimeout(_LOAD_SECONDS)
            self._loaded = control.recv(fork_server.REQUEST_BYTES) == fork_server.READY
        except OSError as error:
            log.warning("fork_server.not_ready", error=str(error))
        if not self._loaded:
            self._give_up()
        return self._loaded

    def _fork(self, control: socket.socket, component: Component) -> int | None:
        """Return the id of the forked process; None if there is no fork server any more, and no process."""
        order = fork_server.Order(
            component.argv[2],
            component.argv[3:],
            component.env,
            None if component.cwd is None else str(component.cwd),
            component.death_signal,
        )
        control.settimeout(_FORK_SECONDS)
        try:
            with child.opened_log(component) as output, _adopting():
                socket.send_fds(control, [order.encode()], [output.fileno()])
                answer = control.recv(fork_server.REQUEST_BYTES)
        except TimeoutError as error:
            # It may be forked yet: a second one beside it would be worse than no platform.
            raise StartFailed(component.name, "the fork server does not answer", self._log_file) from error
        except OSError as error:
            log.warning("fork_server.lost", error=str(error))
            answer = b""
        if not answer:
            self._give_up()
            return None
        return int(answer)

    def _give_up(self) -> None:
        log.warning("fork_server.unavailable", log=str(self._log_file))
        self.close()


@contextmanager
def _adopting() -> Iterator[None]:
    """Become the parent of orphans among the descendants, for the length of a block."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
