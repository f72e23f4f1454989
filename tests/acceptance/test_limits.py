"""A limit on a running platform: tasks of two regions share its places, and those without it are not held back."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tests.support.platform import LocalPlatform, running, wait_for
from tests.support.teams import two_teams

from airbridge.control_plane.local.services.aws import parse_regions

MOST = 2
TASKS = 12

_FILE = f"""
import time

from airflow.sdk import DAG, task

from airbridge.core import near

with DAG("erp", schedule=None, max_active_tasks=1000):
    for number in range({TASKS}):
        region = ("us-east-1", "eu-west-1")[number % 2]

        @task(task_id=f"book_{{number}}", executor_config=near(f"region:{{region}}", limits=["erp"]))
        def book() -> str:
            time.sleep(0.3)
            return "booked"

        book()
"""
_OTHER = """
from airflow.sdk import DAG, task

with DAG("free", schedule=None):

    @task
    def work() -> None:
        pass

    work()
"""


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPlatform]:
    root = tmp_path_factory.mktemp("limits")
    choices = two_teams(root, {"erp": _FILE, "free": _OTHER})
    file: Path = choices["teams"]
    file.write_text(f'{file.read_text()}\n[[limit]]\nname = "erp"\nmax_running = {MOST}\n')
    with running(regions=parse_regions(["us-east-1", "eu-west-1"]), slots=4, **choices) as found:
        yield found


def at_one_time(spans: list[tuple[datetime, datetime]]) -> int:
    """Return the most spans that cover one moment. One that ends when another begins does not overlap it."""
    changes = sorted([(end, -1) for _, end in spans] + [(begin, 1) for begin, _ in spans])
    most = now = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


@pytest.fixture(scope="module")
def limited(platform: LocalPlatform) -> str:
    """A run of the DAG with the limit, which has ended, and beside which one of the other has."""
    for dag_id in ("erp", "free"):
        platform.airflow.wait_for_dag(dag_id)
        platform.airflow.unpause(dag_id)
    run = platform.airflow.trigger("erp", {})
    free = platform.airflow.trigger("free", {})
    assert platform.airflow.wait("free", free, 120) == "success"
    assert platform.airflow.wait("erp", run, 240) == "success"
    return str(run)


def test_regions_share_a_limit(platform: LocalPlatform, limited: str) -> None:
    """Of twelve tasks in two regions with eight slots never more than two run; a task without the limit overtakes them."""
    query = "SELECT claimed_at, settled_at, region, limits FROM airbridge_work_item WHERE run_id = %s AND dag_id = %s"
    rows: list[Any] = platform.query(query, limited, "erp")
    assert {(row[2], row[3]) for row in rows} == {("us-east-1", "erp"), ("eu-west-1", "erp")}
    assert len(rows) == TASKS
    assert at_one_time([(row[0], row[1]) for row in rows]) == MOST
    [(ended,)] = platform.query("SELECT settled_at FROM airbridge_work_item WHERE dag_id = 'free'")
    assert ended < max(row[1] for row in rows)


@pytest.mark.usefixtures("limited")
def test_run_has_its_xcoms_and_bytes(platform: LocalPlatform) -> None:
    """The ledger has the size of each XCom and log, and of the code that each region's worker fetched."""
    [(written, tasks)] = platform.query(
        "SELECT sum(moved_bytes), count(DISTINCT item_id) FROM airbridge_event WHERE event = 'xcom.written' AND source = 'control'"
    )
    assert tasks == TASKS
    assert written == TASKS * len('"booked"')

    def sizes(event: str) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        query = "SELECT region, moved_bytes FROM airbridge_event WHERE event = %s AND source = 'edge'"
        for region, size in platform.query(query, event):
            found.setdefault(region, []).append(size)
        return found

    # Workers send events with their heartbeats. What a worker has already it fetches in no bytes.
    wait_for(lambda: sum(map(len, sizes("task.ended").values())) >= TASKS, "the end of every task")
    assert all(min(of_region) > 100 for of_region in sizes("task.ended").values())
    wait_for(
        lambda: len([1 for found in sizes("bundle.fetched").values() if sum(found) > 100]) == 2,
        "code of both",
    )
