"""The systemd unit and the installer of a worker on a host, as they stand in the package."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from airbridge.edge_worker.agent import ExitCode

HOST = Path(__file__).resolve().parents[2] / "images/host"
UNIT = HOST / "airbridge-worker.service"

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")


def directives() -> dict[str, str]:
    return dict(re.findall(r"(?m)^([A-Z]\w+)=(.*)$", UNIT.read_text()))


@needs_systemd
def test_exposure_is_low() -> None:
    """`systemd-analyze security` gives the unit at most 2.5 of 10: "OK", where a unit without hardening has 9.6."""
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=25", "--no-pager", str(UNIT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stdout
    assert "Unknown" not in done.stderr


def test_tasks_are_left_to_finish() -> None:
    """A stop signals the agent alone, gives tasks an hour, and a task out of memory does not end the unit. The worker sees its tasks, and
    has the right to their cgroups."""
    unit = directives()
    assert ("mixed", "3600", "continue") == (unit["KillMode"], unit["TimeoutStopSec"], unit["OOMPolicy"])
    assert {"cpu", "memory", "pids"} == set(unit["Delegate"].split())
    assert "ProtectControlGroups" not in unit
    assert "ProtectProc" not in unit


def test_exit_codes_are_those_of_the_worker() -> None:
    """What a restart would not change is not tried again; results that are left for the next start are no failure."""
    unit = directives()
    assert {ExitCode.NO_IDENTITY, 2} == set(map(int, unit["RestartPreventExitStatus"].split()))
    assert ExitCode.NOT_FLUSHED == int(unit["SuccessExitStatus"])


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "what is to be done?"),
        (("install", "--region"), 2, "--region needs a value"),
        (("install", "--reigon", "x"), 2, "--reigon is not known"),
        (("--help",), 0, "usage: install.sh install"),
    ],
)
def test_wrong_calls_change_nothing(words: tuple[str, ...], code: int, said: str, tmp_path: Path) -> None:
    """A call that is wrong says so, before anything is made."""
    script = tmp_path / "install.sh"
    # Root would go on where the arguments are right.
    script.write_text((HOST / "install.sh").read_text().replace("home=/opt", f"home={tmp_path}/opt"))
    done = subprocess.run(["sh", str(script), *words], capture_output=True, text=True, check=False)
    assert code == done.returncode
    assert said in done.stdout + done.stderr
    assert [script] == [*tmp_path.iterdir()]
    assert os.access(HOST / "install.sh", os.X_OK)
