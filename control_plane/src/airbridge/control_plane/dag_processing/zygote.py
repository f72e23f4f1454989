"""The zygote: a process with Airflow loaded and no secret in it, from which a process is forked for each DAG file.

Started by the dag-processor with ``python -m airbridge.control_plane.dag_processing.zygote FD REQUIRED SECONDS``, never
forked from it: the dag-processor's memory, environment and configuration hold keys. What it forks is confined before it
reads the DAG file, and ended with all that it started.
"""

from __future__ import annotations

import ctypes
import gc
import os
import selectors
import signal
import socket
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from airbridge.control_plane.dag_processing import messages
from airbridge.core.code import environment
from airbridge.core.sandbox import confinement, hardening, trees

_PR_SET_PDEATHSIG: Final = 1
# Descriptors that come with a request: requests, stdout, stderr, logs, and the socket for the exit status.
_FDS: Final = 5
# Seconds for the removal of what one file's process wrote. No other file is parsed meanwhile.
_REMOVAL_SECONDS: Final = 10.0

_LIBC: Final = ctypes.CDLL(None, use_errno=True)


@dataclass
class _Child:
    """A process that parses a file; `control` is the dag-processor's hold on it."""

    pid: int
    control: socket.socket
    scratch: Path


class Zygote:
    """Forks a process for each request, passes signals on to it, and reports its exit status."""

    def __init__(self, parent: socket.socket, *, required: bool, cpu_seconds: int) -> None:
        self._parent = parent
        self._required = required
        self._cpu_seconds = cpu_seconds
        self._children: dict[int, _Child] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(parent, selectors.EVENT_READ)
        self._wake_up, woken = socket.socketpair()
        for end in (self._wake_up, woken):
            end.setblocking(False)
        self._woken = woken
        self._selector.register(self._wake_up, selectors.EVENT_READ)
        signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve(self) -> None:
        """Serve until the dag-processor is gone; what still runs is killed then."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._parent:
                    if not self._fork_next():
                        self._end_all()
                        return
                elif key.fileobj is self._wake_up:
                    with suppress(BlockingIOError):
                        self._wake_up.recv(4096)
                    self._reap()
                elif key.data in self._children:
                    self._obey(self._children[key.data])

    def _fork_next(self) -> bool:
        request, fds = messages.receive(self._parent, _FDS)
        if request is None:
            return False
        control = socket.socket(fileno=fds[-1])
        try:
            _preload(request["file"])
            scratch = Path(tempfile.mkdtemp(prefix="airbridge-parse-"))
            pid = os.fork()
            if pid == 0:
                self._become(request, fds[:-1], scratch)
            self._children[pid] = _Child(pid, control, scratch)
            self._selector.register(control, selectors.EVENT_READ, pid)
            messages.send(control, {"pid": pid})
        except OSError as error:
            with suppress(OSError):
                messages.send(control, {"error": str(error)})
        finally:
            for fd in fds[:-1]:
                os.close(fd)
        return True

    def _obey(self, child: _Child) -> None:
        """Pass a signal on. A dag-processor that lets go of a file does not want it parsed any more."""
        try:
            message, _ = messages.receive(child.control)
        except OSError:
            message = None
        if message is None:
            self._selector.unregister(child.control)
            _end(child.pid)
        else:
            os.kill(child.pid, message["signal"])  # not reaped yet, so it is still that process

    def _reap(self) -> None:
        for pid in list(self._children):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended == 0:
                continue
            child = self._children.pop(pid)
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            with suppress(KeyError):
                self._selector.unregister(child.control)
            with suppress(OSError):
                messages.send(child.control, {"status": status})
            child.control.close()
            trees.discard(child.scratch, seconds=_REMOVAL_SECONDS)

    def _end_all(self) -> None:
        for child in self._children.values():
            _end(child.pid)
            with suppress(ChildProcessError):
                os.waitpid(child.pid, 0)
            trees.discard(child.scratch, seconds=_REMOVAL_SECONDS)

    def _become(self, request: dict[str, Any], fds: list[int], scratch: Path) -> NoReturn:
        """Be the process that parses: give everything up, then be what Airflow forks for a file."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._selector.close()
            for child in self._children.values():
                child.control.close()
            for sock in (self._parent, self._wake_up, self._woken):
                sock.close()
            _keep_only(fds)
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            gc.enable()
            packages = request["packages"]
            names = (request["bundle"], request["file"], *([packages] if packages else []))
            confinement.enter(
                map(Path, names), scratch, required=self._required, cpu_seconds=self._cpu_seconds
            )
            if packages:
                # The bundle's own modules first, as on workers.
                sys.path.append(request["bundle"])
                environment.activate(packages)
            from airbridge.control_plane.dag_processing import _airflow

            _airflow.be_parser([socket.socket(fileno=fd) for fd in fds[:3]], fds[3])
            code = 0
        except BaseException as error:  # noqa: BLE001 - the outer edge of the process
            with suppress(OSError):
                os.write(fds[2], f"the parser could not be started: {error}\n".encode())
        finally:
            os._exit(code)


def _keep_only(fds: list[int]) -> None:
    """Close every descriptor but these, and have what is written to the zygote's own output go to them."""
    _, stdout, stderr, _ = fds
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    first = 3
    for fd in sorted(fds):
        os.closerange(first, fd)
        first = max(first, fd + 1)
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))


def _end(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)  # it may not lead its group yet


def _preload(file: str) -> None:
    """Import the modules of Airflow that a DAG file imports, so that the next process for it need not."""
    from airbridge.control_plane.dag_processing import _airflow

    with suppress(Exception):  # a file that cannot be read or understood fails in the process that parses it
        _airflow.preload(file)


def main(parent_fd: int, *, required: bool, cpu_seconds: int) -> None:
    """Load Airflow, report readiness, and serve."""
    hardening.harden()
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # a terminal sends it to every process; the dag-processor hangs up
    parent = socket.socket(fileno=parent_fd)
    parent.set_inheritable(False)
    from airbridge.control_plane.dag_processing import _airflow

    _airflow.load_parser()
    gc.collect()
    gc.freeze()
    messages.send(parent, {"ready": os.getpid()})
    Zygote(parent, required=required, cpu_seconds=cpu_seconds).serve()


if __name__ == "__main__":
    main(int(sys.argv[1]), required=sys.argv[2] == "required", cpu_seconds=int(sys.argv[3]))
