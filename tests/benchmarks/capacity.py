"""100,000 workers by simulation of measured costs: gateways, Postgres and scheduler, where the wall is, and what moves it.

    python -m tests.benchmarks.capacity                                      # about half a minute, no server
    python -m tests.benchmarks.capacity --postgres-cores 16 --tasks-a-minute 1

Reads what ``tests/benchmarks/costs.py`` and ``tests/benchmarks/swarm.py`` measured, fits the cost of each kind of request
(``sizing/cost_model.py``), predicts every measured stage, and simulates deployments (``sizing/simulation.py``) that nobody measured. Writes
``tests/benchmarks/results/capacity.json``.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from tests.benchmarks.measured import percentiles
from tests.benchmarks.sizing import cost_model
from tests.benchmarks.sizing.cost_model import KINDS, Costs
from tests.benchmarks.sizing.deployments import (
    COMMIT,
    CONNECTIONS_A_GATEWAY,
    ROUND_TRIP,
    WAL_LIMIT,
    WALL,
    Deployment,
    Model,
)
from tests.benchmarks.sizing.measurements import (
    CPU_FLOOR,
    KINDS_OF,
    PER_GATEWAY,
    Measured,
    stage_load,
    stage_name,
)
from tests.benchmarks.sizing.simulation import Demand, Outcome, simulate

RESULTS: Final = Path(__file__).parent / "results"
SIZES: Final = (10_000, 30_000, 100_000)
DRAWN: Final = (1_000, 3_000, 10_000, 30_000, 100_000)


def validation(measured: Measured) -> Iterator[dict[str, Any]]:
    """Yield each stage's prediction from everything but itself, and its simulated latencies, beside the measured ones."""
    model = measured.model
    blind = {
        resource: cost_model.left_out(measured.observations(resource), CPU_FLOOR, KINDS_OF[resource])
        for resource in ("gateway", "postgres")
    }
    for stage in measured.stages:
        name, seconds = stage_name(stage), stage["seconds"]
        found: dict[str, Any] = {
            "workers": stage["workers"],
            "transport": stage["transport"],
            "gateways": stage["gateways"],
            "fitted": stage in measured.single,
            "blind": name in blind["gateway"] or stage not in measured.single,
        }
        for resource, predictions in blind.items():
            load = stage_load(stage, per_gateway=resource in PER_GATEWAY)
            predicted = predictions.get(name, cost_model.cost(model.costs[resource], load))
            found[resource] = {
                "measured": stage[f"{resource}_cpu_share_of_a_core"],
                "predicted": round(predicted / seconds, 3),
            }
        if stage in measured.single and stage["transport"] == "direct":
            found["latency"] = _latency(measured, stage)
        yield found


def _latency(measured: Measured, stage: Mapping[str, Any]) -> dict[str, Any]:
    model, seconds, load = measured.model, stage["seconds"], stage_load(stage)
    cores = max(1, stage["cpus"] - 1)
    at_rest = replace(load, placing=0, claim=0, exchange=0, heartbeat=0, batch=0)
    others = cost_model.cost(model.costs["others"], at_rest) + cost_model.cost(
        model.costs["postgres"], at_rest
    )
    share = others / seconds + stage["simulator_cpu_share_of_a_core"]
    deployment = Deployment(
        stage["workers"],
        seconds * stage["workers"] / load.heartbeat,
        tasks_a_minute=0.0,
        postgres_cores=cores,
    )
    platform = replace(
        model.platform(deployment), postgres_others=min(0.9, share / cores), round_trip=0.0, commit=0.0
    )
    within = stage["requests"]["claim"].get("span_seconds") or measured.claims_within
    demand = Demand(
        load.heartbeat / seconds,
        load.claim / seconds,
        exchange_follows=True,
        beside=model.costs["postgres"]["placing"],
        claims_within=within,
    )
    outcome = simulate(platform, demand, seconds)
    return {
        "claims_within": round(within, 2),
        **{
            kind: {
                "measured": stage["requests"][kind]["seconds"],
                "simulated": percentiles(outcome.seconds[kind]),
            }
            for kind in ("heartbeat", "claim", "exchange")
        },
    }


def figures(model: Model, deployment: Deployment, outcome: Outcome | None = None) -> dict[str, Any]:
    """Return the figures of a deployment, and of its simulation."""
    shares = {name: round(share, 3) for name, share in model.shares(deployment).items()}
    found: dict[str, Any] = {
        "deployment": asdict(deployment),
        "shares": shares,
        "cores": {
            name: {kind: round(cores, 4) for kind, cores in model.spent(deployment, name).items()}
            for name in ("gateway", "postgres", "scheduler")
        },
        "gateway_memory_mb": round(model.memory(deployment)),
        "wal_mb_a_second": round(model.wal_bytes(deployment) / 1e6, 2),
        "worker_rows_a_second": round(deployment.heartbeats),
        "postgres_connections": CONNECTIONS_A_GATEWAY * deployment.gateways,
        "tasks_a_second": round(deployment.tasks, 1),
        "workers_at_wall": model.wall(deployment),
    }
    if outcome is not None:
        found["seconds"] = {kind: percentiles(seconds) for kind, seconds in outcome.seconds.items()}
        found["simulated_shares"] = {
            "gateways": round(outcome.gateway_busy, 3),
            "Postgres": round(outcome.postgres_busy, 3),
        }
    return found


