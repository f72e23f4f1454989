"""AirBridge, LocalExecutor, Celery with Redis and edge3, on one machine, in turn, in one run. Measured, never asserted.

    python -m tests.benchmarks.bench --quick     # fan-out and chain: AirBridge and LocalExecutor
    python -m tests.benchmarks.bench             # every system, at round trips of 0, 50, 100 and 200 ms
    python -m tests.benchmarks.bench --resume    # go on with a whole run that was cut short

Prints each case as it is done and writes ``tests/benchmarks/results/latest.json`` after each case, and a whole
run ``full.json`` beside it, which a shorter one leaves alone. A system that does not start, or a case that fails, is
noted there and the rest goes on.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform as host
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.benchmarks import cases, processes
from tests.benchmarks.airflow_api import AirflowApi
from tests.benchmarks.cases import Case, Group, Kind
from tests.benchmarks.measured import Measured, ratios
from tests.benchmarks.systems import DAG_COUNT, System, Traffic, end_well, make

RESULTS = Path(__file__).parent / "results"
RUN_TIMEOUT_SECONDS = 420.0
WARM_UP_TIMEOUT_SECONDS = 150.0
IDLE_SECONDS = 30.0
PEER_BACKLOG_SECONDS = 75.0
"""Time for which a peer's memory is sampled under a backlog; it need not finish it."""
BUDGET_SECONDS = 1920.0
"""Groups that would end later than this after the start are left out, and named in the results."""
RESUMABLE_SECONDS = 6 * 3600.0
"""Greatest age of an interrupted run's figures for which it can be resumed."""


@contextmanager
def started(group: Group) -> Iterator[tuple[System, AirflowApi]]:
    """Bring a system up with the workloads parsed and two warm-up runs behind it; take it down."""
    with tempfile.TemporaryDirectory(prefix=f"airbridge-bench-{group.system}-") as folder:
        Path(folder).chmod(0o755)
        system = make(group.system, Path(folder) / "home", group.round_trip_ms, group.slots)
        try:
            system.start()
            api = AirflowApi(system.base_url, system.database_url)
            api.wait_for_dags(DAG_COUNT)
            api.watch_states()
            api.run("chain_2", "warm-up-1", WARM_UP_TIMEOUT_SECONDS)
            api.run("fanout_10", "warm-up-2", WARM_UP_TIMEOUT_SECONDS)
            time.sleep(2.0)
            yield system, api
        finally:
            system.stop()


def measure(system: System, api: AirflowApi, case: Case) -> Measured:
    """Run one case with its repeats."""
    measured = Measured(case, os.getloadavg()[0])
    for repeat in range(case.repeats):
        run_id = f"{case.name}-{case.round_trip_ms:.0f}-{repeat}"
        match case.kind:
            case Kind.RUN:
                _time(system, api, case, run_id, measured)
            case Kind.WEIGH:
                _weigh(system, api, case, run_id, measured)
            case Kind.BACKLOG:
                _pile_up(system, api, case, run_id, measured)
            case Kind.IDLE:
                _leave_alone(system, measured)
    return measured


def _time(system: System, api: AirflowApi, case: Case, run_id: str, measured: Measured) -> None:
    with _accounted(system, measured):
        state = api.run(case.dag_id, run_id, RUN_TIMEOUT_SECONDS)
        time.sleep(1.0)  # processes that still tidy up after the last task are counted too
    if state != "success":
        raise RuntimeError(f"{case}: the run ended {state}")
    measured.add_times(api.times(case.dag_id, run_id))


@contextmanager
def _accounted(system: System, measured: Measured) -> Iterator[None]:
    """Add CPU time and traffic of what happens in the block to the figures."""
    cpu, traffic = system.cpu_seconds(), Traffic(*system.traffic())
    began, busy = time.monotonic(), processes.machine_busy_seconds()
    yield
    spent = {name: seconds - cpu.get(name, 0.0) for name, seconds in system.cpu_seconds().items()}
    passed = Traffic(*system.traffic()).since(traffic)
    total = (time.monotonic() - began) * (os.cpu_count() or 1)
    ours = sum(spent[name] for name in ("control", "worker", "database", "broker"))
    others = processes.machine_busy_seconds() - busy - ours
    measured.cpu.append(spent)
    measured.others_cpu_share.append(max(0.0, others / total))
    count = {"fanout_100": 100, "chain_10": 10}.get(measured.case.name)
    if count:
        if passed.requests is not None:
            measured.more.setdefault("requests_per_task", []).append(round(passed.requests / count, 2))
        if passed.bytes is not None:
            measured.more.setdefault("bytes_per_task", []).append(round(passed.bytes / count))


