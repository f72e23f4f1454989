"""Exit codes of `airbridge-worker run` for what keeps it from starting."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.unit.edge_worker.test_sandbox_check import settings
from typer.testing import CliRunner

from airbridge.core.exceptions import AirBridgeError
from airbridge.edge_worker import cli
from airbridge.edge_worker.agent import Agent, ExitCode
from airbridge.edge_worker.clock import SystemClock
from airbridge.edge_worker.exceptions import RunnerError, SettingsError, StartError
from airbridge.edge_worker.storage.disk import Disk
from airbridge.edge_worker.wiring import WorkerComponents


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SettingsError("slots is 0"), ExitCode.BAD_SETTINGS),
        (RunnerError("the zygote did not start: timeout"), ExitCode.HARD_STOP),
        (StartError("the journal is locked"), ExitCode.HARD_STOP),
    ],
)
def test_passing_failure_may_be_tried_again(
    monkeypatch: pytest.MonkeyPatch, error: AirBridgeError, code: ExitCode
) -> None:
    """After 2 a service manager does not start the worker again: it is left to settings."""

    async def fails(_settings: object) -> None:
        raise error

    monkeypatch.setattr(cli.hardening, "harden", lambda: True)
    monkeypatch.setattr(cli, "configure_logging", lambda **_: None)
    monkeypatch.setattr(cli, "load", lambda _config: None)
    monkeypatch.setattr(cli, "_run", fails)
    result = CliRunner().invoke(cli.app, ["run"])
    assert (result.exit_code, str(error) in result.output) == (code, True)


def test_unusable_journal_may_pass(tmp_path: Path) -> None:
    """A journal that cannot be opened now, as while it is locked, is no wrong setting."""
    given = settings(tmp_path)
    given.journal_file.parent.mkdir(parents=True)
    components = cast("WorkerComponents", SimpleNamespace(clock=SystemClock()))
    with closing(sqlite3.connect(given.journal_file)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StartError, match=r"the journal .* cannot be opened: .*locked"):
            asyncio.run(Agent(given, components)._open_journal())


def test_locked_state_may_pass(tmp_path: Path) -> None:
    """A worker that still stops has the lock for a moment more."""
    disk, later = (Disk(tmp_path / "state", reserve_mib=0, min_free_mib=0) for _ in range(2))
    disk.prepare()
    try:
        with pytest.raises(StartError, match="in use by another worker"):
            later.prepare()
    finally:
        later.close()
        disk.close()


@pytest.mark.parametrize(("place", "error"), [("file", SettingsError), ("full", StartError)])
def test_unusable_state_dir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, error: type[AirBridgeError]
) -> None:
    """A state_dir that is a file is a wrong setting; a disk that is full is none."""
    path = tmp_path / "state"
    if place == "file":
        path.write_text("")
    else:

        def full(*_: Any) -> int:
            raise OSError(28, os.strerror(28))

        monkeypatch.setattr("airbridge.edge_worker.storage.disk.os.open", full)
    with pytest.raises(error, match="cannot be used"):
        Disk(path, reserve_mib=0, min_free_mib=0).prepare()
