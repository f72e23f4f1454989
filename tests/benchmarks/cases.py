"""Cases: workloads on systems at distances, in the order in which they are run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """Kinds of case."""

    RUN = "run"
    """Run a DAG and time its tasks."""
    WEIGH = "weigh"
    """Weigh the workers while a DAG's tasks sleep."""
    BACKLOG = "backlog"
    """Queue several runs of a DAG at once; time their tasks, and weigh scheduler and gateway."""
    IDLE = "idle"
    """Leave the system alone, and count what it does all the same."""


@dataclass(frozen=True)
class Case:
    """A workload on a system at a distance. `round_trip_ms` is between worker and control plane."""

    system: str
    kind: Kind
    name: str
    dag_id: str = ""
    round_trip_ms: float = 0.0
    repeats: int = 1
    runs: int = 1
    """Runs of the DAG that are triggered together."""

    @property
    def key(self) -> tuple[str, str, float]:
        """What the case is known by in the results: its rounds have the same."""
        return self.system, self.name, self.round_trip_ms


@dataclass(frozen=True)
class Group:
    """Cases that need the same system up. `about_seconds` is how long they take, its start and stop included."""

    system: str
    round_trip_ms: float
    about_seconds: float
    cases: tuple[Case, ...]
    slots: int = 8


FIBONACCI = ("fibo_10_chain_10", "fibo_33_chain_10", "fibo_10_chain_40", "fibo_10_fanout_40")
"""Naive Fibonacci numbers, 33 in about a second and 10 in no time: the workload of windmill.dev's benchmark page, and a fan-out of it."""
FANOUT, CHAIN, SLEEPERS, IDLE = "fanout_100", "chain_10", "sleepers_8", "idle"


def _group(
    system: str, round_trip_ms: float, about_seconds: float, *cases: tuple[Kind, str, int], slots: int = 8
) -> Group:
    return Group(
        system,
        round_trip_ms,
        about_seconds,
        tuple(
            Case(system, kind, name, name, round_trip_ms, repeats)
            if kind is not Kind.BACKLOG
            else Case(system, kind, name, "fanout_100", round_trip_ms, 1, runs=repeats)
            for kind, name, repeats in cases
        ),
        slots,
    )


def _runs(fanouts: int, chains: int) -> tuple[tuple[Kind, str, int], ...]:
    cases = ((Kind.RUN, FANOUT, fanouts), (Kind.RUN, CHAIN, chains))
    return tuple(case for case in cases if case[2])


_QUICK = (
    _group("local", 0, 75, *_runs(2, 2)),
    _group("airbridge", 0, 60, *_runs(3, 3)),
    _group("airbridge", 100, 50, *_runs(0, 3)),
)

_WEIGH = (Kind.WEIGH, SLEEPERS, 1)
_IDLE = (Kind.IDLE, IDLE, 1)
_FIBONACCI = tuple((Kind.RUN, name, 1) for name in FIBONACCI)

_FULL = (
    # In rounds: a shared machine is twice as fast in one quarter of an hour as in the next.
    _group("local", 0, 110, *_runs(1, 2), _WEIGH),
    _group("airbridge", 0, 120, *_runs(1, 2), _WEIGH, _IDLE),
    _group("celery", 0, 60, *_runs(1, 2)),
    _group("airbridge", 100, 40, *_runs(1, 2)),
    _group("local", 0, 60, *_runs(1, 1)),
    _group("airbridge", 0, 40, *_runs(1, 1)),
    _group("celery", 0, 60, *_runs(1, 1)),
    _group("airbridge", 100, 40, *_runs(1, 1)),
    _group("local", 0, 60, *_runs(1, 1)),
    _group("airbridge", 0, 40, *_runs(1, 1)),
    _group("celery", 0, 60, *_runs(1, 1)),
    _group("edge3-5", 0, 200, *_runs(1, 1), _WEIGH),
    _group("airbridge", 0, 150, (Kind.WEIGH, "sleepers_200", 1), slots=200),
    _group(
        "airbridge",
        0,
        330,
        (Kind.BACKLOG, "backlog_100", 1),
        (Kind.BACKLOG, "backlog_1000", 10),
        (Kind.BACKLOG, "backlog_5000", 50),
    ),
    _group("edge3-5-1s", 0, 110, *_runs(1, 1)),
    _group("airbridge", 0, 75, *_FIBONACCI),
    _group("local", 0, 110, *_FIBONACCI),
    _group("local", 0, 110, (Kind.BACKLOG, "backlog_1000", 10)),
    _group("airbridge", 50, 40, *_runs(1, 2)),
    _group("airbridge", 200, 40, *_runs(1, 2)),
    _group("celery", 100, 80, *_runs(1, 1)),
    _group("edge3-1s", 0, 110, *_runs(1, 1)),
    _group("edge3", 0, 310, *_runs(1, 1), _WEIGH),
    _group("edge3-1s", 100, 110, *_runs(0, 1), _IDLE),
)
"""In order of importance: if the time is too short, groups are left out from the end."""


def repeats(groups: Iterable[Group]) -> dict[tuple[str, str, float], int]:
    """Return how often each case is measured, by its key, over all rounds."""
    counts: Counter[tuple[str, str, float]] = Counter()
    for group in groups:
        for case in group.cases:
            counts[case.key] += case.repeats
    return dict(counts)


def plan(*, quick: bool) -> tuple[Group, ...]:
    """Return what to measure, the most important first: what comes last is left out when time runs short."""
    return _QUICK if quick else _FULL