def _weigh(system: System, api: AirflowApi, case: Case, run_id: str, measured: Measured) -> None:
    """Memory of the workers with all sleepers asleep, less what they hold when idle, by sleeper."""
    idle = processes.total_pss_mb(system.worker_pids())
    api.trigger(case.dag_id, run_id)
    wanted = int(case.dag_id.rpartition("_")[2])
    deadline = time.monotonic() + 90
    while (running := api.states(case.dag_id, run_id).get("running", 0)) < wanted:
        if time.monotonic() > deadline:
            break
        time.sleep(0.5)
    time.sleep(4.0)
    asleep = processes.total_pss_mb(system.worker_pids())
    measured.more |= {
        "sleepers_running": running,
        "pss_mb_workers_idle": round(idle, 1),
        "pss_mb_workers_with_sleepers": round(asleep, 1),
        "pss_mb_per_sleeper": round((asleep - idle) / max(1, running), 1),
    }
    api.wait(case.dag_id, run_id, RUN_TIMEOUT_SECONDS)


def _pile_up(system: System, api: AirflowApi, case: Case, run_id: str, measured: Measured) -> None:
    """Queue `case.runs` runs of a DAG at once and wait for all; follow the memory of scheduler and gateway."""
    runs = [f"{run_id}-{number}" for number in range(case.runs)]
    before = _memory(system)
    peak = dict(before)
    deepest = 0
    with _accounted(system, measured):
        for each in runs:
            api.trigger(case.dag_id, each)
        patience = RUN_TIMEOUT_SECONDS if case.system == "airbridge" else PEER_BACKLOG_SECONDS
        deadline = time.monotonic() + patience
        while api.unfinished_runs(case.dag_id) and time.monotonic() < deadline:
            time.sleep(1.0)
            peak = {name: max(value, peak[name]) for name, value in _memory(system).items()}
            deepest = max(deepest, api.messages_on_queues())
    times = [each for run in runs for each in api.times(case.dag_id, run)]
    measured.add_times(times)
    measured.more |= {
        "tasks_unfinished": case.runs * 100 - len(times),
        "pss_mb_before": before,
        "pss_mb_peak": peak,
        "messages_on_queues_max": deepest,
    }


def _memory(system: System) -> dict[str, float]:
    return {name: round(processes.total_pss_mb([pid]), 1) for name, pid in system.main_pids().items()}


def _leave_alone(system: System, measured: Measured) -> None:
    time.sleep(10.0)
    cpu, traffic = system.cpu_seconds(), Traffic(*system.traffic())
    time.sleep(IDLE_SECONDS)
    passed = Traffic(*system.traffic()).since(traffic)
    spent = {name: seconds - cpu.get(name, 0.0) for name, seconds in system.cpu_seconds().items()}
    minutes = IDLE_SECONDS / 60
    measured.more |= {
        "requests_per_minute": None if passed.requests is None else round(passed.requests / minutes, 1),
        "bytes_per_minute": None if passed.bytes is None else round(passed.bytes / minutes),
        "cpu_ms_per_s": {name: round(value / IDLE_SECONDS * 1e3, 1) for name, value in sorted(spent.items())},
    }


class Report:
    """Results so far, written after each group."""

    def __init__(self, outputs: Sequence[Path], *, quick: bool) -> None:
        self._outputs = outputs
        self._began = time.monotonic()
        self._found: dict[tuple[str, str, float], dict[str, Any]] = {}
        self._measured: dict[tuple[str, str, float], Measured] = {}
        self._before_seconds = 0.0
        self._quick = quick
        self._left_out: list[str] = []
        self._failed: list[str] = []

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    def go_on_with(self, path: Path) -> None:
        """Take over the finished figures of a run that was cut short. Raises `ValueError` if they are too old."""
        before = json.loads(path.read_text())
        age = datetime.now(UTC) - datetime.fromisoformat(before["measured_at"])
        if age.total_seconds() > RESUMABLE_SECONDS:
            raise ValueError(f"{path} is of {before['measured_at']}: too old to go on with; run it anew")
        self._before_seconds = float(before["seconds"])
        planned = cases.repeats(cases.plan(quick=self._quick))
        for case in before["cases"]:
            key = case["system"], case["case"], case["round_trip_ms"]
            if case["repeats"] >= planned.get(key, 0):
                self._found[key] = case

    def lacks(self, case: Case) -> bool:
        """Return whether there are no figures of a case yet."""
        return case.key not in self._found

    def add(self, measured: Measured) -> None:
        """Add a case's figures to those of earlier rounds, and print them."""
        kept = self._measured.setdefault(measured.case.key, measured)
        if kept is not measured:
            kept.go_on(measured)
        figures = kept.as_json()
        self._found[measured.case.key] = figures
        _say(f"  {self.seconds:5.0f} s  {_in_words(figures)}")

    def leave_out(self, what: str) -> None:
        """Note what there was no time for."""
        self._left_out.append(what)
        _say(f"  {self.seconds:5.0f} s  left out for want of time: {what}")

    def fail(self, what: str, error: BaseException) -> None:
        """Note what did not work."""
        self._failed.append(f"{what}: {type(error).__name__}: {error}")
        _say(f"  {self.seconds:5.0f} s  FAILED: {self._failed[-1]}")
        traceback.print_exception(error)

    def write(self) -> dict[str, Any]:
        """Write the results, and return them."""
        report = {
            "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": "make bench-quick" if self._quick else "make bench",
            "seconds": round(self._before_seconds + self.seconds),
            "machine": {"cpus": os.cpu_count(), "python": host.python_version(), "kernel": host.release()},
            "ratios": ratios(self._found),
            "left_out": self._left_out,
            "failed": self._failed,
            "cases": list(self._found.values()),
        }
        for output in self._outputs:
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(json.dumps(report, indent=2) + "\n")
        return report


