"""Admission of templates to their cgroups: a directory stands in for the file system of cgroups, and the processes are real."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from airbridge.edge_worker.runner import process
from airbridge.edge_worker.runner.limits.cgroups import UnifiedCgroups
from airbridge.edge_worker.runner.limits.enforcer import Enforcer
from airbridge.edge_worker.runner.limits.leaf import UnifiedLeaf
from airbridge.edge_worker.runner.limits.limits import MIB, Limits, Share
from airbridge.edge_worker.runner.messages import ProcessLimits

Child = tuple[subprocess.Popen[bytes], int]


@pytest.fixture
def child() -> Iterator[Child]:
    """A process, and a pidfd of it."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as running:
        pidfd = os.pidfd_open(running.pid)
        yield running, pidfd
        os.close(pidfd)
        running.kill()


class Leaf(UnifiedLeaf):
    """A leaf with the files that the kernel makes."""

    def make(self) -> None:
        super().make()
        for name in ("cgroup.procs", "memory.max", "memory.oom.group", "memory.swap.max"):
            (self._directories[0] / name).touch()


class Cgroups(UnifiedCgroups):
    """Leaves in `folder`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, ())

    def leaf(self, name: str) -> UnifiedLeaf:
        return Leaf(self._given / name)


def enforcer(folder: Path) -> Enforcer:
    return Enforcer(Share(slots=2, limits=Limits(memory=256 * MIB)), Cgroups(folder))


def test_hidden_template_is_admitted(tmp_path: Path, child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    """A template that /proc does not show, as with hidepid, is held to a slot's memory by its cgroup."""
    monkeypatch.setattr(process, "parent_of", lambda _pid: 0)
    running, pidfd = child
    assert ProcessLimits() == enforcer(tmp_path).admit_template(running.pid, pidfd)
    [members] = tmp_path.glob("template-1/cgroup.procs")
    assert str(running.pid) == members.read_text()


def test_ended_template_is_not_admitted(tmp_path: Path, child: Child) -> None:
    """A template that has ended is refused, and whatever has its number since is left where it is."""
    running, pidfd = child
    running.kill()
    running.wait()
    with pytest.raises(ProcessLookupError, match=f"process {running.pid}, a template, has ended"):
        enforcer(tmp_path).admit_template(running.pid, pidfd)
    assert [] == [*tmp_path.glob("template-1/cgroup.procs")]
