"""Measured loads and what they cost: phases of ``costs.json``, and stages of ``swarm.json`` and its like."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from tests.benchmarks.sizing import cost_model
from tests.benchmarks.sizing.cost_model import KINDS, Load, Observation, batches, non_negative
from tests.benchmarks.sizing.deployments import Model

COSTS: Final = "costs.json"
STAGES: Final = ("swarm.json", "swarm-gateway.json", "swarm-four.json", "swarm-gateway-four.json")

PER_GATEWAY: Final = ("gateway", "gateway_loop")
_OF_TASKS: Final = ("rest", "worker", "running", "placing", "claim", "exchange")
_OF_REQUESTS: Final = (
    "rest",
    "worker",
    "batch",
    "heartbeat",
    "renewal",
    "lease",
    "claim",
    "exchange",
    "receive",
)
KINDS_OF: Final[Mapping[str, Sequence[str]]] = {
    "gateway": _OF_REQUESTS,
    "gateway_loop": _OF_REQUESTS,
    "postgres": KINDS,
    "scheduler": _OF_TASKS,
    "others": _OF_TASKS,
}
"""Kinds that take CPU of a resource; `others` are all processes of the platform but gateway and Postgres, and the AWS emulator."""
CPU_FLOOR: Final = 0.1
"""CPU seconds below which a phase of a few seconds is not measured: /proc counts each process in hundredths."""
WAL_FLOOR: Final = 100e3


@dataclass(frozen=True)
class Measured:
    """What the harness measured: phases of single kinds, and stages of the swarm."""

    costs: Mapping[str, Any]
    stages: Sequence[Mapping[str, Any]]

    @classmethod
    def read(cls, results: Path) -> Measured:
        """Read the results. Raises `FileNotFoundError` that names the command which writes what is missing."""
        if not (results / COSTS).exists():
            raise FileNotFoundError(f"{results / COSTS} is missing: make bench-costs writes it")
        if not (results / STAGES[0]).exists():
            raise FileNotFoundError(f"{results / STAGES[0]} is missing: make bench-swarm writes it")
        reports = [json.loads((results / name).read_text()) for name in STAGES if (results / name).exists()]
        stages = [
            {**stage, "measured_at": report["measured_at"], "cpus": report["cpus"]}
            for report in reports
            for stage in report["stages"]
        ]
        return cls(json.loads((results / COSTS).read_text()), stages)

    @property
    def single(self) -> list[Mapping[str, Any]]:
        """Stages of one gateway, whose core was its own, in which nothing failed."""
        return [
            stage
            for stage in self.stages
            if stage["gateways"] == 1 and not any(each["failed"] for each in stage["requests"].values())
        ]

    def observations(self, resource: str) -> list[Observation]:
        """Return what was measured of a resource, `wal` included."""
        found = [
            Observation(f"{each['phase']} {number}", phase_load(each), _spent(each, resource))
            for number, each in enumerate(self.costs["phases"])
        ]
        for stage in self.single:
            spent = stage_spent(stage, resource)
            if spent is not None:
                found.append(Observation(stage_name(stage), stage_load(stage), spent))
        return found

    @cached_property
    def model(self) -> Model:
        """Fitted model."""
        costs = {
            resource: cost_model.fit(self.observations(resource), CPU_FLOOR, kinds)
            for resource, kinds in KINDS_OF.items()
        }
        wal = cost_model.fit(self.observations("wal"), WAL_FLOOR)
        return Model(costs, wal, self._memory())

    def _memory(self) -> tuple[float, float]:
        rows = [(stage["gateways"], stage["connections"], stage["gateway_pss_mb"]) for stage in self.stages]
        scaled = [(gateways / mb, connections / 1e3 / mb) for gateways, connections, mb in rows]
        gateway, thousand = non_negative(scaled, [1.0] * len(rows))
        return gateway, thousand / 1e3

    @property
    def claims_within(self) -> float:
        """Seconds within which the tasks of the fastest round came from the queue; for stages that do not say it."""
        return min(each["span_seconds"] for each in self.costs["phases"] if "span_seconds" in each)


def phase_load(phase: Mapping[str, Any]) -> Load:
    """Return the load of a phase of `costs.json`."""
    seconds, heartbeats = phase["seconds"], phase.get("heartbeats", 0)
    made = batches(heartbeats / seconds, seconds)
    return Load(
        rest=seconds,
        worker=phase["workers"] * seconds,
        batch=made,
        heartbeat=heartbeats,
        renewal=made if phase.get("leases") else 0.0,
        lease=phase.get("leases", 0),
        running=phase.get("running", 0) * seconds,
        placing=phase.get("placed", 0),
        claim=phase.get("claims", 0),
        exchange=phase.get("exchanges", 0),
    )


def _spent(phase: Mapping[str, Any], resource: str) -> float:
    return float(phase["wal_bytes"] if resource == "wal" else phase["cpu_seconds"][resource])


def stage_name(stage: Mapping[str, Any]) -> str:
    """Return the name of a stage of the swarm."""
    return f"{stage['workers']} {stage['transport']} {stage['gateways']}"


def stage_load(stage: Mapping[str, Any], *, per_gateway: bool = False) -> Load:
    """Return the load of a stage of the swarm; the rest of every gateway, if `per_gateway`."""
    seconds, gateways = stage["seconds"], stage["gateways"]

    def answered(kind: str) -> int:
        return int(stage["requests"].get(kind, {}).get("answered", 0))

    claims, heartbeats = answered("claim"), answered("heartbeat")
    times = gateways if per_gateway else 1
    return Load(
        rest=seconds * times,
        worker=stage["workers"] * seconds * times,
        batch=gateways * batches(heartbeats / seconds / gateways, seconds),
        heartbeat=heartbeats,
        placing=claims,
        claim=claims,
        exchange=answered("exchange"),
        receive=answered("queue/receive"),
    )


def stage_spent(stage: Mapping[str, Any], resource: str) -> float | None:
    """Return what a stage spent of a resource; None if that was not measured."""
    if resource == "wal":
        return stage.get("wal_bytes")
    share = stage.get(f"{resource}_cpu_share_of_a_core")
    return None if share is None else share * stage["seconds"]