def run(groups: Sequence[Group], report: Report, budget_seconds: float) -> None:
    """Measure group by group. Nothing that goes wrong in one keeps the next from being measured."""
    for group in groups:
        name = f"{group.system} at {group.round_trip_ms:.0f} ms ({', '.join(c.name for c in group.cases)})"
        if report.seconds + group.about_seconds > budget_seconds:
            report.leave_out(name)
            continue
        _say(f"{report.seconds:7.0f} s  {name}; load {os.getloadavg()[0]:.2f}")
        try:
            with started(group) as (system, api):
                for case in group.cases:
                    try:
                        report.add(measure(system, api, case))
                        report.write()
                    except Exception as error:  # noqa: BLE001 - the outer edge of a case
                        report.fail(f"{name}, {case.name}", error)
        except Exception as error:  # noqa: BLE001 - the outer edge of a group
            report.fail(name, error)
        report.write()


def main() -> int:
    """Measure, print, store. Exit code 1 if anything failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fan-out and chain, AirBridge and LocalExecutor")
    parser.add_argument(
        "--only",
        nargs="*",
        help="systems to measure, of: airbridge local celery edge3 edge3-1s edge3-5 edge3-5-1s",
    )
    parser.add_argument("--cases", nargs="*", help="cases to measure, by name (fanout_100, chain_10, ...)")
    parser.add_argument("--budget-seconds", type=float, default=BUDGET_SECONDS)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--resume", action="store_true", help="measure only what the last run has not")
    options = parser.parse_args()
    logging.disable(logging.INFO)
    end_well()
    outputs = [options.output] if options.output else [RESULTS / "latest.json"]
    if not (options.output or options.quick or options.only or options.cases):
        outputs.append(RESULTS / "full.json")
    report = Report(outputs, quick=options.quick)
    if options.resume:
        report.go_on_with(outputs[-1])
    run(_chosen(options, report), report, options.budget_seconds)
    written = report.write()
    print(json.dumps(written["ratios"], indent=2))
    return 1 if written["failed"] else 0


def _chosen(options: argparse.Namespace, report: Report) -> list[Group]:
    groups = []
    for group in cases.plan(quick=options.quick):
        named = (case for case in group.cases if not options.cases or case.name in options.cases)
        wanted = tuple(case for case in named if report.lacks(case))
        if wanted and (not options.only or group.system in options.only):
            groups.append(Group(group.system, group.round_trip_ms, group.about_seconds, wanted, group.slots))
    return groups


def _in_words(figures: dict[str, Any]) -> str:
    words = [f"{figures['system']:<10} {figures['case']:<12} {figures['round_trip_ms']:>4.0f} ms"]
    if "tasks_per_s" in figures:
        cpu = figures["cpu_ms_per_task"]
        words += [
            f"makespan {figures['makespan_s']} s",
            f"{figures['tasks_per_s']} tasks/s",
            f"queue to start {figures['queue_to_start_s']}",
            f"start to commit {figures['start_to_commit_s']}",
            f"CPU ms a task: worker {cpu['worker']}, control {cpu['control']}",
            f"others took {figures['others_cpu_share']:.0%} of the machine",
        ]
    skipped = {
        "makespan_s",
        "makespan_s_median",
        "tasks",
        "tasks_per_s",
        "queue_to_start_s",
        "start_to_commit_s",
    }
    skipped |= {
        "cpu_ms_per_task",
        "others_cpu_share",
        "system",
        "case",
        "round_trip_ms",
        "repeats",
        "load_before",
    }
    words += [f"{name} {value}" for name, value in figures.items() if name not in skipped]
    return "; ".join(words)


def _say(line: str) -> None:
    with suppress(BrokenPipeError):
        print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
