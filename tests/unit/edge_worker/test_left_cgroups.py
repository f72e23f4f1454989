"""Cgroups that other workers have left: a directory stands in for the file system of cgroups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from airbridge.edge_worker.runner.limits.cgroups import LegacyCgroups

ANOTHERS, GONE, NO_PID, PROBE = 101, 102, 10**30, 0


def signal_hidden(pid: int, number: int) -> None:
    """Raise what `os.kill` does for a live process of another user, for one that is gone, and for a number beyond a C int."""
    assert PROBE == number
    raise {ANOTHERS: PermissionError, GONE: ProcessLookupError, NO_PID: OverflowError}[pid]


def test_cgroups_of_hidden_worker_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that /proc does not show, as with hidepid, keeps its cgroups; those of one that is gone are removed."""
    monkeypatch.setattr(Path, "exists", lambda _path: False)
    monkeypatch.setattr(os, "kill", signal_hidden)
    for pid in (ANOTHERS, GONE, NO_PID):
        (tmp_path / f"airbridge-{pid}").mkdir()
    LegacyCgroups({"memory": tmp_path}, ()).prepare()
    assert {f"airbridge-{ANOTHERS}", f"airbridge-{os.getpid()}"} == {each.name for each in tmp_path.iterdir()}