def variations(base: Deployment) -> dict[str, Deployment]:
    """Return what is tried in place of the base: one thing changed in each."""
    return {
        "as above": base,
        "heartbeats every 30 s": replace(base, heartbeat_interval=30.0),
        "heartbeats every 5 s": replace(base, heartbeat_interval=5.0),
        "tasks: a tenth": replace(base, tasks_a_minute=base.tasks_a_minute / 10),
        "tasks: ten times as many, a tenth as long": replace(
            base, tasks_a_minute=base.tasks_a_minute * 10, task_minutes=base.task_minutes / 10
        ),
        "tasks come in bursts of four times the rate": replace(base, burst=4.0),
        "Postgres: half the cores": replace(base, postgres_cores=base.postgres_cores // 2),
        "Postgres: twice the cores": replace(base, postgres_cores=base.postgres_cores * 2),
        "schedulers: twice as many": replace(base, schedulers=base.schedulers * 2),
        "gateways: twice as many": replace(base, gateways=base.gateways * 2),
        "workers receive through the gateway": replace(base, through_gateway=True),
    }


def _searched(model: Model, deployment: Deployment) -> dict[str, Any]:
    try:
        least, outcome = model.least_gateways(deployment)
    except ValueError:
        return {"deployment": asdict(deployment), "least_gateways": None}
    return {**figures(model, least, outcome), "least_gateways": least.gateways}


def report(measured: Measured, base: Deployment) -> dict[str, Any]:
    """Return everything that is written; simulations run side by side in processes."""
    model = measured.model
    # Not forked: a process that has threads, as a test's may have, must not be.
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        sizes = [pool.submit(_searched, model, replace(base, workers=size)) for size in SIZES]
        simulated = [each.result() for each in sizes]
        reference = replace(base, gateways=simulated[-1]["least_gateways"] or 1)
        tried = variations(reference)
        searches = {name: pool.submit(_searched, model, each) for name, each in tried.items()}
        moved = {
            name: {**figures(model, each), "least_gateways": searches[name].result()["least_gateways"]}
            for name, each in tried.items()
        }
    return {
        "measured_at": {
            "costs": measured.costs["measured_at"],
            "costs_load": measured.costs["load_before"],
            "costs_cpus": measured.costs["cpus"],
            "swarm": sorted({stage["measured_at"] for stage in measured.stages}),
        },
        "costs": {
            **{name: _rounded(costs, 7) for name, costs in model.costs.items()},
            "wal_bytes": _rounded(model.wal, 1),
        },
        "memory_mb": {"gateway": round(model.memory_mb[0], 1), "connection": round(model.memory_mb[1], 4)},
        "worker_table_bytes_a_row": measured.costs["worker_table_bytes_a_row"],
        "hot_updates_share": _hot_share(measured),
        "not_told_apart_by_stages": cost_model.unidentified([stage_load(each) for each in measured.single]),
        "not_told_apart": cost_model.unidentified([each.load for each in measured.observations("gateway")]),
        "assumed": {"round_trip": ROUND_TRIP, "commit": COMMIT, "wal_limit": WAL_LIMIT, "wall": WALL},
        "validation": list(validation(measured)),
        "simulated": simulated,
        "moved": moved,
        "drawn": [figures(model, replace(reference, workers=size)) for size in DRAWN],
    }


def _rounded(costs: Costs, digits: int) -> dict[str, float]:
    return {kind: round(costs[kind], digits) for kind in KINDS}


def _hot_share(measured: Measured) -> float:
    phases = measured.costs["phases"]
    updates = sum(each["worker_updates"] for each in phases)
    return round(sum(each["worker_hot_updates"] for each in phases) / updates, 3) if updates else math.nan


def main() -> int:
    """Simulate, and store."""
    base = Deployment()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--heartbeat-interval", type=float, default=base.heartbeat_interval, help="seconds")
    parser.add_argument("--tasks-a-minute", type=float, default=base.tasks_a_minute, help="of each worker")
    parser.add_argument("--task-minutes", type=float, default=base.task_minutes, help="length of a task")
    parser.add_argument("--postgres-cores", type=int, default=base.postgres_cores)
    parser.add_argument("--schedulers", type=int, default=base.schedulers)
    parser.add_argument("--output", type=Path, default=RESULTS / "capacity.json")
    options = vars(parser.parse_args())
    output: Path = options.pop("output")
    try:
        measured = Measured.read(RESULTS)
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    found = report(measured, replace(base, **options))
    output.write_text(json.dumps(found, indent=2) + "\n")
    print(f"{output} written", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
