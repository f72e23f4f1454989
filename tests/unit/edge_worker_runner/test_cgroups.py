"""Where a worker may make cgroups for its tasks, from the files in which the kernel says it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from airbridge.edge_worker.runner.limits import cgroups
from airbridge.edge_worker.runner.limits.cgroups import LegacyCgroups, NoCgroups, UnifiedCgroups

UNIT = "/system.slice/airbridge-worker.service"


def proc(tmp_path: Path, mountinfo: str, own: str) -> Path:
    (tmp_path / "mountinfo").write_text(mountinfo)
    (tmp_path / "cgroup").write_text(own)
    return tmp_path


def unified(tmp_path: Path, cgroup: str, controllers: str = "cpu memory pids", options: str = "rw") -> Path:
    """Files of a process in a cgroup of version 2; the file system is a directory here."""
    top = tmp_path / "fs"
    directory = top / cgroup.lstrip("/")
    directory.mkdir(parents=True)
    (directory / "cgroup.controllers").write_text(controllers)
    for name in ("cgroup.procs", "cgroup.subtree_control", "cgroup.type"):
        (directory / name).write_text("")
    mount = f"30 23 0:26 / {top} {options},nosuid - cgroup2 cgroup2 {options},nsdelegate\n"
    return proc(tmp_path, mount, f"0::{cgroup}\n")


def reason(found: object) -> str:
    assert isinstance(found, NoCgroups), found
    return found.reason


def test_cgroup_of_a_container_is_divided(tmp_path: Path) -> None:
    """A container with a cgroup namespace and a writable cgroup file system divides its own cgroup."""
    assert isinstance(cgroups.find(unified(tmp_path, "/")), UnifiedCgroups)


@pytest.mark.skipif(os.geteuid() != 0, reason="sets an attribute that only root may set")
def test_delegated_unit_is_divided(tmp_path: Path) -> None:
    """A unit with Delegate=yes, which systemd marks, divides its cgroup; one in the cgroup of the agent divides the one above."""
    files = unified(tmp_path, UNIT)
    directory = tmp_path / "fs" / UNIT.lstrip("/")
    assert "was not given to this worker" in reason(cgroups.find(files))
    os.setxattr(directory, "trusted.delegate", b"1")
    assert isinstance(cgroups.find(files), UnifiedCgroups)
    agent = directory / "agent"
    agent.mkdir()
    (agent / "cgroup.controllers").write_text("memory pids")
    (tmp_path / "cgroup").write_text(f"0::{UNIT}/agent\n")
    found = cgroups.find(tmp_path)
    assert isinstance(found, UnifiedCgroups)
    assert found.leaf("x").pids() == []


def test_read_only_cgroups_are_explained(tmp_path: Path) -> None:
    """The cgroup file system of most containers is read-only."""
    why = reason(cgroups.find(unified(tmp_path, "/", options="ro")))
    assert "Delegate=yes" in why
    assert "writable /sys/fs/cgroup" in why


def test_missing_controllers_are_named(tmp_path: Path) -> None:
    """A cgroup without the controller of processes divides nothing."""
    assert "has no controller pids" in reason(cgroups.find(unified(tmp_path, "/", "memory cpu")))


def test_host_without_cgroups_is_explained(tmp_path: Path) -> None:
    """Without a cgroup file system there is a reason, and no error."""
    assert "is mounted" in reason(cgroups.find(proc(tmp_path, "", "")))
    assert "No such file" in reason(cgroups.find(tmp_path / "nothing"))


def test_version_1_has_a_directory_in_each_hierarchy(tmp_path: Path) -> None:
    """Controllers of version 1 have hierarchies of their own, or share them; the file system of version 2 beside them is not used."""
    lines = []
    for number, (name, options) in enumerate(
        {"memory": "memory", "pids": "pids", "cpu,cpuacct": "cpu,cpuacct"}.items()
    ):
        (tmp_path / name / "unit").mkdir(parents=True)
        lines.append(f"{30 + number} 23 0:26 / {tmp_path / name} rw - cgroup cgroup rw,{options}\n")
    (tmp_path / "unified").mkdir()
    lines.append(f"40 23 0:40 / {tmp_path / 'unified'} rw - cgroup2 cgroup2 rw\n")
    own = "3:pids:/unit\n2:cpu,cpuacct:/unit\n1:memory:/unit\n0::/unit\n"
    found = cgroups.find(proc(tmp_path, "".join(lines), own))
    assert isinstance(found, LegacyCgroups)
    assert {tmp_path / each for each in ("memory", "pids", "cpu,cpuacct", "unified")} == set(found.mounts)
    found.prepare()
    leaf = found.leaf("task")
    leaf.make()
    made = sorted(str(each.relative_to(tmp_path)) for each in tmp_path.glob("*/unit/airbridge-*/task"))
    folder = f"unit/airbridge-{os.getpid()}/task"
    assert [f"cpu,cpuacct/{folder}", f"memory/{folder}", f"pids/{folder}"] == made
    assert leaf.remove()
    found.close()
    assert [] == [*tmp_path.glob("*/unit/*")]


def test_leftovers_of_other_workers_are_removed(tmp_path: Path) -> None:
    """Cgroups of workers that are gone are removed; those of workers that run are not."""
    files = unified(tmp_path, "/")
    gone, alive = tmp_path / "fs/airbridge-4194999", tmp_path / "fs/airbridge-1"
    for each in (gone / "leaf", alive / "leaf"):
        each.mkdir(parents=True)
    found = cgroups.find(files)
    assert isinstance(found, UnifiedCgroups)
    folder = tmp_path / "fs" / f"airbridge-{os.getpid()}"
    folder.mkdir()
    for name in ("cgroup.controllers", "cgroup.subtree_control"):
        (folder / name).write_text("")
    (tmp_path / "fs/agent").mkdir()
    found.prepare()
    assert (False, True) == (gone.exists(), (alive / "leaf").exists())
