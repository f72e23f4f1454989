"""The seam between the agent and the runner: what is run, and what came of it."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from uuid import UUID

from airbridge.executor.protocol import Grant


@dataclass(frozen=True)
class TaskSpec:
    """One granted work item, ready to run: its code is on disk and its log file's directory exists."""

    item_id: UUID
    epoch: int
    grant: Grant
    bundle_path: Path
    """The unpacked snapshot: read-only, and pinned until the task has ended."""
    log_file: Path
    """The task's log, Task SDK JSON lines; the runner appends, the agent ships."""
    warm: bool
    """May start from a process that has parsed the DAG file already."""


@dataclass(frozen=True)
class Exit:
    """How a task's supervisor ended: an exit code, or the signal that killed it. `detail` is for people."""

    code: int | None
    signal: int | None
    detail: str = ""

    @property
    def clean(self) -> bool:
        """Whether the supervisor says that it reported the task's final state itself."""
        return self.code == 0


class RunningTask(Protocol):
    """A supervisor and the task beneath it."""

    @property
    def pid(self) -> int:
        """The supervisor's process id."""

    @property
    def warm(self) -> bool:
        """Whether it came from a process that had parsed the DAG file already."""

    async def wait(self) -> Exit:
        """Return once the supervisor has ended; any number of callers may wait."""

    def kill(self) -> None:
        """Kill the supervisor and the task (SIGKILL), at once. Harmless when they have ended."""


class Runner(Protocol):
    """Starts tasks. `airbridge.edge_worker.runner` is the real one; `testing.FakeRunner` the other."""

    async def start(self) -> None:
        """Make ready: called once, before any `spawn`."""

    async def spawn(self, spec: TaskSpec, relay: socket.socket) -> RunningTask:
        """Start the task and take over `relay`, the supervisor's end. Raises `RunnerError`; closes `relay` either way."""

    async def stop(self) -> None:
        """End every process of the runner, running tasks included."""
