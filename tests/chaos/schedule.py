"""Schedule of one history: work, faults and kills with their times. Drawn from a seed, and from nothing else."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.support import weather
from tests.support.weather import Weather

WIDE, HASTY, CHAIN, MIXED = "chaos-wide", "chaos-hasty", "chaos-chain", "chaos-mixed"
WAITING, STORED = "chaos-waiting", "chaos-stored"
WIDTH, LENGTH, CALLS, MAPPED = 16, 5, 3, 3
WAITERS, STORED_MEMBERS = 4, 64
WORKERS = 2
TROUBLE_SECONDS = 10.0
"""Trouble begins in this span, and is over a little after it."""

Plan = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Run:
    """One run of a DAG with its plan, which `tests/chaos/dags/chaos.py` reads."""

    dag_id: str
    plan: Plan


@dataclass(frozen=True)
class Fault:
    """Bad weather on some links of one worker."""

    at: float
    seconds: float
    worker: int
    links: tuple[str, ...]
    weather: str

    @property
    def made(self) -> Weather:
        """The weather of this fault."""
        return weather.KINDS[self.weather]


@dataclass(frozen=True)
class Kill:
    """kill -9: of ``worker``, ``gateway`` or ``scheduler``; ``power`` also takes what the worker never synced."""

    at: float
    victim: str
    worker: int = 0
    down_seconds: float = 0.5
    mark_survives: bool = True


@dataclass(frozen=True)
class Duplicates:
    """Messages of work items that were sent before are sent again, those of finished tasks among them."""

    at: float
    count: int


@dataclass(frozen=True)
class Clear:
    """The running tasks of a run are cleared, as a click in the UI does; `run` counts the schedule's runs."""

    at: float
    run: int = 0
    deferred: bool = False
    """Its deferred tasks are cleared, too."""


@dataclass(frozen=True)
class Schedule:
    """The inputs of one history."""

    seed: int
    runs: tuple[Run, ...]
    faults: tuple[Fault, ...] = ()
    kills: tuple[Kill, ...] = ()
    duplicates: tuple[Duplicates, ...] = ()
    clears: tuple[Clear, ...] = ()
    after_starts: int = 0
    """Number of started tasks at which the faults' clock begins."""
    until: float = 4.0
    """Time at which the rescheduled sensor succeeds, in seconds from the beginning."""
    settle_seconds: float = 240.0
    """Time after the last fault in which everything must end; after that it counts as stuck."""
    name: str = field(default="random")


def draw(seed: int) -> Schedule:
    """Return the schedule of a seed."""
    rng = random.Random(seed)
    # Of their own, so that a seed's other runs, faults and kills are those that it had before there were these two.
    more = random.Random(f"region {seed}")
    return Schedule(
        seed=seed,
        runs=(
            *(Run(WIDE, _wide(rng)) for _ in range(4)),
            *(Run(CHAIN, _chain(rng)) for _ in range(3)),
            *(Run(MIXED, _mixed(rng)) for _ in range(2)),
            Run(WAITING, _waiting(more)),
            Run(STORED, {name: _flaky(more) for name in ("store", "load")}),
        ),
        faults=tuple(sorted((_fault(rng) for _ in range(rng.randint(3, 7))), key=lambda fault: fault.at)),
        kills=tuple(sorted(_kills(rng), key=lambda kill: kill.at)),
        duplicates=tuple(
            Duplicates(rng.uniform(1, TROUBLE_SECONDS + 2), rng.randint(3, 12))
            for _ in range(rng.randint(0, 2))
        ),
        until=rng.uniform(0.0, 6.0),
    )


def _seconds(rng: random.Random) -> float:
    return round(rng.choice([0.0, 0.0, rng.uniform(0.1, 1.0), rng.uniform(1.0, 5.0)]), 2)


def _flaky(rng: random.Random) -> dict[str, Any]:
    return {"fails": rng.choice([0, 0, 0, 1, 2]), "seconds": _seconds(rng)}


def _wide(rng: random.Random) -> Plan:
    kinds = ["succeed", "succeed", "succeed", "skip", "fail", "variable", "push"]
    plan: dict[str, dict[str, Any]] = {}
    for number in range(WIDTH):
        does = rng.choice(kinds)
        plan[f"t{number}"] = {**_flaky(rng), "does": does, "pushes": rng.randint(2, 12)}
    return plan


def _chain(rng: random.Random) -> Plan:
    return {f"c{number}": _flaky(rng) for number in range(LENGTH)}


def _mixed(rng: random.Random) -> Plan:
    names = ["first", "last", "rescheduled", "deferred", "mapped", *(f"calls_{n}" for n in range(CALLS))]
    return {name: _flaky(rng) for name in names}


def _waiting(rng: random.Random) -> Plan:
    """Return a plan of tasks that do not fail by themselves: an execution that fails is not deferred again before its retry."""
    return {f"w{number}": {"waits": round(rng.uniform(0.2, 6.0), 2)} for number in range(WAITERS)}


def _fault(rng: random.Random) -> Fault:
    kinds = [name for name in weather.KINDS if name != "fair"]
    links = rng.choice(
        [("gateway",), ("gateway",), ("sqs",), ("s3",), ("sqs", "s3"), ("gateway", "sqs", "s3")]
    )
    return Fault(
        at=round(rng.uniform(0.0, TROUBLE_SECONDS), 2),
        # Longer than the hasty tasks' lost_after now and then.
        seconds=round(rng.choice([rng.uniform(0.2, 2.0), rng.uniform(2.0, 5.0), rng.uniform(5.0, 9.0)]), 2),
        worker=rng.randrange(WORKERS),
        links=links,
        weather=rng.choice(kinds),
    )


def _kills(rng: random.Random) -> list[Kill]:
    kills = []
    for victim, chance in (("worker", 0.8), ("power", 0.5), ("gateway", 0.4), ("scheduler", 0.15)):
        if rng.random() < chance:
            kills.append(
                Kill(
                    at=round(rng.uniform(0.5, TROUBLE_SECONDS), 2),
                    victim=victim,
                    worker=rng.randrange(WORKERS),
                    down_seconds=round(rng.uniform(0.0, 3.0), 2),
                    mark_survives=rng.random() < 0.5,
                )
            )
    return kills
