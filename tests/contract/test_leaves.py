"""Cgroups of tasks, as this host's kernel has them: the same for version 1 and version 2."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest

from airbridge.edge_worker.runner.limits import cgroups
from airbridge.edge_worker.runner.limits.cgroups import Cgroups, NoCgroups
from airbridge.edge_worker.runner.limits.leaf import Leaf
from airbridge.edge_worker.runner.limits.limits import MIB, Limits

FOUND = cgroups.find()
pytestmark = pytest.mark.skipif(isinstance(FOUND, NoCgroups), reason=f"no cgroups here: {FOUND}")


@pytest.fixture(scope="module")
def place() -> Iterator[Cgroups]:
    assert isinstance(FOUND, Cgroups)
    FOUND.prepare()
    yield FOUND
    FOUND.close()


def start(leaf: Leaf, work: Callable[[], None]) -> int:
    """Start a process that does `work` once it is in the leaf; return its process id."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(write)
            os.read(read, 1)
            work()
        finally:
            os._exit(0)
    os.close(read)
    leaf.add(pid)
    os.close(write)
    return pid


def ended(leaf: Leaf, *pids: int) -> list[int]:
    """Wait for processes of a leaf and remove it; return their exit codes, negative for signals."""
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    leaf.kill()
    deadline = time.monotonic() + 10
    while not leaf.remove():
        assert time.monotonic() < deadline, "what was in the cgroup has not ended"
        time.sleep(0.01)
    assert [] == leaf.pids()
    return codes


def new(place: Cgroups, limits: Limits) -> Leaf:
    return place.new_leaf(f"{uuid4()}-1", limits)


def eat(mib: int) -> None:
    held = [b"x" * MIB for _ in range(mib)]
    assert held


def test_memory_limit_kills_what_is_in_it(place: Cgroups) -> None:
    """The process in the leaf is killed, one outside it is not; the leaf tells how often and how much it had."""
    leaf, other = new(place, Limits(memory=64 * MIB)), new(place, Limits(memory=256 * MIB))
    outside = start(other, lambda: eat(100))
    inside = start(leaf, lambda: eat(100))
    _, status = os.waitpid(inside, 0)
    assert -signal.SIGKILL == os.waitstatus_to_exitcode(status)
    measured = leaf.measure()
    assert measured.oom_kills >= 1
    assert measured.peak_memory is None or 60 * MIB < measured.peak_memory <= 64 * MIB
    ended(leaf)
    assert [0] == ended(other, outside)


def test_process_limit_refuses_forks(place: Cgroups) -> None:
    """Beyond the limit forks fail, which the leaf counts."""

    def fork_without_end() -> None:
        for _ in range(50):
            try:
                if os.fork() == 0:
                    time.sleep(60)
            except OSError:
                return

    leaf = new(place, Limits(processes=10))
    pid = start(leaf, fork_without_end)
    os.waitpid(pid, 0)
    assert leaf.measure().forks_refused >= 1
    assert 9 == len(leaf.pids())
    ended(leaf)


def test_everything_in_a_leaf_is_killed(place: Cgroups) -> None:
    """Processes in sessions of their own, and those that fork faster than they are killed one by one, end."""

    def bomb() -> None:
        while True:
            try:
                if os.fork() == 0:
                    os.setsid()
            except OSError:
                time.sleep(0.001)

    leaf = new(place, Limits(processes=30))
    pid = start(leaf, bomb)
    deadline = time.monotonic() + 10
    while len(leaf.pids()) < 30 and time.monotonic() < deadline:
        time.sleep(0.01)
    leaf.kill()
    assert [-signal.SIGKILL] == ended(leaf, pid)


def test_use_of_children_counts(place: Cgroups) -> None:
    """CPU time and memory are those of all processes together."""

    def work() -> None:
        child = os.fork()
        if child == 0:
            eat(40)
            began = time.process_time()
            while time.process_time() - began < 0.3:
                pass
            os._exit(0)
        os.waitpid(child, 0)

    leaf = new(place, Limits(memory=256 * MIB))
    pid = start(leaf, work)
    os.waitpid(pid, 0)
    measured = leaf.measure()
    assert measured.cpu_seconds is not None
    assert measured.cpu_seconds >= 0.3
    assert measured.peak_memory is None or measured.peak_memory >= 40 * MIB
    ended(leaf)


def test_processor_limit_is_set(place: Cgroups) -> None:
    """A process that would use a core gets the share of it that its leaf has."""

    def burn() -> None:
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            pass

    leaf = new(place, Limits(cpus=0.2))
    pid = start(leaf, burn)
    os.waitpid(pid, 0)
    used = leaf.measure().cpu_seconds
    assert used is not None
    # A period's quota more than the share of the second that it ran for: it is limited by CPU time, not by the clock.
    assert used < 0.5
    ended(leaf)


def test_leaf_that_cannot_be_made_leaves_nothing(place: Cgroups) -> None:
    """A second leaf of the same name is an error, and the first one stays."""
    leaf = place.new_leaf("twice-1", Limits(memory=64 * MIB))
    with pytest.raises(FileExistsError):
        place.new_leaf("twice-1", Limits(memory=64 * MIB))
    pid = start(leaf, lambda: None)
    assert [0] == ended(leaf, pid)
