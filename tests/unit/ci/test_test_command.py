"""ci/scripts/test.sh: its three pytest runs share one allowance of retries, and each fails the command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.support.platform import wait_for

SCRIPT = Path(__file__).resolve().parents[3] / "ci" / "scripts" / "test.sh"

# Notes its arguments, writes a JUnit file with the retries of RETRIED for that file, and fails if it is FAILS.
PYTEST = """#!/usr/bin/env bash
run=$(basename "${@: -1}" .xml)
echo "$*" > "$run.call"
for each in $RETRIED; do [[ $each != "$run" ]] || printf '<property name="first_attempt" value=""/>'; done > "${@: -1}"
echo "output of $run"
[[ $FAILS != "$run" ]]
"""
# Ends at once as the parallel run, and as a half a second after it was interrupted.
WAITING = """#!/usr/bin/env python3
import os, pathlib, signal, sys, time
signal.alarm(60)
run = pathlib.Path(sys.argv[-1]).stem
if run != "parallel":
    pathlib.Path(run + ".begun").touch()
    if run == "own" and os.environ["OWN_ENDS"]:
        sys.exit(0)
    try:
        signal.pause()
    except KeyboardInterrupt:
        time.sleep(1)
        pathlib.Path(run + ".interrupted").touch()
        sys.exit(2)
"""
UNIGNORED = """
import os, signal, sys
for number in (signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])
"""
RUNS = ("parallel", "shared", "own")


def with_pytest(folder: Path, text: str) -> str:
    """Write a `pytest` of this text, and return a PATH that finds it first."""
    (folder / "bin").mkdir()
    (folder / "bin" / "pytest").write_text(text)
    (folder / "bin" / "pytest").chmod(0o755)
    return f"{folder / 'bin'}:{os.environ['PATH']}"


def run(
    tmp_path: Path, *arguments: str, retried: str = "", fails: str = ""
) -> tuple[int, str, dict[str, str]]:
    """Exit status, output, and the arguments of each pytest run."""
    path = with_pytest(tmp_path, PYTEST)
    environment = {
        "PATH": path,
        "RETRIED": retried,
        "FAILS": fails,
    }
    ran = subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        check=False,
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    calls = {path.stem: path.read_text().strip() for path in tmp_path.glob("*.call")}
    return ran.returncode, ran.stdout, calls


@pytest.mark.parametrize(("retried", "left"), [("", 2), ("parallel", 1), ("parallel parallel", 0)])
def test_runs_share_retries(tmp_path: Path, retried: str, left: int) -> None:
    """The acceptance tests get what the parallel run left of the allowance."""
    status, _, calls = run(tmp_path, "2", "2", retried=retried)
    assert status == 0
    assert "--retries 2 --junit-xml .reports/parallel.xml" in calls["parallel"]
    ending = f"--retries {left} --junit-xml .reports"
    assert calls["shared"] == f"tests/acceptance -q -m shared_platform {ending}/shared.xml"
    assert calls["own"] == f"tests/acceptance -q -m not shared_platform {ending}/own.xml"


@pytest.mark.parametrize(
    ("retried", "status"), [("parallel own", 0), ("shared own", 0), ("parallel shared own", 1)]
)
def test_halves_share_what_is_left(tmp_path: Path, retried: str, status: int) -> None:
    """Each half may use what the parallel run left, and the command fails if both together used more."""
    assert run(tmp_path, "2", "2", retried=retried)[0] == status


@pytest.mark.parametrize(
    ("fails", "runs"), [("parallel", {"parallel"}), ("shared", set(RUNS)), ("own", set(RUNS))]
)
def test_failed_run_fails_command(tmp_path: Path, fails: str, runs: set[str]) -> None:
    """A failed run is not run again, and the output of both halves is shown."""
    status, output, calls = run(tmp_path, fails=fails)
    assert (status, set(calls)) == (1, runs)
    assert {line.split()[-1] for line in output.splitlines()} == runs


def test_nightly_run_retries_nothing(tmp_path: Path) -> None:
    """With an allowance of 0 every run gets 0."""
    _, _, calls = run(tmp_path, "2", "0")
    assert ["--retries 0" in calls[each] for each in RUNS] == [True, True, True]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("own_ends", [False, True])
def test_signal_ends_both_halves(tmp_path: Path, number: signal.Signals, own_ends: bool) -> None:
    """A command that is interrupted or ended leaves no half, and no platform of one, behind."""
    path = with_pytest(tmp_path, WAITING)
    environment = {"PATH": path, "OWN_ENDS": "1" if own_ends else ""}
    command = subprocess.Popen(
        # What a shell's background job ignores, as these tests may be one, no child could receive.
        [sys.executable, "-c", UNIGNORED, "bash", str(SCRIPT)],
        cwd=tmp_path,
        env=environment,
        start_new_session=True,
    )
    wait_for(lambda: len(list(tmp_path.glob("*.begun"))) == 2, "both halves to begin")
    if own_ends:
        time.sleep(0.5)  # until the command waits for the other half
    os.kill(command.pid, number)
    assert command.wait(20) != 0
    interrupted = {path.stem for path in tmp_path.glob("*.interrupted")}
    assert interrupted == ({"shared"} if own_ends else {"shared", "own"})
