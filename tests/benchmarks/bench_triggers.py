"""Triggers on one worker beside the same ones in Airflow's triggerer: CPU, and memory as proportional set size.

    python -m tests.benchmarks.bench_triggers --count 5000 --seconds 60

One task is deferred for real on a local platform; its rows are copied, so that nothing else of the platform works. The triggers
look for a file every ten seconds, or sleep.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, text
from tests.benchmarks import processes
from tests.support.platform import LocalPlatform, running, wait_for

MIB = 1024 * 1024
DAG = """
from datetime import datetime, timedelta
from airflow.providers.standard.sensors.date_time import DateTimeSensorAsync
from airflow.providers.standard.triggers.file import FileTrigger
from airflow.sdk import DAG, BaseOperator


class Looks(BaseOperator):
    def execute(self, context):
        self.defer(trigger=FileTrigger("/nonexistent/file", poke_interval=10.0), method_name="execute_complete")


with DAG("bench_looks", schedule=None):
    Looks(task_id="waits")
with DAG("bench_sleeps", schedule=None):
    DateTimeSensorAsync(task_id="waits", target_time=datetime(2090, 1, 1))
"""


@dataclass(frozen=True)
class Cost:
    """Cost of triggers: what the processes took more than without them."""

    where: str
    kind: str
    count: int
    #: Until the last of them ran.
    started_seconds: float
    cpu_percent: float
    memory_mib: float
    #: Of the gateway, or of nothing.
    gateway_cpu_percent: float
    #: With the processes themselves.
    total_memory_mib: float

    def line(self) -> str:
        """Words for a table."""
        return (
            f"{self.where:22} {self.kind:7} {self.count:6} {self.started_seconds:7.1f} s {self.cpu_percent:6.1f} % "
            f"{self.memory_mib:7.1f} MiB {self.gateway_cpu_percent:6.1f} % {self.total_memory_mib:7.1f} MiB"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--kinds", nargs="*", default=["sleeps", "looks"])
    parser.add_argument("--output", type=Path)
    choices = parser.parse_args()
    settings = {"triggerer.capacity": str(choices.count + 1000)}
    with running(airflow=settings) as platform:
        platform.add_dag("bench_triggers", DAG)
        costs = [
            cost for kind in choices.kinds for cost in measure(platform, kind, choices.count, choices.seconds)
        ]
    print("where                  kind     count  started    CPU    memory      gateway   with processes")
    for cost in costs:
        print(cost.line())
    if choices.output:
        choices.output.write_text(json.dumps([asdict(cost) for cost in costs], indent=2) + "\n")


def measure(platform: LocalPlatform, kind: str, count: int, seconds: float) -> Iterator[Cost]:
    """Yield the costs on a worker, and in Airflow's triggerer."""
    run_id = deferred(platform, f"bench_{kind}")
    # Neither scheduler nor reconciler has anything to do with a run that has ended.
    change(platform, "UPDATE dag_run SET state = 'success' WHERE run_id = :run", run=run_id)
    roots = [pid for name, pid in platform.worker_pids().items() if name.startswith("us-east-1")]
    with idle(platform, roots, seconds) as before:
        began = time.monotonic()
        copy(platform, run_id, count, at_edge=True)
        wait_for(lambda: claimed(platform, run_id) > count, "the worker to hold the triggers", 1200)
        started = time.monotonic() - began
    time.sleep(20)
    yield cost("AirBridge worker", kind, count, started, before, usage(platform, roots, seconds))
    remove(platform, run_id)
    wait_for(lambda: claimed(platform, run_id) == 1, "the worker to end them", 300)
    time.sleep(60)
    roots = [platform.pid("triggerer")]
    with idle(platform, roots, seconds) as before:
        began = time.monotonic()
        copy(platform, run_id, count, at_edge=False)
        wait_for(lambda: assigned(platform) >= count, "the triggerer to have them", 1200)
        started = time.monotonic() - began
    time.sleep(30)
    yield cost("Airflow's triggerer", kind, count, started, before, usage(platform, roots, seconds))
    remove(platform, run_id)
    time.sleep(30)


@dataclass(frozen=True)
class Usage:
    """CPU in percent of a core, and memory in MiB."""

    cpu: float
    memory: float
    gateway_cpu: float


@contextmanager
def idle(platform: LocalPlatform, roots: Sequence[int], seconds: float) -> Iterator[Usage]:
    """Measure before anything runs."""
    yield usage(platform, roots, seconds / 2)


