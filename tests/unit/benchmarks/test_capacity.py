"""Capacity of deployments that nobody measured."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from tests.benchmarks import capacity
from tests.benchmarks.sizing import deployments, measurements, page, simulation
from tests.benchmarks.sizing.cost_model import SPACING, Load, batches, cost
from tests.benchmarks.sizing.deployments import Deployment, is_fast
from tests.benchmarks.sizing.measurements import KINDS_OF, Measured

from airbridge.control_plane.gateway import server
from airbridge.control_plane.gateway.heartbeat import batcher
from airbridge.control_plane.gateway.threads import ThreadPools
from airbridge.executor.settings import Settings

GATEWAY = {
    "rest": 0.01,
    "worker": 0.0,
    "batch": 0.0025,
    "heartbeat": 0.0005,
    "renewal": 0.001,
    "lease": 0.0001,
}
GATEWAY |= {"running": 0.0, "placing": 0.0, "claim": 0.004, "exchange": 0.003, "receive": 0.001}
COSTS = {
    "gateway": GATEWAY,
    "gateway_loop": {**{kind: value / 2 for kind, value in GATEWAY.items()}, "receive": 0.0},
    "postgres": {**GATEWAY, "worker": 1e-6, "heartbeat": 0.00002, "placing": 0.003},
    "scheduler": {**dict.fromkeys(GATEWAY, 0.0), "rest": 0.05, "placing": 0.006},
    "others": {**dict.fromkeys(GATEWAY, 0.0), "rest": 0.2, "placing": 0.01},
    "wal": {**dict.fromkeys(GATEWAY, 0.0), "heartbeat": 500.0, "batch": 100.0, "claim": 5e3, "exchange": 5e3},
}


def phase(name: str, seconds: float, workers: int, **counts: float) -> dict[str, Any]:
    found = {"phase": name, "workers": workers, "gateways": 1, "seconds": seconds, **counts}
    load = measurements.phase_load(found)
    return {
        **found,
        "cpu_seconds": {name: cost(COSTS[name], load) for name in KINDS_OF},
        "wal_bytes": cost(COSTS["wal"], load),
        "worker_updates": counts.get("heartbeats", 0),
        "worker_hot_updates": counts.get("heartbeats", 0) // 2,
    }


def stage(workers: int, gateways: int = 1, transport: str = "direct") -> dict[str, Any]:
    seconds = {"p50": 0.02, "p95": 0.05, "p99": 0.06}
    kinds = {"heartbeat": 3 * workers, "claim": 200, "exchange": 200}
    if transport == "gateway":
        kinds["queue/receive"] = 2 * workers
    found: dict[str, Any] = {
        "workers": workers,
        "transport": transport,
        "gateways": gateways,
        "seconds": 30.0,
        "simulator_cpu_share_of_a_core": 0.05,
        "gateway_pss_mb": 120.0 * gateways + 0.06 * workers,
        "connections": workers,
        "requests": {kind: {"answered": n, "failed": 0, "seconds": seconds} for kind, n in kinds.items()},
    }
    for resource in ("gateway", "postgres"):
        load = measurements.stage_load(found, per_gateway=resource == "gateway")
        found[f"{resource}_cpu_share_of_a_core"] = cost(COSTS[resource], load) / 30.0
    return found


@pytest.fixture
def measured(tmp_path: Path) -> Measured:
    """Results of a platform whose costs are `COSTS`."""
    phases = [
        phase("rest", 15, 0),
        phase("rest", 15, 1_000),
        phase("heartbeats", 10, 1_000, heartbeats=7_000),
        phase("heartbeats", 20, 1_000, heartbeats=100),
        phase("renewals", 10, 1_000, heartbeats=1_000, leases=1_000),
        phase("renewals", 10, 1_000, heartbeats=4_000, leases=4_000),
        phase("placing", 5, 1_000, placed=200, span_seconds=2.0),
        phase("claims", 2, 1_000, claims=200),
        phase("exchanges", 3, 1_000, exchanges=200),
        phase("rest", 15, 51_000),
    ]
    costs = {
        "measured_at": "today",
        "load_before": 0.5,
        "cpus": 2,
        "worker_table_bytes_a_row": 900,
        "phases": phases,
    }
    (tmp_path / "costs.json").write_text(json.dumps(costs))
    swarms = {
        "swarm.json": [stage(10), stage(100), stage(1_000), stage(5_000)],
        "swarm-gateway.json": [stage(1_000, transport="gateway")],
        "swarm-four.json": [stage(1_000, gateways=4)],
    }
    for name, stages in swarms.items():
        (tmp_path / name).write_text(json.dumps({"measured_at": "today", "cpus": 2, "stages": stages}))
    return Measured.read(tmp_path)


def test_costs_are_found_in_results(measured: Measured) -> None:
    """Costs, and the memory of a gateway and of a connection, come out of the files as they went in."""
    for resource in ("gateway", "postgres"):
        assert measured.model.costs[resource] == pytest.approx(COSTS[resource], rel=0.01, abs=1e-7)
    assert measured.model.memory_mb == pytest.approx((120.0, 0.06), rel=0.01)


def test_stages_are_predicted(measured: Measured) -> None:
    """Each stage's CPU is predicted from the others, those of several gateways too, and latencies of one gateway are simulated."""
    found = list(capacity.validation(measured))
    assert 6 == len(found)
    for each in found:
        assert each["gateway"]["predicted"] == pytest.approx(each["gateway"]["measured"], rel=0.05)
    assert ["gateway"] == [each["transport"] for each in found if not each["blind"]]
    assert [False] == [each["fitted"] for each in found if each["gateways"] == 4]
    assert 4 == sum("latency" in each for each in found)


