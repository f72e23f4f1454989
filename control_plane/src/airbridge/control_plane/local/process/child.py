"""Child process of a component."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import IO, Protocol

from airbridge.control_plane.local.process.component import Component
from airbridge.control_plane.local.process.privileges import child_setup


class Child(Protocol):
    """Running process, as the supervisor uses it."""

    pid: int

    def poll(self) -> int | None:
        """Return the exit status, or None while it runs."""

    def send(self, number: int) -> None:
        """Send a signal to the process."""

    def kill_group(self) -> None:
        """Kill the process group."""


Spawn = Callable[[Component], Child]


class LocalChild:
    """Child process that leads its own session and process group."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid = process.pid

    def poll(self) -> int | None:
        """Return the exit status, or None while it runs."""
        return self._process.poll()

    def send(self, number: int) -> None:
        """Send a signal to the process, if it has not ended."""
        self._process.send_signal(number)

    def kill_group(self) -> None:
        """Kill the process and the rest of its group."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


@contextmanager
def opened_log(component: Component) -> Iterator[IO[bytes]]:
    """Open the component's log for its output, and create its working directory."""
    component.log.parent.mkdir(parents=True, exist_ok=True)
    if component.cwd is not None:
        component.cwd.mkdir(parents=True, exist_ok=True)
    with component.log.open("ab") as log:
        log.write(f"--- {datetime.now(UTC).isoformat(timespec='seconds')} {component.argv[0]}\n".encode())
        log.flush()
        yield log


def spawn(component: Component) -> Child:
    """Start the component; its output is appended to its log."""
    with opened_log(component) as log:
        process = subprocess.Popen(  # noqa: S603 - no untrusted arguments
            component.argv,
            env=dict(component.env),
            cwd=component.cwd,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # The supervisor has one thread, and the function makes only system calls: safe between fork and exec.
            preexec_fn=child_setup(component.death_signal, component.user),  # noqa: PLW1509
        )
    return LocalChild(process)
