"""`airbridge dags check`: what a push would refuse, found by a CI job without a platform."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.integration.bundles.test_refused_early import EXPECTED, TASKS
from tests.support.cloud import write_dag

from airbridge.control_plane.cli import app

CATALOGUE = """home_region = "us-east-1"
[[region]]
name = "us-east-1"
log_bucket = "logs"
bundle_bucket = "dags"
[[region.pool]]
queue_url = "http://127.0.0.1:1/us"
[[region]]
name = "eu-west-1"
log_bucket = "logs"
bundle_bucket = "dags"
[[region.pool]]
queue_url = "http://127.0.0.1:1/eu"
"""


def run(*words: str) -> Any:
    return CliRunner().invoke(app.command(), ["dags", "check", *words])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_dag(tmp_path / "dags", "one.py", "one")
    return tmp_path / "dags"


def test_good_folder_passes(folder: Path) -> None:
    """A folder without faults is exit status 0."""
    result = run(str(folder))
    assert (result.exit_code, result.stdout) == (0, "1 DAGs in 1 files: no fault found\n")


def test_each_fault_has_its_place(folder: Path, tmp_path: Path) -> None:
    """Exit status 1, and a line for each fault: parse errors, tasks without a place, and files that no snapshot can hold."""
    (folder / "placed.py").write_text(TASKS)
    (folder / "two.py").write_text("from airflow.sdk import DAG\nundefined\n")
    (folder / "data").symlink_to("/usr/share")
    regions = tmp_path / "regions.toml"
    regions.write_text(CATALOGUE)
    result = run(str(folder), "--regions-file", str(regions))
    lines = result.stdout.splitlines()
    assert result.exit_code == 1
    assert {f"placed.py:{line}: {task}of DAG 'placed': {error}" for line, (task, error) in EXPECTED.items()} < set(lines)  # fmt: skip
    assert "two.py:2: NameError: name 'undefined' is not defined" in lines
    assert [line for line in lines if line.startswith("data: is a symbolic link to a directory")]
    assert len(lines) == len(EXPECTED) + 2


def test_hints_are_read_without_a_catalogue(folder: Path) -> None:
    """Without a catalogue misspelt hints are found, and any region is accepted."""
    (folder / "placed.py").write_text(TASKS)
    found = json.loads(run(str(folder), "--json").stdout)
    assert found["ok"] is False
    assert {failure["line"] for failure in found["failures"]} == {11, 14}
    assert found["dags"] == ["one", "placed"]


def test_folder_without_dags_is_a_fault(tmp_path: Path) -> None:
    """A folder that defines no DAG is the wrong folder."""
    result = run(str(tmp_path))
    assert result.exit_code == 1
    assert "defines no DAG: name the folder that holds the DAG files" in result.stdout
