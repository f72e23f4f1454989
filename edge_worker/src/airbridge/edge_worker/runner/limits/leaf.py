"""Leaf: the cgroup of one task and of everything that it starts, which no user code can write to."""

from __future__ import annotations

import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from airbridge.edge_worker.runner.limits.limits import Limits

_PERIOD_US: Final = 100_000

# Looks at a leaf while its processes are being killed: one is enough where nothing can be forked any more.
_KILL_ROUNDS: Final = 20


@dataclass(frozen=True)
class Measured:
    """What the processes of a leaf have used together; None where this kernel has no figure."""

    cpu_seconds: float | None = None
    peak_memory: int | None = None
    #: Processes that the kernel killed when the leaf's memory ran out.
    oom_kills: int = 0
    #: Forks that the kernel refused because of the leaf's limit of processes.
    forks_refused: int = 0


class Leaf(ABC):
    """The cgroup of one task. With cgroup v1 it is a directory in each controller's hierarchy.

    Raises `OSError` from each method where the kernel refuses, with the exceptions that are marked.
    """

    def __init__(self, directories: Iterable[Path]) -> None:
        self._directories = tuple(directories)

    @abstractmethod
    def limit(self, limits: Limits) -> None:
        """Set the limits; without one, nothing is limited."""

    @abstractmethod
    def measure(self) -> Measured:
        """Return what was used so far. Never raises."""

    @abstractmethod
    def _forbid_forks(self) -> None: ...

    def make(self) -> None:
        """Make the cgroup; leave nothing behind if it cannot be made, and nothing changed if it is there already."""
        made: list[Path] = []
        try:
            for directory in self._directories:
                directory.mkdir(mode=0o755)
                made.append(directory)
        except OSError:
            for directory in made:
                directory.rmdir()
            raise

    def add(self, pid: int) -> None:
        """Move a process into the cgroup; what it forks from now on is in it, too."""
        for directory in self._directories:
            write(directory / "cgroup.procs", pid)

    def pids(self) -> list[int]:
        """Return the processes in the cgroup; none if it is gone."""
        with suppress(OSError):
            return [int(pid) for pid in (self._directories[0] / "cgroup.procs").read_text().split()]
        return []

    def kill(self) -> None:
        """Kill every process in the cgroup, however many there are and whatever session they are in. Never raises."""
        with suppress(OSError):
            write(self._directories[0] / "cgroup.kill", 1)  # cgroup v2 since Linux 5.14
            return
        with suppress(OSError):
            self._forbid_forks()
        for _round in range(_KILL_ROUNDS):
            pids = self.pids()
            for pid in pids:
                self._kill_one(pid)
            if not pids:
                return

    def remove(self) -> bool:
        """Remove the cgroup; False as long as a process in it has not been waited for. Never raises."""
        for directory in self._directories:
            try:
                directory.rmdir()
            except FileNotFoundError:
                continue
            except OSError:
                return False
        return True

    def _kill_one(self, pid: int) -> None:
        with suppress(OSError):
            pidfd = os.pidfd_open(pid)
            try:
                # While the process of the pidfd lives the number is its own.
                if pid in self.pids():
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            finally:
                os.close(pidfd)


class UnifiedLeaf(Leaf):
    """Leaf of cgroup v2. When its memory runs out, all of its processes are killed: a task is not left with half of them."""

    def __init__(self, directory: Path) -> None:
        super().__init__((directory,))
        self._directory = directory

    def limit(self, limits: Limits) -> None:
        """See `Leaf`."""
        if limits.memory is not None:
            self._write("memory.max", limits.memory)
            self._write("memory.oom.group", 1)
            with suppress(FileNotFoundError):  # a kernel that does not account for swap
                self._write("memory.swap.max", 0)
        if limits.processes is not None:
            self._write("pids.max", limits.processes)
        if limits.cpus is not None:
            self._write("cpu.max", f"{round(limits.cpus * _PERIOD_US)} {_PERIOD_US}")

    def measure(self) -> Measured:
        """See `Leaf`."""
        used = _number_in(self._directory / "cpu.stat", "usage_usec")
        return Measured(
            cpu_seconds=None if used is None else used / 1e6,
            peak_memory=_number(self._directory / "memory.peak"),  # Linux 5.19
            oom_kills=_number_in(self._directory / "memory.events", "oom_kill") or 0,
            forks_refused=_number_in(self._directory / "pids.events", "max") or 0,
        )

    def _forbid_forks(self) -> None:
        self._write("pids.max", 0)

    def _write(self, name: str, value: object) -> None:
        write(self._directory / name, value)


class LegacyLeaf(Leaf):
    """Leaf of cgroup v1: a directory in each controller's hierarchy. Out of memory, the kernel kills one process at a time."""

    def __init__(self, memory: Path, pids: Path, cpu: Path | None, cpuacct: Path | None) -> None:
        # Controllers may share a hierarchy; the one of memory is listed first.
        every = (memory, pids, cpu, cpuacct)
        super().__init__(dict.fromkeys(each for each in every if each is not None))
        self._memory, self._pids, self._cpu, self._cpuacct = every

    def limit(self, limits: Limits) -> None:
        """See `Leaf`."""
        if limits.memory is not None:
            write(self._memory / "memory.limit_in_bytes", limits.memory)
            with suppress(FileNotFoundError):  # a kernel that does not account for swap
                write(self._memory / "memory.memsw.limit_in_bytes", limits.memory)
        if limits.processes is not None:
            write(self._pids / "pids.max", limits.processes)
        if limits.cpus is not None and self._cpu is not None:
            write(self._cpu / "cpu.cfs_period_us", _PERIOD_US)
            write(self._cpu / "cpu.cfs_quota_us", round(limits.cpus * _PERIOD_US))

    def measure(self) -> Measured:
        """See `Leaf`."""
        used = _number(self._cpuacct / "cpuacct.usage") if self._cpuacct is not None else None
        return Measured(
            cpu_seconds=None if used is None else used / 1e9,
            peak_memory=_number(self._memory / "memory.max_usage_in_bytes"),
            oom_kills=_number_in(self._memory / "memory.oom_control", "oom_kill") or 0,
            forks_refused=_number_in(self._pids / "pids.events", "max") or 0,
        )

    def _forbid_forks(self) -> None:
        write(self._pids / "pids.max", 0)


def write(file: Path, value: object) -> None:
    """Write a value to a file of a cgroup, which must be there. Raises `OSError`."""
    fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(value).encode())
    finally:
        os.close(fd)


def _number(file: Path) -> int | None:
    with suppress(OSError, ValueError):
        return int(file.read_text())
    return None


def _number_in(file: Path, name: str) -> int | None:
    """Return a number of a file of ``name number`` lines."""
    with suppress(OSError, ValueError):
        for line in file.read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    return None