def usage(platform: LocalPlatform, roots: Sequence[int], seconds: float) -> Usage:
    """Measure for a while."""
    gateway = [platform.gateway_pid]
    cpu, gateway_cpu = processes.cpu_seconds(roots), processes.cpu_seconds(gateway)
    time.sleep(seconds)
    memory = sum(processes.pss_bytes(processes.tree(roots)).values()) / MIB
    return Usage(
        100 * (processes.cpu_seconds(roots) - cpu) / seconds,
        memory,
        100 * (processes.cpu_seconds(gateway) - gateway_cpu) / seconds,
    )


def cost(where: str, kind: str, count: int, started: float, before: Usage, after: Usage) -> Cost:
    """Return the difference."""
    return Cost(
        where,
        kind,
        count,
        round(started, 1),
        round(after.cpu - before.cpu, 1),
        round(after.memory - before.memory, 1),
        round(after.gateway_cpu - before.gateway_cpu, 1),
        round(after.memory, 1),
    )


# --- the platform's rows ---------------------------------------------------------------------------


def deferred(platform: LocalPlatform, dag_id: str) -> str:
    """Defer one task; return its run."""
    run_id = platform.trigger(dag_id)
    wait_for(lambda: claimed(platform, run_id) == 1, "the first trigger", 120)
    return run_id


def change(platform: LocalPlatform, statement: str, **values: Any) -> None:
    """Change the metadata database."""
    engine = create_engine(platform.database_url)
    with engine.begin() as connection:
        connection.execute(text(statement), values)
    engine.dispose()


def claimed(platform: LocalPlatform, run_id: str) -> int:
    """Return how many triggers of the run workers hold."""
    query = "SELECT count(*) FROM airbridge_work_item WHERE run_id = %s AND kind = 'trigger' AND state = 'claimed'"
    return int(platform.query(query, run_id)[0][0])


def assigned(platform: LocalPlatform) -> int:
    """Return how many triggers Airflow's triggerer has."""
    query = "SELECT count(*) FROM trigger t JOIN job j ON j.id = t.triggerer_id WHERE j.state = 'running'"
    return int(platform.query(query)[0][0])


def copy(platform: LocalPlatform, run_id: str, count: int, *, at_edge: bool) -> None:
    """Copy the run's deferred task instance and its trigger, for workers with its work item."""
    change(
        platform,
        f"""
        CREATE TEMP TABLE bench ON COMMIT DROP AS
            SELECT n, gen_random_uuid() AS ti_id, nextval(pg_get_serial_sequence('trigger', 'id'))::int AS trigger_id
            FROM generate_series(1, :count) AS n;
        INSERT INTO trigger ({_columns(platform, "trigger")})
            SELECT {_columns(platform, "trigger", id="b.trigger_id", triggerer_id="r.triggerer_id" if at_edge else "NULL")}
            FROM task_instance ti JOIN trigger r ON r.id = ti.trigger_id CROSS JOIN bench b
            WHERE ti.run_id = :run AND ti.map_index = -1;
        INSERT INTO task_instance ({_columns(platform, "task_instance")})
            SELECT {_columns(platform, "task_instance", id="b.ti_id", map_index="b.n", trigger_id="b.trigger_id")}
            FROM task_instance r CROSS JOIN bench b WHERE r.run_id = :run AND r.map_index = -1;
        """,
        run=run_id,
        count=count,
    )
    if at_edge:
        fresh = {
            "id": "gen_random_uuid()",
            "ti_id": "c.id",
            "map_index": "c.map_index",
            "trigger_id": "c.trigger_id",
            "state": "'placed'",
            "epoch": "0",
            "worker_id": "NULL",
            "not_before": "now()",
            "placed_at": "now()",
        }
        change(
            platform,
            f"""
            INSERT INTO airbridge_work_item ({_columns(platform, "airbridge_work_item")})
                SELECT {_columns(platform, "airbridge_work_item", **fresh)}
                FROM airbridge_work_item r CROSS JOIN task_instance c
                WHERE r.run_id = :run AND r.kind = 'trigger' AND r.map_index = -1
                    AND c.run_id = :run AND c.map_index >= 0
            """,
            run=run_id,
        )


def _columns(platform: LocalPlatform, table: str, **values: str) -> str:
    query = (
        "SELECT column_name FROM information_schema.columns WHERE table_name = %s ORDER BY ordinal_position"
    )
    names = [name for (name,) in platform.query(query, table)]
    if not values:
        return ", ".join(f'"{name}"' for name in names)
    return ", ".join(values.get(name, f'r."{name}"') for name in names)


def remove(platform: LocalPlatform, run_id: str) -> None:
    """Remove the copies; workers are ordered to end them."""
    change(platform, "DELETE FROM task_instance WHERE run_id = :run AND map_index >= 0", run=run_id)


if __name__ == "__main__":
    main()
