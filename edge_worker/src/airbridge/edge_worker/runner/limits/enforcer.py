"""Enforcer: holds each task to its limits, by a cgroup where there is one, and determines which one a task ran into."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import structlog

from airbridge.core.protocol import Grant
from airbridge.edge_worker.exceptions import RunnerError
from airbridge.edge_worker.runner.event_loop import wait_readable
from airbridge.edge_worker.runner.limits.cgroups import Cgroups, NoCgroups
from airbridge.edge_worker.runner.limits.leaf import Leaf, Measured
from airbridge.edge_worker.runner.limits.limits import MIB, Hit, Limit, Limits, Share, mebibytes
from airbridge.edge_worker.runner.messages import ProcessLimits, Used
from airbridge.edge_worker.work.task import Exit, HeldBy

# The share of its limit that a task's peak has reached at least when it was its own limit that the kernel enforced, not the host's.
_AT_LIMIT: Final = 0.95

# Memory of a supervisor beside what depends on its task's limit.
_OF_SUPERVISOR: Final = 256 * MIB

# Memory of a template beside a slot's: a task is forked in the template's cgroup, and what it writes to before it is moved stays
# the template's.
_OF_FORKED: Final = 64 * MIB
_OF_TASK: Final = 16 * MIB

log = structlog.get_logger()


class Enforcer:
    """Holds tasks to their limits. Without cgroups, memory is limited for each process by itself, and processes not at all."""

    def __init__(self, share: Share, cgroups: Cgroups | NoCgroups) -> None:
        self._share = share
        self._cgroups = cgroups
        # Cgroups that are removed once no process is in them.
        self._ended: list[Leaf] = []
        self._templates = 0

    def start(self) -> None:
        """Make ready; without the cgroups' cooperation, without them."""
        if isinstance(self._cgroups, NoCgroups):
            return
        try:
            self._cgroups.prepare()
        except OSError as error:
            self._cgroups = NoCgroups(f"the kernel refuses to divide this worker's cgroup: {error}")

    @property
    def mounts(self) -> tuple[Path, ...]:
        """Directories that no task may write to."""
        return () if isinstance(self._cgroups, NoCgroups) else self._cgroups.mounts

    @property
    def held_by(self) -> HeldBy:
        """What holds tasks to their limits."""
        if isinstance(self._cgroups, NoCgroups):
            return HeldBy("limits of each process", self._cgroups.reason)
        return HeldBy(self._cgroups.name)

    def hold(self, name: str, grant: Grant) -> Held:
        """Make a task's limits. Raises `RunnerError` if the task requests more than this worker has, or has no cgroup."""
        limits = self._share.limits_for(grant)
        if isinstance(self._cgroups, NoCgroups) or not limits.in_cgroup:
            return Held(limits, None, self.held_by.why_no_cgroup, self._remove)
        try:
            return Held(limits, self._cgroups.new_leaf(name, limits), "", self._remove)
        except OSError as error:
            raise RunnerError(f"no cgroup could be made for work item {grant.item_id}: {error}") from error

    def admit_template(self, pid: int, pidfd: int) -> ProcessLimits:
        """Hold a template, which has run no code of its DAG file yet, to a slot's memory; return what it limits itself to.

        `pidfd`: the template's, from its zygote; the caller closes it. Raises `OSError` if the template cannot be held.
        """
        memory = self._share.limits.memory
        if memory is None or isinstance(self._cgroups, NoCgroups):
            return ProcessLimits(memory or 0)
        self._sweep()
        self._templates += 1
        # While the pidfd's process lives, the number is its own. Nothing of /proc is a proof: hidepid hides a template.
        _require_alive(pid, pidfd)
        limits = Limits(memory=memory + _OF_FORKED + self._share.slots * _OF_TASK)
        leaf = self._cgroups.new_leaf(f"template-{self._templates}", limits)
        # Removed once the template has ended.
        self._ended.append(leaf)
        leaf.add(pid)
        _require_alive(pid, pidfd)
        return ProcessLimits()

    def close(self) -> None:
        """Remove the cgroups of tasks that have ended."""
        self._sweep()
        if not isinstance(self._cgroups, NoCgroups):
            self._cgroups.close()

    def _remove(self, leaf: Leaf) -> None:
        self._ended.append(leaf)
        self._sweep()

    def _sweep(self) -> None:
        # A leaf whose last process has not been waited for cannot be removed yet: it is, when the next task ends.
        self._ended = [leaf for leaf in self._ended if not leaf.remove()]


