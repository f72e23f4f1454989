"""The README's summary of what `make bench` and `make bench-swarm` measured: the same figures as on the results page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from tests.benchmarks.tables import table

Case = Mapping[str, Any]

SYSTEMS: Final = {
    "airbridge": "AirBridge",
    "local": "LocalExecutor",
    "celery": "Celery, Redis",
    "edge3-5": "edge3 5.1.0",
    "edge3-5-1s": "edge3 5.1.0 polling each second",
}
SWARM_WORKERS: Final = 1000


def text(results: Mapping[str, Any], swarmed: Mapping[str, Any] | None = None) -> str:
    """Return the table of the systems that were measured, and the sentence about many workers."""
    found = {(case["system"], case["case"], case["round_trip_ms"]): case for case in results["cases"]}
    systems = [each for each in SYSTEMS if (each, "fanout_100", 0) in found]
    rows = [
        ("100 tasks, tasks/s", *_row(found, systems, "fanout_100", 0, _throughput)),
        ("chain of ten, makespan", *_row(found, systems, "chain_10", 0, _makespan)),
        (
            "chain of ten, 100 ms from the control plane",
            *_row(found, systems, "chain_10", 100, _makespan),
        ),
        ("worker CPU per task", *_row(found, systems, "fanout_100", 0, _worker_cpu)),
    ]
    when = f"Measured {results['measured_at'][:10]}."
    parts = [when, table(["", *(SYSTEMS[each] for each in systems)], rows)]
    if swarmed is not None and (sentence := _many(swarmed)):
        parts.append(sentence)
    return "\n\n".join(parts)


def _row(
    found: Mapping[tuple[str, str, float], Case],
    systems: Sequence[str],
    name: str,
    distance: float,
    cell: Any,
) -> list[str]:
    return [cell(found[key]) if (key := (each, name, distance)) in found else "" for each in systems]


def _throughput(case: Case) -> str:
    return str(case["tasks_per_s"])


def _makespan(case: Case) -> str:
    return f"{case['makespan_s_median']:.2f} s"


def _worker_cpu(case: Case) -> str:
    return f"{case['cpu_ms_per_task']['worker']} ms"


def _many(swarmed: Mapping[str, Any]) -> str:
    for stage in swarmed["stages"]:
        if stage["workers"] == SWARM_WORKERS:
            p99 = stage["requests"]["heartbeat"]["seconds"]["p99"]
            return f"{SWARM_WORKERS:,} workers on one gateway core: heartbeats answered in {p99:.2f} s (p99)."
    return ""
