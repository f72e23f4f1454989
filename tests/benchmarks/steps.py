"""Where the time of a chain's task goes, step by step, at several distances, from the ledger and its events.

    python -m tests.benchmarks.steps                          # round trips of 0 and 100 ms
    python -m tests.benchmarks.steps --round-trip-ms 0 50

The worker's events have its own clock, which is this machine's. Writes ``tests/benchmarks/results/steps.json``.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from tests.benchmarks.airflow_api import AirflowApi
from tests.benchmarks.bench import started
from tests.benchmarks.cases import CHAIN, Group
from tests.benchmarks.systems import end_well

RESULTS: Final = Path(__file__).parent / "results" / "steps.json"
RUNS: Final = 6
EVENTS_SECONDS: Final = 30.0
"""Longest wait for a worker's events, which come with its heartbeats."""
STEPS: Final = {
    "scheduler": "the task before is settled, until the scheduler has placed this one",
    "queue": "placed, until the worker has the message: outbox and queue",
    "claim": "message received, until the gateway has granted it: one way to the gateway is in it",
    "answer": "granted, until the grant is in the worker's journal: one way back is in it",
    "start": "grant journalled, until the task's process runs",
    "task": "process runs, until its final state is recorded",
    "report": "recorded, until the final state is settled: one way to the gateway is in it",
}

# Seconds by the ledger's clock and by the worker's, for each task of a run in order.
_TIMES: Final = """
SELECT extract(epoch FROM w.placed_at), min(extract(epoch FROM e.at)) FILTER (WHERE e.event = 'message.received'),
       extract(epoch FROM w.claimed_at), min(extract(epoch FROM e.at)) FILTER (WHERE e.event = 'message.claimed'),
       min(extract(epoch FROM e.at)) FILTER (WHERE e.event = 'task.forked'),
       min(extract(epoch FROM e.began_at)) FILTER (WHERE e.event = 'report.delivered'), extract(epoch FROM w.settled_at)
FROM airbridge_work_item w JOIN airbridge_event e ON e.item_id = w.id
WHERE w.run_id = %s GROUP BY w.id ORDER BY w.placed_at
"""


def measure(round_trip_ms: float) -> dict[str, Any]:
    """Run chains at a distance; return the median milliseconds of each step."""
    spent: dict[str, list[float]] = {name: [] for name in STEPS}
    with started(Group("airbridge", round_trip_ms, 60.0, ())) as (_system, api):
        load = os.getloadavg()[0]
        for number in range(RUNS):
            api.run(CHAIN, f"steps-{number}", 300.0)
        for number in range(RUNS):
            for task in _tasks(_times(api, f"steps-{number}")):
                for name, milliseconds in task.items():
                    spent[name].append(milliseconds)
    medians = {name: round(statistics.median(found), 1) for name, found in spent.items()}
    return {
        "round_trip_ms": round_trip_ms,
        "load_before": round(load, 2),
        "tasks": len(spent["task"]),
        "ms": medians,
    }


def _times(api: AirflowApi, run_id: str) -> list[tuple[float, ...]]:
    deadline = time.monotonic() + EVENTS_SECONDS
    while True:
        rows = api.query(_TIMES, run_id)
        if rows and all(None not in row for row in rows):
            return [tuple(map(float, row)) for row in rows]
        if time.monotonic() > deadline:
            raise TimeoutError(f"not all events of {run_id} came within {EVENTS_SECONDS:.0f} s")
        time.sleep(1.0)


def _tasks(times: list[tuple[float, ...]]) -> Iterator[Mapping[str, float]]:
    """Yield the milliseconds of each step of every task but the first, which follows none."""
    for before, this in pairwise(times):
        moments = (before[-1], *this)
        yield {name: (end - start) * 1e3 for name, (start, end) in zip(STEPS, pairwise(moments), strict=True)}


def main() -> int:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--round-trip-ms", nargs="*", type=float, default=[0.0, 100.0])
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    logging.disable(logging.INFO)
    end_well()
    found = [measure(each) for each in options.round_trip_ms]
    report = {"measured_at": datetime.now(UTC).isoformat(timespec="seconds"), "distances": found}
    options.output.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
