"""What the doctor says of the walls, and who may ask for the status."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from airbridge.edge_worker import health, shields
from airbridge.edge_worker.exceptions import SettingsError
from airbridge.edge_worker.runner.user import TaskUser
from airbridge.edge_worker.settings import WorkerSettings, load
from airbridge.executor import landlock


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
def test_the_walls_are_tried_and_found_to_hold(tmp_path: Path) -> None:
    """A child behind them can neither read nor signal its parent, nor read the worker's files."""
    walls = next(iter(shields.of_tasks(settings(tmp_path))))
    assert walls.active, walls.detail


def test_walls_that_are_off_are_told(tmp_path: Path) -> None:
    """With what that means."""
    walls = next(iter(shields.of_tasks(settings(tmp_path, task_walls="off"))))
    assert not walls.active
    assert "journal" in walls.detail


@pytest.mark.parametrize(("name", "why"), [("no-such-user", "not a user"), ("root", "neither root nor")])
def test_a_task_user_must_be_another_and_exist(tmp_path: Path, name: str, why: str) -> None:
    """The error says what would be right, and so does the doctor."""
    with pytest.raises(SettingsError, match=why):
        TaskUser.named(name)
    assert why in [*shields.of_tasks(settings(tmp_path, task_user=name))][1].detail


def test_what_comes_from_the_worker_is_told_from_what_does_not() -> None:
    """The status is not for tasks: children, and what has ended, are refused; this process and its parent are not."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert health.is_descendant(child.pid)
        assert not health.is_descendant(os.getpid())
        assert not health.is_descendant(os.getppid())
    finally:
        child.communicate(b"\n")
    assert health.is_descendant(child.pid)
