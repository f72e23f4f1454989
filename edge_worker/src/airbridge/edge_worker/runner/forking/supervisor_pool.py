"""The zygote's supervisors: free ones, those with a task, and those that are ending."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

# Seconds for which a free supervisor waits for another task before it ends.
_IDLE_SECONDS: Final = 60.0

# Tasks after which a supervisor is replaced, which bounds what it may have leaked.
_MAX_TASKS: Final = 500


@dataclass(eq=False)
class Supervisor:
    """A supervisor's process as the zygote sees it. `task` is the process that it supervises, or 0."""

    pid: int
    control: socket.socket
    task: int = 0
    tasks: int = 0
    free_since: float = 0.0

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self.control.fileno()


class SupervisorPool:
    """Supervisors. `fork` forks one, which must not keep the sockets given, and returns its process id and socket."""

    def __init__(self, fork: Callable[[Sequence[socket.socket]], tuple[int, socket.socket]]) -> None:
        self._fork = fork
        self._by_pid: dict[int, Supervisor] = {}
        self._free: list[Supervisor] = []
        self._ending: dict[int, Supervisor] = {}

    def __iter__(self) -> Iterator[Supervisor]:
        return iter([*self._by_pid.values()])

    @property
    def any_free(self) -> bool:
        """Return whether a supervisor waits for a task."""
        return bool(self._free)

    @property
    def known_pids(self) -> set[int]:
        """Processes of all supervisors, ending ones included, and of their tasks; 0 may be among them."""
        supervisors = [*self._by_pid.values(), *self._ending.values()]
        return {pid for each in supervisors for pid in (each.pid, each.task)}

    def take(self, sockets: Sequence[socket.socket]) -> Supervisor:
        """Return a supervisor for a task, a new one if none is free. Raises `OSError` if none can be forked."""
        supervisor = self._free.pop() if self._free else self._create(sockets)
        supervisor.tasks += 1
        return supervisor

    def task_done(self, supervisor: Supervisor) -> None:
        """Take a supervisor back, or replace it after `_MAX_TASKS`."""
        if supervisor.tasks < _MAX_TASKS:
            self.set_free(supervisor)
        else:
            self.hang_up(supervisor)

    def set_free(self, supervisor: Supervisor) -> None:
        """Keep a supervisor for another task."""
        supervisor.task, supervisor.free_since = 0, time.monotonic()
        self._free.append(supervisor)

    def hang_up(self, supervisor: Supervisor) -> None:
        """Close the socket to a supervisor, which ends once its task has."""
        supervisor.control.close()
        self._by_pid.pop(supervisor.pid, None)
        self._ending[supervisor.pid] = supervisor
        if supervisor in self._free:
            self._free.remove(supervisor)

    def end_idle(self) -> None:
        """Hang up on supervisors that have been free for long."""
        limit = time.monotonic() - _IDLE_SECONDS
        for supervisor in [each for each in self._free if each.free_since < limit]:
            self.hang_up(supervisor)

    def reaped(self, pid: int) -> bool:
        """Forget a process that has ended; return whether it was a supervisor."""
        supervisor = self._by_pid.get(pid)
        if supervisor is not None:
            self.hang_up(supervisor)
        return self._ending.pop(pid, None) is not None

    def _create(self, sockets: Sequence[socket.socket]) -> Supervisor:
        pid, control = self._fork(sockets)
        supervisor = self._by_pid[pid] = Supervisor(pid, control)
        return supervisor
