"""The mutation check: with a promise taken out, the checker must find violations; with all in place, none.

Each mutant gets a history that leans on the promise it lacks.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from tests.chaos import agent
from tests.chaos.arena import Arena
from tests.chaos.checker import check
from tests.chaos.fleet import HOME_REGION, ROOT
from tests.chaos.schedule import (
    CHAIN,
    HASTY,
    MIXED,
    STORED,
    WAITERS,
    WAITING,
    WIDE,
    WIDTH,
    Clear,
    Fault,
    Kill,
    Run,
    Schedule,
)
from tests.chaos.violations import Kind, Violation
from tests.support.moto import free_port
from tests.support.platform import LocalPlatform, wait_for

from airbridge.control_plane.local import environment, ports
from airbridge.control_plane.local.process.privileges import child_setup
from airbridge.control_plane.local.services import airflow_config
from airbridge.executor.service_secrets import Service


@dataclass(frozen=True)
class Mutation:
    """One promise taken out, and the history that needs it."""

    name: str
    schedule: Schedule
    gateway: bool = False
    """True if it is a gateway of `tests.chaos.mutants`."""
    lacks: str = ""
    """What the tasks' processes lack, if anything: the DAG file plants it."""
    worker_env: Mapping[str, str] = field(default_factory=dict)
    finds: Kind | None = None
    """Kind of violation that the checker must find; None: any."""


def _all(seconds: float, **more: object) -> dict[str, dict[str, object]]:
    return {f"t{number}": {"seconds": seconds, **more} for number in range(WIDTH)}


EVERY_LINK = ("gateway", "sqs", "s3")

FENCING = Schedule(
    seed=1,
    name="a cut beyond lost_after",
    runs=(Run(HASTY, _all(6.0)),),
    # Every slot is taken. An attempt of the cut worker is fenced after 5 s and retried on the other worker; its process
    # ends in the cut all the same, and its late result arrives after the retry has begun.
    after_starts=12,
    faults=(Fault(0.2, 20.0, 0, EVERY_LINK, "black hole"),),
)
IDEMPOTENCY = Schedule(
    seed=2,
    name="answers lost",
    runs=(*(Run(MIXED, {}) for _ in range(3)), Run(WIDE, _all(0.3, does="push", pushes=4))),
    faults=tuple(
        Fault(at, 1.2, worker, ("gateway",), "answers lost")
        for at in (0.5, 2.5, 4.5, 6.5, 8.5)
        for worker in (0, 1)
    ),
)
POWER = Schedule(
    seed=3,
    name="a power cut after results were journalled",
    runs=(Run(WIDE, _all(2.0)), Run(WIDE, _all(2.0))),
    after_starts=10,
    faults=(Fault(0.2, 10.0, 0, ("gateway",), "black hole"), Fault(0.2, 10.0, 1, ("gateway",), "black hole")),
    # By then tasks of 2 s have ended, and their results are in the journals, which the cut keeps from being reported.
    kills=(Kill(6.0, "power", 0, mark_survives=False), Kill(6.5, "power", 1, mark_survives=False)),
)
# Each process goes on for twelve seconds after the order to end, and slots are free: enough for a next attempt that does
# not wait.
OVERLAP = Schedule(
    seed=4,
    name="running tasks cleared",
    runs=tuple(Run(CHAIN, {"c0": {"seconds": 8.0, "stubborn": 12.0}}) for _ in range(3)),
    after_starts=3,
    clears=tuple(Clear(0.5, run) for run in range(3)),
)
# Of triggers that fire after seconds: four runs, whose tasks of odd numbers have a `lost_after` of 5 s.
# The cut begins when all are deferred, and outlasts that; triggers that were lost begin again on the other worker, and
# events of the cut worker arrive before they fire there.
LOST_TRIGGERS = Schedule(
    seed=5,
    name="triggers lost in a cut",
    runs=tuple(Run(WAITING, {f"w{number}": {"waits": 11.0} for number in range(WAITERS)}) for _ in range(4)),
    after_starts=4 * WAITERS,
    faults=(Fault(5.0, 14.0, 0, EVERY_LINK, "black hole"),),
    settle_seconds=90.0,
)
CANCELLED_TRIGGERS = Schedule(
    seed=6,
    name="triggers cleared in a cut",
    runs=(Run(WAITING, {f"w{number}": {"waits": 9.0} for number in range(WAITERS)}),),
    after_starts=WAITERS,
    faults=tuple(Fault(5.0, 10.0, worker, EVERY_LINK, "black hole") for worker in (0, 1)),
    clears=(Clear(5.5, deferred=True),),
)
UNANSWERED_EVENTS = Schedule(
    seed=7,
    name="answers to events lost",
    runs=tuple(
        Run(WAITING, {f"w{number}": {"waits": 6.0 + number} for number in range(WAITERS)}) for _ in range(3)
    ),
    after_starts=3 * WAITERS,
    faults=tuple(
        Fault(at, 1.5, worker, ("gateway",), "answers lost") for at in range(3, 15, 2) for worker in (0, 1)
    ),
)
EVENTS_OF_A_CUT = Schedule(
    seed=8,
    name="workers killed in a cut after triggers fired",
    runs=(Run(WAITING, {f"w{number}": {"waits": 6.0} for number in range(WAITERS)}),),
    after_starts=WAITERS,
    faults=tuple(Fault(4.0, 9.0, worker, ("gateway",), "black hole") for worker in (0, 1)),
    kills=(Kill(11.5, "worker", 0), Kill(11.5, "worker", 1)),
)
STORED_VALUES = Schedule(
    seed=9,
    name="stored values, a bucket that refuses",
    runs=tuple(Run(STORED, {}) for _ in range(3)),
    faults=tuple(Fault(1.0, 1.5, worker, ("s3",), "refuse") for worker in (0, 1)),
    settle_seconds=90.0,
)
_PATIENT = {"AIRBRIDGE_WORKER_CANCEL_GRACE_SECONDS": "30", "AIRBRIDGE_WORKER_TASK_KILL_GRACE_SECONDS": "20"}

