"""The figures of a case, and what is worked out from them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.benchmarks.airflow_api import TaskTimes
from tests.benchmarks.cases import CHAIN, FANOUT, Case

Found = Mapping[tuple[str, str, float], Mapping[str, Any]]
"""Figures by system, case and round trip."""


@dataclass
class Measured:
    """Figures of one case; a list has an entry for each repeat, or each task. Seconds, unless a name has another unit."""

    case: Case
    load_before: float
    tasks: int = 0
    makespan: list[float] = field(default_factory=list)
    queue_to_start: list[float] = field(default_factory=list)
    start_to_commit: list[float] = field(default_factory=list)
    cpu: list[dict[str, float]] = field(default_factory=list)
    """CPU seconds of each component, by repeat."""
    others_cpu_share: list[float] = field(default_factory=list)
    """Share of the machine's CPU time that went to anything else than the system and its database and broker."""
    more: dict[str, Any] = field(default_factory=dict)
    """Figures that only some cases have, under the names that they have in the results."""

    def add_times(self, times: Sequence[TaskTimes]) -> None:
        """Add the tasks of a repeat."""
        first, last = min(each.queued for each in times), max(each.committed for each in times)
        self.tasks = len(times)
        self.makespan.append((last - first).total_seconds())
        self.queue_to_start += [(each.started - each.queued).total_seconds() for each in times]
        self.start_to_commit += [(each.committed - each.started).total_seconds() for each in times]

    def go_on(self, later: Measured) -> None:
        """Add the repeats of a later round; what only one round measures is kept."""
        self.makespan += later.makespan
        self.queue_to_start += later.queue_to_start
        self.start_to_commit += later.start_to_commit
        self.cpu += later.cpu
        self.others_cpu_share += later.others_cpu_share
        for name, value in later.more.items():
            self.more[name] = [*self.more.get(name, []), *value] if isinstance(value, list) else value

    def as_json(self) -> dict[str, Any]:
        """Return the figures, rounded."""
        figures: dict[str, Any] = {
            "system": self.case.system,
            "case": self.case.name,
            "round_trip_ms": self.case.round_trip_ms,
            "repeats": len(self.makespan) or 1,
            "load_before": round(self.load_before, 2),
        }
        if self.makespan:
            seconds = statistics.median(self.makespan)
            figures |= {
                "tasks": self.tasks,
                "makespan_s": [round(value, 3) for value in self.makespan],
                "makespan_s_median": round(seconds, 3),
                "tasks_per_s": round(self.tasks / seconds, 2),
                "queue_to_start_s": percentiles(self.queue_to_start),
                "start_to_commit_s": percentiles(self.start_to_commit),
                "cpu_ms_per_task": self._cpu_ms_per_task(),
                "others_cpu_share": round(statistics.median(self.others_cpu_share), 3),
            }
        return figures | self.more

    def _cpu_ms_per_task(self) -> dict[str, float]:
        names = {name for repeat in self.cpu for name in repeat}
        return {
            name: round(statistics.median(repeat.get(name, 0.0) for repeat in self.cpu) / self.tasks * 1e3, 1)
            for name in sorted(names)
        }


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Return p50, p95 and p99."""
    ordered = sorted(values)
    return {
        f"p{rank}": round(ordered[min(len(ordered) - 1, int(len(ordered) * rank / 100))], 3)
        for rank in (50, 95, 99)
        if ordered
    }


def ratios(found: Found) -> dict[str, float]:
    """Compare AirBridge with the others, where both were measured.

    Throughput ratios above 1 mean that AirBridge is faster. Chain ratios are makespans: below 1 it is faster.
    """

    def throughput(peer: str) -> float:
        mine = found["airbridge", FANOUT, 0.0]["tasks_per_s"]
        return float(mine / found[peer, FANOUT, 0.0]["tasks_per_s"])

    def chain(round_trip_ms: float) -> float:
        mine = found["airbridge", CHAIN, round_trip_ms]["makespan_s_median"]
        return float(mine / found["local", CHAIN, 0.0]["makespan_s_median"])

    def local_cpu(theirs: Sequence[str], mine: Sequence[str] = ("worker",)) -> float:
        spent = {name: found[name, FANOUT, 0.0]["cpu_ms_per_task"] for name in ("local", "airbridge")}
        return float(
            sum(spent["local"][name] for name in theirs) / sum(spent["airbridge"][name] for name in mine)
        )

    def backlog() -> float:
        few, many = (found["airbridge", f"backlog_{count}", 0.0]["tasks_per_s"] for count in (100, 5000))
        return float(many / few)

    wanted: dict[str, Callable[[], float]] = {
        "fanout_vs_local": lambda: throughput("local"),
        "fanout_vs_celery": lambda: throughput("celery"),
        "fanout_vs_edge3": lambda: throughput("edge3"),
        "fanout_vs_edge3_polling_each_second": lambda: throughput("edge3-1s"),
        "fanout_vs_edge3_5": lambda: throughput("edge3-5"),
        "fanout_vs_edge3_5_polling_each_second": lambda: throughput("edge3-5-1s"),
        "chain_0ms_vs_local": lambda: chain(0.0),
        "chain_100ms_vs_local": lambda: chain(100.0),
        "local_worker_cpu_vs_worker": lambda: local_cpu(("worker",)),
        "local_cpu_vs_worker": lambda: local_cpu(("worker", "control")),
        "local_cpu_vs_all": lambda: local_cpu(("worker", "control"), ("worker", "control")),
        "throughput_5000_vs_100": backlog,
    }
    answers = {}
    for name, compute in wanted.items():
        try:
            answers[name] = round(compute(), 2)
        except KeyError:
            continue
    return answers
