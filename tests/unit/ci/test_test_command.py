"""ci/scripts/test.sh: its two pytest runs share one allowance of retries, and either fails the command."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "ci" / "scripts" / "test.sh"

# Notes its arguments, writes a JUnit file with RETRIED retries, and fails if its first argument holds FAILS.
PYTEST = """#!/usr/bin/env bash
echo "$*" >> calls
for _ in $(seq "$RETRIED"); do printf '<property name="first_attempt" value=""/>'; done > "${@: -1}"
[[ -z $FAILS || $1 != *"$FAILS"* ]]
"""


def run(tmp_path: Path, *arguments: str, retried: int = 0, fails: str = "") -> tuple[int, list[str]]:
    """Exit status, and the arguments of each pytest run."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "pytest").write_text(PYTEST)
    (tmp_path / "bin" / "pytest").chmod(0o755)
    environment = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "RETRIED": str(retried),
        "FAILS": fails,
    }
    ran = subprocess.run(["bash", str(SCRIPT), *arguments], check=False, cwd=tmp_path, env=environment)
    return ran.returncode, (tmp_path / "calls").read_text().splitlines()


@pytest.mark.parametrize(("retried", "left"), [(0, 2), (1, 1), (2, 0)])
def test_runs_share_retries(tmp_path: Path, retried: int, left: int) -> None:
    """The acceptance suite gets what the parallel run left of the allowance."""
    status, (parallel, acceptance) = run(tmp_path, "2", "2", retried=retried)
    assert status == 0
    assert "--retries 2 --junit-xml .reports/parallel.xml" in parallel
    assert acceptance == f"tests/acceptance -q --retries {left} --junit-xml .reports/acceptance.xml"


@pytest.mark.parametrize(("fails", "runs"), [("unit", 1), ("acceptance", 2)])
def test_failed_run_fails_command(tmp_path: Path, fails: str, runs: int) -> None:
    """A failed run is not run again."""
    status, calls = run(tmp_path, fails=fails)
    assert (status, len(calls)) == (1, runs)


def test_nightly_run_retries_nothing(tmp_path: Path) -> None:
    """With an allowance of 0 both runs get 0."""
    _, calls = run(tmp_path, "2", "0")
    assert ["--retries 0" in call for call in calls] == [True, True]
