"""AirBridge, LocalExecutor, Celery with Redis and edge3, on one machine, in turn, in one run. Measured, never asserted.

    python -m tests.benchmarks.bench --quick     # fan-out and chain: AirBridge and LocalExecutor
    python -m tests.benchmarks.bench             # every system, at round trips of 0, 50, 100 and 200 ms

Prints a table and writes ``tests/benchmarks/results/latest.json``; among the raw figures are `ratios`: throughput ratios
above 1 mean that AirBridge is faster, chain ratios are makespans and below 1 mean that it is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import platform as host
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from tests.benchmarks import peers, processes
from tests.benchmarks.airflow_api import AirflowApi, TaskTimes
from tests.benchmarks.dags.bench import DAGS
from tests.benchmarks.edge import Edge

HERE = Path(__file__).parent
WORKLOADS = HERE / "dags"
RESULTS = HERE / "results" / "latest.json"
PEERS_VENV = Path.home() / ".cache" / "airbridge" / "bench-peers"
RUN_TIMEOUT_SECONDS = 900.0


class System(Protocol):
    """One system under test."""

    name: str

    @property
    def base_url(self) -> str: ...
    @property
    def database_url(self) -> str: ...
    @property
    def control_pids(self) -> Sequence[int]: ...
    @property
    def worker_pids(self) -> Sequence[int]: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...


@dataclass(frozen=True)
class Case:
    """A workload on a system at a distance."""

    system: str
    dag_id: str
    round_trip_ms: float
    repeats: int = 1


@dataclass
class Measured:
    """The figures of one case, one list entry a repeat. Seconds, but for the counts."""

    case: Case
    load_before: float
    makespan: list[float] = field(default_factory=list)
    tasks: int = 0
    queue_to_start: list[float] = field(default_factory=list)
    start_to_commit: list[float] = field(default_factory=list)
    control_cpu: list[float] = field(default_factory=list)
    worker_cpu: list[float] = field(default_factory=list)
    pss_per_sleeper_mb: list[float] = field(default_factory=list)
    requests_per_task: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """The median makespan."""
        return statistics.median(self.makespan)

    @property
    def throughput(self) -> float:
        """Tasks a second at the median makespan."""
        return self.tasks / self.seconds

    def as_json(self) -> dict[str, Any]:
        """The figures, rounded."""
        return {
            "system": self.case.system,
            "dag": self.case.dag_id,
            "round_trip_ms": self.case.round_trip_ms,
            "tasks": self.tasks,
            "load_before": round(self.load_before, 2),
            "makespan_s": [round(value, 2) for value in self.makespan],
            "tasks_per_s": round(self.throughput, 2),
            "queue_to_start_s": _percentiles(self.queue_to_start),
            "start_to_commit_s": _percentiles(self.start_to_commit),
            "control_cpu_s_per_task": round(statistics.median(self.control_cpu) / self.tasks, 4),
            "worker_cpu_s_per_task": round(statistics.median(self.worker_cpu) / self.tasks, 4),
            "pss_mb_per_sleeper": [round(value, 1) for value in self.pss_per_sleeper_mb],
            "gateway_requests_per_task": [round(value, 2) for value in self.requests_per_task],
        }


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        f"p{rank}": round(ordered[min(len(ordered) - 1, int(len(ordered) * rank / 100))], 3)
        for rank in (50, 95, 99)
        if ordered
    }


def make(name: str, home: Path, round_trip_ms: float) -> System:
    """Return a system by name, not started yet."""
    if name == "airbridge":
        return Edge(home, WORKLOADS, round_trip_ms)
    venv = peers.environment(PEERS_VENV, _uv())
    return peers.peer(name, venv, home, WORKLOADS, round_trip_ms)


def _uv() -> str:
    local = HERE.parents[1] / ".tools" / "bin" / "uv"
    return str(local) if local.exists() else "uv"


@contextmanager
def started(name: str, round_trip_ms: float) -> Iterator[tuple[System, AirflowApi]]:
    """Bring a system up with the workloads parsed and one warm-up run behind it; take it down."""
    with tempfile.TemporaryDirectory(prefix=f"airbridge-bench-{name}-") as folder:
        Path(folder).chmod(0o755)
        system = make(name, Path(folder) / "home", round_trip_ms)
        try:
            system.start()
            api = AirflowApi(system.base_url, system.database_url)
            api.wait_for_dags(len(DAGS))
            api.run("chain_2", "warm-up-1", RUN_TIMEOUT_SECONDS)
            api.run("fanout_10", "warm-up-2", RUN_TIMEOUT_SECONDS)
            yield system, api
        finally:
            system.stop()


def measure(system: System, api: AirflowApi, case: Case) -> Measured:
    """Run one case as often as it asks."""
    measured = Measured(case, os.getloadavg()[0])
    for repeat in range(case.repeats):
        run_id = f"bench-{case.round_trip_ms:.0f}-{repeat}"
        if case.dag_id.startswith("sleepers"):
            _weigh(system, api, case, run_id, measured)
        else:
            _time(system, api, case, run_id, measured)
    return measured


def _time(system: System, api: AirflowApi, case: Case, run_id: str, measured: Measured) -> None:
    control, worker = _cpu(system)
    requests = _requests(system)
    state = api.run(case.dag_id, run_id, RUN_TIMEOUT_SECONDS)
    if state != "success":
        raise RuntimeError(f"{case}: the run ended {state}")
    _add_times(measured, api.times(case.dag_id, run_id))
    time.sleep(1.0)  # whoever still tidies up after the last task is counted too
    control_after, worker_after = _cpu(system)
    measured.control_cpu.append(control_after - control)
    measured.worker_cpu.append(worker_after - worker)
    if requests is not None:
        measured.requests_per_task.append((_requests(system) or 0) - requests)
        measured.requests_per_task[-1] /= measured.tasks


def _add_times(measured: Measured, times: Sequence[TaskTimes]) -> None:
    first, last = min(each.queued for each in times), max(each.committed for each in times)
    measured.tasks = len(times)
    measured.makespan.append((last - first).total_seconds())
    measured.queue_to_start += [(each.started - each.queued).total_seconds() for each in times]
    measured.start_to_commit += [(each.committed - each.started).total_seconds() for each in times]


def _weigh(system: System, api: AirflowApi, case: Case, run_id: str, measured: Measured) -> None:
    """Memory of the workers with all sleepers asleep, less what they hold when idle, by sleeper."""
    roots = system.worker_pids or system.control_pids
    idle = sum(processes.pss_bytes(processes.tree(roots)).values())
    api.trigger(case.dag_id, run_id)
    wanted = min(int(case.dag_id.rpartition("_")[2]), peers.SLOTS)
    deadline = time.monotonic() + 120
    while api.running(case.dag_id, run_id) < wanted and time.monotonic() < deadline:
        time.sleep(0.5)
    time.sleep(5.0)
    asleep = sum(processes.pss_bytes(processes.tree(roots)).values())
    measured.tasks = wanted
    measured.pss_per_sleeper_mb.append((asleep - idle) / wanted / 1e6)
    measured.makespan.append(60.0)
    measured.control_cpu.append(0.0)
    measured.worker_cpu.append(0.0)


def _cpu(system: System) -> tuple[float, float]:
    return processes.cpu_seconds(system.control_pids), processes.cpu_seconds(system.worker_pids)


def _requests(system: System) -> int | None:
    return sum(system.requests().values()) if isinstance(system, Edge) else None


def cases(quick: bool) -> dict[tuple[str, float], list[Case]]:
    """Return what is measured, grouped by the system and distance that it needs up."""
    plan: dict[tuple[str, float], list[Case]] = {}

    def add(system: str, round_trip_ms: float, **dags: int) -> None:
        plan[system, round_trip_ms] = [
            Case(system, dag_id, round_trip_ms, repeats) for dag_id, repeats in dags.items()
        ]

    if quick:
        add("local", 0, fanout_100=2, chain_10=2)
        add("airbridge", 0, fanout_100=2, chain_10=2)
        add("airbridge", 100, chain_10=2)
        return plan
    add("airbridge", 0, fanout_100=3, chain_10=3, backlog_500=1, backlog_1000=1, sleepers_8=1)
    add("local", 0, fanout_100=3, chain_10=3, sleepers_8=1)
    add("celery", 0, fanout_100=2, chain_10=2, sleepers_8=1)
    add("edge3", 0, fanout_100=1, chain_10=1, sleepers_8=1)
    for distance in (50, 100, 200):
        add("airbridge", distance, fanout_100=1, chain_10=2)
        add("celery", distance, fanout_100=1, chain_10=1)
    add("edge3", 100, chain_10=1)
    return plan


def ratios(found: dict[tuple[str, str, float], Measured]) -> dict[str, float]:
    """Compare AirBridge with the others, where both were measured."""

    def throughput(peer: str) -> float:
        return found["airbridge", "fanout_100", 0].throughput / found[peer, "fanout_100", 0].throughput

    def chain(distance: float) -> float:
        return found["airbridge", "chain_10", distance].seconds / found["local", "chain_10", 0].seconds

    wanted: dict[str, Callable[[], float]] = {
        "fanout_vs_local": lambda: throughput("local"),
        "fanout_vs_celery": lambda: throughput("celery"),
        "fanout_vs_edge3": lambda: throughput("edge3"),
        "chain_0ms_vs_local": lambda: chain(0),
        "chain_100ms_vs_local": lambda: chain(100),
    }
    answers = {}
    for name, compute in wanted.items():
        try:
            answers[name] = round(compute(), 2)
        except KeyError:
            continue
    return answers


def main() -> int:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fan-out and chain, AirBridge and LocalExecutor")
    parser.add_argument("--only", nargs="*", help="systems to measure, of: airbridge local celery edge3")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    found: dict[tuple[str, str, float], Measured] = {}
    for (name, distance), group in cases(options.quick).items():
        if options.only and name not in options.only:
            continue
        with started(name, distance) as (system, api):
            for case in group:
                measured = measure(system, api, case)
                found[case.system, case.dag_id, case.round_trip_ms] = measured
                _say(measured)
    report = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cpus": os.cpu_count(), "python": host.python_version(), "kernel": host.release()},
        "ratios": ratios(found),
        "cases": [measured.as_json() for measured in found.values()],
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report["ratios"], indent=2))
    return 0


def _say(measured: Measured) -> None:
    figures = measured.as_json()
    words = [
        f"{figures['system']:<10} {figures['dag']:<12} {figures['round_trip_ms']:>4.0f} ms",
        f"makespan {figures['makespan_s']} s, {figures['tasks_per_s']} tasks/s",
        f"queue to start {figures['queue_to_start_s']}",
        f"CPU a task: control {figures['control_cpu_s_per_task']}, worker {figures['worker_cpu_s_per_task']}",
    ]
    if measured.pss_per_sleeper_mb:
        words[1:] = [f"PSS a sleeper {figures['pss_mb_per_sleeper']} MB"]
    print("; ".join(words), file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