REGIONAL = (
    Mutation("no epoch of triggers", LOST_TRIGGERS, gateway=True, finds=Kind.FENCE),
    Mutation("no second grant of triggers", LOST_TRIGGERS, gateway=True, finds=Kind.STUCK),
    Mutation("no refusal of cancelled triggers", CANCELLED_TRIGGERS, gateway=True, finds=Kind.FENCE),
    Mutation("no memory of events", UNANSWERED_EVENTS, gateway=True, finds=Kind.DOUBLED),
    Mutation("no true time of events", EVENTS_OF_A_CUT, gateway=True, finds=Kind.DISAGREE),
    Mutation(
        "no journal of events",
        EVENTS_OF_A_CUT,
        worker_env={agent.LACKS: agent.JOURNAL_OF_EVENTS},
        finds=Kind.LOST,
    ),
    Mutation("no object before its reference", STORED_VALUES, lacks="objects", finds=Kind.REFERENCE),
)
MUTATIONS = (
    Mutation("no fencing", FENCING, gateway=True),
    Mutation("no idempotency key", IDEMPOTENCY, gateway=True),
    Mutation("no confirmed end", OVERLAP, gateway=True, worker_env=_PATIENT, finds=Kind.OVERLAP),
    *REGIONAL,
    Mutation("no fsync of the journal", POWER, worker_env={"AIRBRIDGE_WORKER_JOURNAL_FSYNC": "false"}),
)


@contextmanager
def mutated(arena: Arena, mutation: Mutation) -> Iterator[Arena]:
    """The arena with the promise taken out, until the block ends."""
    with ExitStack() as undo:
        if mutation.worker_env:
            arena.restart_workers(mutation.worker_env)
            undo.callback(arena.restart_workers, {})
        if mutation.gateway:
            arena.use_gateway(undo.enter_context(_gateway(arena.platform, mutation.name)))
            undo.callback(arena.use_gateway, None)
        arena.lacks = mutation.lacks
        undo.callback(setattr, arena, "lacks", "")
        yield arena


def found_by(arena: Arena, mutation: Mutation) -> list[Violation]:
    """Return the checker's findings in the mutation's history."""
    with mutated(arena, mutation):
        return check(arena.play(mutation.schedule))


@contextmanager
def _gateway(platform: LocalPlatform, name: str) -> Iterator[int]:
    """A mutant gateway beside the platform's own; its port."""
    port = free_port()
    log = platform.directory.log("mutant-gateway")
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.mutants", name],
            env={
                **environment.base(os.environ),
                **environment.aws_variables(HOME_REGION),
                **airflow_config.environment(platform.directory, Service.GATEWAY),
                "PYTHONPATH": str(ROOT),
                "AIRFLOW__AIRBRIDGE__GATEWAY_PORT": str(port),
                "AIRFLOW__AIRBRIDGE__OPERATOR_PORT": "0",
            },
            stdout=output,
            stderr=output,
            preexec_fn=child_setup(signal.SIGKILL),  # noqa: PLW1509 - it makes system calls only
        )
    try:
        wait_for(lambda: ports.is_open(port), f"the mutant gateway (see {log})", 120)
        yield port
    finally:
        process.kill()
        process.wait(10)
