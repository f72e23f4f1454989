"""Interface between the agent and the runner."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from uuid import UUID

from airbridge.core.protocol import Grant
from airbridge.core.task_options import Options
from airbridge.edge_worker.runner.limits.limits import Hit
from airbridge.edge_worker.runner.messages import Used


@dataclass(frozen=True)
class TaskSpec:
    """One granted work item, ready to run: its code is on disk and its log file's directory exists."""

    item_id: UUID
    epoch: int
    grant: Grant
    #: The unpacked snapshot: read-only, and pinned until the task has ended.
    bundle_path: Path
    #: The task's log, Task SDK JSON lines; the runner appends, the agent ships.
    log_file: Path
    #: May start from a process that has parsed the DAG file already.
    warm: bool
    #: The unpacked packages that the code needs, if any: as `bundle_path`.
    environment: Path | None = None
    #: Run a trigger host, whose triggers come over the proxy socket, in place of the task.
    triggers: bool = False


@dataclass(frozen=True)
class Exit:
    """Exit code of a task's supervisor, or the signal that killed it. `detail` is for the task's log.

    `exception` is the class of the exception that failed the task, if one did. `used` is what the task's process used, if its parent
    has said so.
    """

    code: int | None
    signal: int | None
    detail: str = ""
    exception: str = ""
    used: Used | None = None
    #: The limit that the task ran into, if it did.
    hit: Hit | None = None

    @property
    def clean(self) -> bool:
        """Return whether the supervisor has reported the task's final state itself."""
        return self.code == 0


@dataclass(frozen=True)
class HeldBy:
    """What holds tasks to their limits, and why it is not a cgroup; `why_no_cgroup` is empty if it is one."""

    name: str
    why_no_cgroup: str = ""


class RunningTask(Protocol):
    """A supervisor and the task beneath it."""

    @property
    def pid(self) -> int:
        """The supervisor's process id."""

    @property
    def warm(self) -> bool:
        """Return whether it came from a process that had parsed the DAG file already."""

    async def wait(self) -> Exit:
        """Return once the supervisor has ended; any number of callers may wait."""

    def kill(self) -> None:
        """Kill the supervisor and the task (SIGKILL), at once. Harmless when they have ended."""


class Runner(Protocol):
    """Starts tasks. `airbridge.edge_worker.runner` is the real one; `testing.FakeRunner` the other."""

    def configure(self, options: Options, variables: Mapping[str, str]) -> None:
        """Give options of Airflow's configuration, and variables of the environment, to the tasks that start from now on.

        Variables that the worker's own settings name keep their values.
        """

    async def start(self) -> None:
        """Make ready: called once, before any `spawn`."""

    @property
    def limits(self) -> HeldBy:
        """What holds tasks to their limits."""

    async def spawn(self, spec: TaskSpec, proxy_socket: socket.socket) -> RunningTask:
        """Start the task and take over `proxy`, the supervisor's end. Raises `RunnerError`; closes `proxy` either way."""

    async def stop(self) -> None:
        """End every process of the runner, running tasks included."""