def test_wall_is_where_costs_say(measured: Measured) -> None:
    """A resource's wall is the number of workers whose costs are 70 % of it."""
    deployment = Deployment(gateways=2, postgres_cores=4, tasks_a_minute=0.0)
    wall = measured.model.wall(deployment)
    workers = wall["gateways"]
    a_second = Load(rest=1, batch=batches(workers / 20), heartbeat=workers / 20)
    assert cost(COSTS["gateway"], a_second) == pytest.approx(0.7, rel=0.02)
    assert wall["Postgres"] < measured.model.wall(replace(deployment, postgres_cores=8))["Postgres"]
    assert wall["gateways"] < measured.model.wall(replace(deployment, heartbeat_interval=30))["gateways"]


def test_more_gateways_never_raise_utilisation(measured: Measured) -> None:
    """Each of more gateways has less to do, while Postgres has more batches."""
    deployments = [Deployment(gateways=count) for count in range(1, 30)]
    shares = [measured.model.gateway(each) for each in deployments]
    assert sorted(shares, reverse=True) == shares
    databases = [measured.model.postgres(each) for each in deployments]
    assert sorted(databases) == databases


def test_least_number_of_gateways_is_fast(measured: Measured) -> None:
    """The least number of gateways answers in time, and one less does not."""
    least, outcome = measured.model.least_gateways(Deployment(workers=30_000))
    assert least.gateways > 1
    assert is_fast(outcome)
    fewer = replace(least, gateways=least.gateways - 1)
    assert not is_fast(measured.model.simulated(fewer))


def test_postgres_can_be_the_limit(measured: Measured) -> None:
    """Where Postgres has too little, no number of gateways is enough, and that is said."""
    deployment = Deployment(workers=30_000, tasks_a_minute=1.0, postgres_cores=1)
    with pytest.raises(ValueError, match="no number of gateways"):
        measured.model.least_gateways(deployment)


def test_missing_results_are_named(tmp_path: Path) -> None:
    """Results that are missing are named with the command that writes them."""
    with pytest.raises(FileNotFoundError, match="make bench-costs"):
        Measured.read(tmp_path)


def test_page_has_all_tables(measured: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page shows costs, predictions, simulations, the wall and what moves it, and a well-formed picture."""
    monkeypatch.setattr(capacity, "SIZES", (1_000, 3_000))
    found = json.loads(json.dumps(capacity.report(measured, Deployment(workers=3_000))))
    text = page.text(found)
    for head in ("Cost of one", "Prediction and measurement", "Simulated", "Where the wall is"):
        assert f"#### {head}\n" in text
    assert all(f"| {name} |" in text for name in capacity.variations(Deployment()))
    (picture,) = page.pictures(found).values()
    assert picture.startswith("<svg")


def test_model_has_numbers_of_gateway() -> None:
    """Threads, connections, batches and turns are those of the gateway's code."""
    threads = next(each.default for each in fields(Settings) if each.name == "gateway_threads")
    pools = ThreadPools.of(threads, connections=1)
    try:
        assert deployments.WORK_THREADS == pools.work.threads
        assert deployments.CLAIM_THREADS == pools.claims.threads
        assert deployments.CONNECTIONS_A_GATEWAY == pools.database_connections
    finally:
        pools.close()
    assert (SPACING, simulation.MOST_IN_A_BATCH) == (batcher.SPACING, batcher.MAX_BATCH)
    assert simulation.QUANTUM == server.SWITCH_SECONDS
