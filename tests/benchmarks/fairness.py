"""Two teams on one pool: how long the ten tasks of one wait behind the thousands of the other, with shares and without.

    python -m tests.benchmarks.fairness [--large 5000] [--small 10] [--json FILE]

Each side brings up a platform of its own with one worker of eight slots, queues the large team's tasks, and, once they stand in the
ledger, triggers the small team's run. Waits are by the database's clock: from the run's trigger, and from placing, to the claim.
Throughput is what the pool ended, of both teams, while the small run was on its way and for half a minute after.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.support.platform import LocalPlatform, running, wait_for
from tests.support.teams import two_teams

from airbridge.control_plane.local.services.aws import parse_regions

SLOTS = 8
RUN_TASKS = 100
WINDOW_SECONDS = 30.0

_DAG = """
from airflow.sdk import DAG, task

with DAG({dag_id!r}, schedule=None, max_active_tasks=100_000, max_active_runs=100_000):
    for number in range({tasks}):

        @task(task_id=f"t{{number}}")
        def work() -> None:
            import time

            time.sleep({seconds})

        work()
"""


@dataclass(frozen=True)
class Outcome:
    """What one side measured. Seconds; `per_second` counts ended tasks of both teams."""

    fair: bool
    queued: int
    waits: tuple[float, ...]
    since_trigger: tuple[float, ...]
    task_seconds: float
    per_second: float
    max_slots: int

    @property
    def p95(self) -> float:
        """95th percentile of the small team's waits, from placing to claim."""
        return _p95(self.waits)


def measure(large: int, small: int, *, fair: bool, task_seconds: float = 0.2) -> Outcome:
    """Run one side."""
    with _platform(small, task_seconds, fair=fair) as platform:
        for dag_id in ("large", "small"):
            platform.airflow.wait_for_dag(dag_id)
            platform.airflow.unpause(dag_id)
        for _ in range(large // RUN_TASKS):
            platform.airflow.trigger("large", {})
        wait_for(lambda: _ended(platform) > 20, "the first tasks to end", 300)
        wait_for(lambda: _placed(platform) >= large - SLOTS * 4 - _ended(platform), "the backlog", 900)
        queued = _waiting(platform)
        began, ended = _now(platform), _ended(platform)
        run_id = platform.airflow.trigger("small", {})
        wait_for(lambda: _claimed(platform, run_id) == small, "the small team's tasks", 3600)
        time.sleep(WINDOW_SECONDS)
        per_second = (_ended(platform) - ended) / (_now(platform) - began)
        rows = platform.query(
            "SELECT extract(epoch FROM claimed_at - placed_at), extract(epoch FROM claimed_at) "
            "FROM airbridge_work_item WHERE run_id = %s",
            run_id,
        )
        held = platform.query(
            "SELECT avg(extract(epoch FROM settled_at - claimed_at)) FROM airbridge_work_item WHERE outcome = 'success'"
        )
        return Outcome(
            fair=fair,
            queued=queued,
            waits=tuple(sorted(float(wait) for wait, _ in rows)),
            since_trigger=tuple(sorted(float(at) - began for _, at in rows)),
            task_seconds=float(held[0][0]),
            per_second=per_second,
            max_slots=SLOTS,
        )


@contextmanager
def _platform(small: int, task_seconds: float, *, fair: bool) -> Iterator[LocalPlatform]:
    with tempfile.TemporaryDirectory(prefix="fairness-", dir="/var/tmp") as below:
        sources = {
            dag_id: _DAG.format(dag_id=dag_id, tasks=tasks, seconds=task_seconds)
            for dag_id, tasks in (("large", RUN_TASKS), ("small", small))
        }
        choices = two_teams(Path(below), sources)
        if not fair:
            del choices["teams"]
        choices |= {"regions": parse_regions(["us-east-1"]), "slots": SLOTS}
        with running(below=below, **choices) as platform:
            yield platform


def _count(platform: LocalPlatform, condition: str, *parameters: object) -> int:
    query = f"SELECT count(*) FROM airbridge_work_item WHERE {condition}"
    return int(platform.query(query, *parameters)[0][0])


def _ended(platform: LocalPlatform) -> int:
    return _count(platform, "state = 'settled'")


def _placed(platform: LocalPlatform) -> int:
    return _count(platform, "state <> 'settled'")


def _waiting(platform: LocalPlatform) -> int:
    return _count(platform, "state IN ('placed', 'sent')")


def _claimed(platform: LocalPlatform, run_id: str) -> int:
    return _count(platform, "run_id = %s AND claimed_at IS NOT NULL", run_id)


def _now(platform: LocalPlatform) -> float:
    return float(platform.query("SELECT extract(epoch FROM clock_timestamp())")[0][0])


def _p95(values: tuple[float, ...]) -> float:
    return statistics.quantiles(values, n=20, method="inclusive")[-1] if len(values) > 1 else values[0]


def report(outcomes: tuple[Outcome, ...]) -> str:
    """Return the outcomes as a table."""
    lines = [
        "shares   queued before   task s   wait p50 s   wait p95 s   since trigger p95 s   tasks/s of both",
    ]
    lines += [
        f"{'fair' if each.fair else 'none':8} {each.queued:13}   {each.task_seconds:6.2f}   {statistics.median(each.waits):10.2f}"
        f"   {each.p95:10.2f}   {_p95(each.since_trigger):19.2f}   {each.per_second:15.2f}"
        for each in outcomes
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure both sides, and print them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--large", type=int, default=5000)
    parser.add_argument("--small", type=int, default=10)
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    options = parser.parse_args()
    outcomes = tuple(measure(options.large, options.small, fair=fair) for fair in (False, True))
    print(report(outcomes))
    if options.json:
        options.json.write_text(json.dumps([asdict(each) for each in outcomes], indent=2))


if __name__ == "__main__":
    main()
