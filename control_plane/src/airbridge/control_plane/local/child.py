"""A component's process, started, watched, stopped."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

from airbridge.control_plane.local.component import Component
from airbridge.control_plane.local.privileges import child_setup


class Child(Protocol):
    """A running process, as the supervisor sees it."""

    pid: int

    def poll(self) -> int | None:
        """Return the exit status, or None while it runs."""

    def send(self, number: int) -> None:
        """Send a signal to the process."""

    def kill_group(self) -> None:
        """Kill the process and everything that it started and left in its group."""


Spawn = Callable[[Component], Child]


class LocalChild:
    """A child process, leader of a session and process group of its own."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid = process.pid

    def poll(self) -> int | None:
        """Return the exit status, or None while it runs."""
        return self._process.poll()

    def send(self, number: int) -> None:
        """Send a signal to the process; it may have ended meanwhile."""
        self._process.send_signal(number)

    def kill_group(self) -> None:
        """Kill what is left of the group, the process included."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


def spawn(component: Component) -> Child:
    """Start the component; its output is appended to its log."""
    component.log.parent.mkdir(parents=True, exist_ok=True)
    with component.log.open("ab") as log:
        log.write(f"--- {datetime.now(UTC).isoformat(timespec='seconds')} {component.argv[0]}\n".encode())
        log.flush()
        process = subprocess.Popen(  # noqa: S603 - our own words
            component.argv,
            env=dict(component.env),
            cwd=component.cwd,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # The supervisor is a single thread; what runs after the fork only makes system calls.
            preexec_fn=child_setup(component.death_signal, component.user),  # noqa: PLW1509
        )
    return LocalChild(process)
