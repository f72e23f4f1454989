"""`airbridge demo`, from an empty directory to a result, as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from airbridge.control_plane.samples import REGION_OF_DATA

AIRBRIDGE = [sys.executable, "-m", "airbridge.control_plane.cli"]


def test_demo_runs_tasks_near_data(tmp_path: Path) -> None:
    """The demo exits 0; each task ran in the region of its data; the combined result and a log are there; nothing is left."""
    done = subprocess.run(
        [*AIRBRIDGE, "demo", "--json", "--dir", str(tmp_path / "demo")],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["state"] == "success"
    assert {task["task"]: task["region"] for task in report["tasks"]} == REGION_OF_DATA
    assert all(task["worker"].startswith(task["region"]) for task in report["tasks"])
    # New York's mean July maximum of 1973 and Nottingham's mean July of 1920 to 1939, from the CSV files by hand.
    assert report["result"]["new_york_celsius"]["07"] == 28.8
    assert report["result"]["nottingham_celsius"]["07"] == 16.6
    assert any("read 120 rows" in line for line in report["log"])
    after = subprocess.run(
        [*AIRBRIDGE, "status", "--dir", str(tmp_path / "demo")], capture_output=True, text=True, check=False
    )
    assert after.returncode == 3
