"""Client of the zygote in the dag-processor: starts it, requests a process for each file, and receives its exit status."""

from __future__ import annotations

import enum
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import psutil
import structlog

from airbridge.control_plane.dag_processing import messages
from airbridge.core.exceptions import SandboxError

log = structlog.get_logger(__name__)

_START_SECONDS: Final = 120.0
_FORK_SECONDS: Final = 60.0
_ATTEMPTS: Final = 2

# An exit code that names a signal, as psutil gives it.
KilledBy = enum.IntEnum("KilledBy", {each.name: -each.value for each in signal.Signals})  # type: ignore[misc] # made of another


class ParserProcess:
    """A process that parses a file, with the methods of `psutil.Process` that the Task SDK calls."""

    def __init__(self, pid: int, control: socket.socket) -> None:
        self.pid = pid
        self._control = control
        self._code: int | None = None

    def wait(self, timeout: float | None = 0) -> int:
        """Return the exit code once it is known; it does not wait. Raises `psutil.TimeoutExpired`."""
        if self._code is None:
            if not select.select([self._control], [], [], 0)[0]:
                raise psutil.TimeoutExpired(timeout or 0, self.pid)
            self._code = self._told()
            self._control.close()
        return self._code

    def send_signal(self, number: int) -> None:
        """Have the zygote signal the process, if it still runs."""
        if self._code is None:
            with suppress(OSError):
                messages.send(self._control, {"signal": int(number)})

    def _told(self) -> int:
        try:
            message, _ = messages.receive(self._control)
        except OSError:
            message = None
        if message is None or "status" not in message:
            return int(KilledBy["SIGKILL"])  # the zygote has died, and its processes with it
        code = os.waitstatus_to_exitcode(message["status"])
        return KilledBy(code) if code < 0 else code


class ZygoteClient:
    """Starts the zygote when it is first needed, and anew when it has died."""

    def __init__(
        self, environment: Callable[[], Mapping[str, str]], *, required: bool, cpu_seconds: int
    ) -> None:
        self._environment = environment
        self._arguments = ("required" if required else "auto", str(cpu_seconds))
        self._process: subprocess.Popen[bytes] | None = None
        self._sock: socket.socket | None = None
        self._home: Path | None = None

    @property
    def pid(self) -> int:
        """The zygote's process id, 0 if there is none."""
        return self._process.pid if self._process else 0

    def spawn(self, file: str, bundle: str, fds: list[int], packages: Path | None = None) -> ParserProcess:
        """Have a file parsed, by a process with these descriptors and the bundle's unpacked environment. Raises `SandboxError`."""
        reason = ""
        for _ in range(_ATTEMPTS):
            ours, theirs = messages.pair()
            try:
                self._ensure()
                assert self._sock is not None  # noqa: S101 - for the type checker
                with theirs:
                    request = {"file": file, "bundle": bundle, "packages": str(packages or "")}
                    messages.send(self._sock, request, [*fds, theirs.fileno()])
                answer = _answer(ours, _FORK_SECONDS)
                if "pid" in answer:
                    return ParserProcess(answer["pid"], ours)
                reason = str(answer.get("error", "it gave no process"))
            except OSError as error:
                reason = str(error) or type(error).__name__
            ours.close()
            log.warning("dag_processing.zygote_failed", error=reason, file=file)
            self.stop()
        raise SandboxError(f"no process to parse {file} in: {reason}")

    def stop(self) -> None:
        """End the zygote and what it forked."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
            if self._process.returncode is None:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._home is not None:
            shutil.rmtree(self._home, ignore_errors=True)
            self._home = None

    def _ensure(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        self.stop()
        self._home = Path(tempfile.mkdtemp(prefix="airbridge-zygote-"))
        ours, theirs = messages.pair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own module under our own interpreter
                [
                    *(sys.executable, "-m", "airbridge.control_plane.dag_processing.zygote"),
                    *(str(theirs.fileno()), *self._arguments),
                ],
                cwd=self._home,
                env={**self._environment(), "HOME": str(self._home), "AIRFLOW_HOME": str(self._home)},
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
            )
        self._sock = ours
        answer = _answer(ours, _START_SECONDS)
        log.info("dag_processing.zygote_ready", pid=answer.get("ready"))


def _answer(sock: socket.socket, seconds: float) -> dict[str, Any]:
    """Return the next message. Raises `OSError` if none comes."""
    sock.settimeout(seconds)
    try:
        message, _ = messages.receive(sock)
    finally:
        sock.settimeout(None)
    if message is None:
        raise ConnectionError("the zygote has ended")
    return message
