"""Two teams on one worker: the small one's tasks do not wait behind the large one's, and what both used adds up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tests.support.platform import LocalPlatform, running, wait_for
from tests.support.teams import two_teams

from airbridge.control_plane.local.services.aws import parse_regions

SLOTS = 8
TASKS = 125

_FILE = """
from datetime import timedelta
from airflow.sdk import DAG, get_current_context, task

with DAG({dag_id!r}, schedule=None, max_active_tasks=1000, max_active_runs=100,
         default_args={{"retries": 2, "retry_delay": timedelta(seconds=1)}}):
    for number in range({tasks}):

        @task(task_id=f"t{{number}}")
        def work() -> None:
            if {fails} and get_current_context()["ti"].try_number == 1:
                raise ValueError("the first attempt fails")

        work()
"""


@pytest.fixture(scope="module")
def teams(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPlatform]:
    sources = {
        "large": _FILE.format(dag_id="large", tasks=TASKS, fails="number % 20 == 0"),
        "small": _FILE.format(dag_id="small", tasks=10, fails="False"),
    }
    # A killed worker's tasks are lost soon, and tried again.
    soon = {
        "airbridge.lost_after": "20",
        "airbridge.heartbeat_interval": "2",
        "airbridge.lease_seconds": "10",
    }
    choices = two_teams(tmp_path_factory.mktemp("teams"), sources, **soon)
    with running(regions=parse_regions(["us-east-1"]), slots=SLOTS, **choices) as platform:
        yield platform


def ended(platform: LocalPlatform) -> int:
    return int(platform.query("SELECT count(*) FROM airbridge_work_item WHERE state = 'settled'")[0][0])


def usage(platform: LocalPlatform, *words: str) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "airbridge.control_plane.cli",
        "usage",
        "--json",
        "--since",
        "1d",
        *words,
    ]
    ran = subprocess.run(
        [*command, "--dir", str(platform.directory.root)], capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def held_by_events(platform: LocalPlatform) -> float:
    """Return the seconds between each grant and what ended it, by the events, which the usage is not made from."""
    ends = ("item.settled", "item.released", "item.lost")
    rows = platform.query(
        "SELECT item_id, epoch, event, min(at) FROM airbridge_event WHERE source = 'control' "
        "AND event IN ('claim.granted', 'item.settled', 'item.released', 'item.lost') GROUP BY 1, 2, 3"
    )
    granted: dict[tuple[Any, ...], datetime] = {}
    over: dict[tuple[Any, ...], datetime] = {}
    for item, epoch, event, at in rows:
        if event == "claim.granted":
            granted[item, epoch] = at
        elif event in ends:
            over[item, epoch] = min(at, over.get((item, epoch), at))
    return sum((over[key] - at).total_seconds() for key, at in granted.items())


@pytest.mark.slow("make proof-scale")
def test_usage_adds_up_and_small_team_does_not_wait(teams: LocalPlatform, tmp_path: Path) -> None:
    """Of a thousand tasks with retries and a killed worker, usage has every slot-second; ten of another team overtake the backlog."""
    for dag_id in ("large", "small"):
        teams.airflow.wait_for_dag(dag_id)
        teams.airflow.unpause(dag_id)
    runs = [teams.airflow.trigger("large", {}) for _ in range(8)]
    wait_for(lambda: ended(teams) >= 100, "the first hundred", 300)
    small = teams.airflow.trigger("small", {})
    assert teams.airflow.wait("small", small, 120) == "success"
    [(waited,)] = teams.query(
        "SELECT extract(epoch FROM max(claimed_at - placed_at)) FROM airbridge_work_item WHERE run_id = %s",
        small,
    )
    [(left,)] = teams.query("SELECT count(*) FROM airbridge_work_item WHERE state IN ('placed', 'sent')")
    assert left > 10 * SLOTS, "the backlog was gone before the small team's tasks had begun"
    [(behind,)] = teams.query(
        "SELECT count(*) FROM airbridge_work_item l WHERE l.run_id <> %s AND l.claimed_at < "
        "(SELECT max(claimed_at) FROM airbridge_work_item WHERE run_id = %s) AND l.claimed_at > "
        "(SELECT min(placed_at) FROM airbridge_work_item WHERE run_id = %s)",
        small, small, small,
    )  # fmt: skip
    # On the queue stand two messages for each slot; then the teams take turns.
    assert behind <= 2 * SLOTS + 10 + SLOTS, (
        f"{behind} tasks of the other team began meanwhile ({waited:.1f} s)"
    )

    os.kill(teams.pid("worker-us-east-1-default-1"), signal.SIGKILL)
    states = {teams.airflow.wait("large", run, 900) for run in runs}
    assert states == {"success"}

    found = usage(teams, "--by", "team,dag")
    total = found["total"]
    again = [line["slot_seconds"] for line in usage(teams, "--by", "region,pool")["lines"]]
    assert sum(again) == pytest.approx(total["slot_seconds"], rel=1e-6)
    assert total["items"] == ended(teams) >= 8 * TASKS + 10
    assert total["slot_seconds"] == pytest.approx(held_by_events(teams), rel=0.01)
    by_team = {line["team"]: line for line in found["lines"]}
    assert set(by_team) == {"large", "small"}
    assert by_team["small"]["items"] == 10
    assert all(line["cpu_seconds"] > 0 and line["peak_memory_bytes"] > 2**20 for line in by_team.values())
