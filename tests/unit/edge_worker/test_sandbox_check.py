"""The doctor's checks of the sandbox, and access to the status."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from airbridge.core.sandbox import landlock, mounts
from airbridge.edge_worker.exceptions import SettingsError
from airbridge.edge_worker.ops import health
from airbridge.edge_worker.runner.sandbox import sandbox_check
from airbridge.edge_worker.runner.sandbox.task_user import TaskUser
from airbridge.edge_worker.settings import WorkerSettings, load


def settings(tmp_path: Path, **changes: object) -> WorkerSettings:
    return load(
        None,
        gateway_url="https://localhost:1",
        ca_file=tmp_path / "ca",
        region="eu-west-1",
        state_dir=tmp_path / "state",
        join_token_file=tmp_path / "token",
        **changes,
    )


@pytest.mark.skipif(not landlock.abi(), reason="this kernel has no Landlock")
def test_sandbox_holds_against_probes(tmp_path: Path) -> None:
    """A sandboxed child can neither read nor signal its parent, nor read the worker's files."""
    sandbox = next(iter(sandbox_check.check_tasks(settings(tmp_path))))
    assert sandbox.active, sandbox.detail


def test_disabled_sandbox_is_reported(tmp_path: Path) -> None:
    """The check of a disabled sandbox fails and names the consequence."""
    sandbox = next(iter(sandbox_check.check_tasks(settings(tmp_path, task_sandbox="off"))))
    assert not sandbox.active
    assert "journal" in sandbox.detail


def file_system(settings: WorkerSettings) -> sandbox_check.SandboxCheck:
    checks = {check.name: check for check in sandbox_check.check_tasks(settings)}
    return checks["tasks' file system"]


@pytest.mark.skipif(not landlock.abi(), reason="this kernel has no Landlock")
def test_file_system_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor says whether tasks have mounts of their own; without, a state directory below /tmp fails the check."""
    monkeypatch.setattr(mounts, "available", lambda _uid: True)
    assert "mounts of their own" in file_system(settings(tmp_path)).detail
    monkeypatch.setattr(mounts, "available", lambda _uid: False)
    monkeypatch.setenv("HOME", "/nowhere")
    below_tmp, elsewhere = (file_system(settings(Path(each))) for each in ("/tmp/x", "/srv/x"))
    assert (below_tmp.active, elsewhere.active) == (False, True)
    assert "/tmp among them; move state_dir" in below_tmp.detail
    assert "cannot list the directories above /srv/x/state" in elsewhere.detail


@pytest.mark.parametrize(("name", "why"), [("no-such-user", "not a user"), ("root", "neither root nor")])
def test_task_user_must_exist_and_differ(tmp_path: Path, name: str, why: str) -> None:
    """A task user that is missing, root or the agent's own is an error, which the doctor shows too."""
    with pytest.raises(SettingsError, match=why):
        TaskUser.named(name)
    assert why in [*sandbox_check.check_tasks(settings(tmp_path, task_user=name))][1].detail


def test_shared_group_is_reported() -> None:
    """Users in the group of the tasks' user, who can read what it reads, are named."""
    assert "root" in sandbox_check._shared_group(TaskUser("tasks", 4711, 0))
    assert sandbox_check._shared_group(TaskUser("tasks", 4711, 4711)) == ""


def test_descendants_are_refused_status() -> None:
    """Children, and processes that have ended, count as descendants; this process and its parent do not."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert health.is_descendant(child.pid)
        assert not health.is_descendant(os.getpid())
        assert not health.is_descendant(os.getppid())
    finally:
        child.communicate(b"\n")
    assert health.is_descendant(child.pid)


def test_root_is_no_task() -> None:
    """A worker without privileges answers root, of whose processes it may see nothing; a worker of root's cannot tell by the user."""
    unseen = 2**30
    assert not health.is_task(health.Peer(unseen, 0), agent_uid=10001)
    assert health.is_task(health.Peer(unseen, 10001), agent_uid=10001)
    assert health.is_task(health.Peer(unseen, 0), agent_uid=0)


def test_no_answer_names_the_reason(tmp_path: Path) -> None:
    """A status request that the worker does not answer is an error with a way out."""
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def hang_up() -> None:
            listener.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(SettingsError, match=r"closed the connection without an answer.*call it as root"):
            health.read_status(path)
        thread.join()