class Held:
    """The limits of one task, from before its start to after its end."""

    def __init__(
        self, limits: Limits, leaf: Leaf | None, without: str, remove: Callable[[Leaf], None]
    ) -> None:
        self.limits = limits
        self._leaf = leaf
        self._without = without
        self._remove = remove
        self._hit: Hit | None = None
        self._pidfd = -1
        self._before_kill: Measured | None = None

    @property
    def of_process(self) -> ProcessLimits:
        """Return what the task's process limits itself to, and everything that it starts."""
        memory = self.limits.memory if self._leaf is None else None
        return ProcessLimits(memory or 0, self.limits.disk or 0)

    @property
    def of_supervisor(self) -> int:
        """Return the memory that the task's supervisor may have beyond its own, in bytes; 0 limits nothing.

        It is in no cgroup, and holds what the task sends: as it comes, decoded, and as it is passed on.
        """
        return 0 if self.limits.memory is None else 2 * self.limits.memory + _OF_SUPERVISOR

    def admit(self, task: int, pidfd: int) -> None:
        """Move the task's process, which has not begun, into its cgroup, and keep its `pidfd`.

        Raises `OSError` if it cannot be there.
        """
        self._close()
        self._pidfd = pidfd
        if self._leaf is None:
            self._close()
            return
        self._leaf.add(task)
        # While the pidfd's process lives, the number is its own.
        if wait_readable([self], 0):
            raise ProcessLookupError(f"process {task} has ended")
        asyncio.get_running_loop().add_reader(pidfd, self._task_ended)

    def fileno(self) -> int:
        """Return the descriptor that is readable once the task's process has ended."""
        return self._pidfd

    def exceed(self, hit: Hit) -> None:
        """Note a limit that something else than the kernel found exceeded."""
        self._hit = self._hit or hit

    def settle(self, exited: Exit) -> Exit:
        """Kill what is left of the task, and return its exit with what it used and the limit that it ran into."""
        if self._leaf is None:
            return replace(exited, hit=self._hit or self._hit_without(exited))
        before = self._kill_rest(self._leaf)
        # Only before the kill: cgroup v1 counts the forks that are refused because of it.
        measured = replace(self._leaf.measure(), forks_refused=before.forks_refused)
        self.release()
        hit = self._hit or _hit(self.limits, measured)
        return replace(exited, used=_used(exited.used, measured), hit=hit)

    def release(self) -> None:
        """Remove the cgroup, and kill what is in it."""
        self._close()
        leaf, self._leaf = self._leaf, None
        if leaf is not None:
            self._kill_rest(leaf)
            self._remove(leaf)

    def _task_ended(self) -> None:
        """Kill what the task has left running, at once: what forks faster than it is killed would hold up the task's end."""
        self._close()
        if self._leaf is not None:
            self._kill_rest(self._leaf)

    def _kill_rest(self, leaf: Leaf) -> Measured:
        """Kill what is in the cgroup; return what was measured before the first time."""
        if self._before_kill is None:
            self._before_kill = leaf.measure()
        leaf.kill()
        return self._before_kill

    def _close(self) -> None:
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def _hit_without(self, exited: Exit) -> Hit | None:
        if self.limits.memory is None or exited.exception != MemoryError.__name__:
            return None
        detail = (
            f"The task ran out of memory: each of its processes may use {mebibytes(self.limits.memory)}, and one requested "
            f"for more (limited one by one: {self._without})"
        )
        return Hit(Limit.MEMORY, detail)


def _require_alive(template: int, pidfd: int) -> None:
    """Raise `ProcessLookupError` if a template, of this process id and pidfd, has ended."""
    ends = select.poll()
    ends.register(pidfd, select.POLLIN)
    if ends.poll(0):
        raise ProcessLookupError(f"process {template}, a template, has ended")


def _hit(limits: Limits, measured: Measured) -> Hit | None:
    if measured.oom_kills:
        return Hit(Limit.MEMORY, _out_of_memory(limits, measured))
    if measured.forks_refused:
        detail = (
            f"The task was held at {limits.processes} processes and threads: the kernel refused to start "
            f"{measured.forks_refused} more"
        )
        return Hit(Limit.PROCESSES, detail)
    return None


def _out_of_memory(limits: Limits, measured: Measured) -> str:
    peak = "" if measured.peak_memory is None else f", its peak was {mebibytes(measured.peak_memory)}"
    killed = f"the kernel killed {measured.oom_kills} of its processes"
    at_limit = (
        limits.memory is not None and (measured.peak_memory or limits.memory) >= limits.memory * _AT_LIMIT
    )
    if limits.memory is not None and at_limit:
        return (
            f"The task ran out of memory: it may use {mebibytes(limits.memory)}{peak}, and {killed}. "
            "near(memory=...) requests more"
        )
    return f"The host ran out of memory while the task ran: {killed}{peak}"


def _used(of_process: Used | None, measured: Measured) -> Used:
    """Return what the whole cgroup used; what only the process is known for, where the kernel has no figure."""
    known = of_process or Used()
    cpu, peak = measured.cpu_seconds, measured.peak_memory
    return Used(known.cpu_seconds if cpu is None else cpu, known.peak_memory_bytes if peak is None else peak)
