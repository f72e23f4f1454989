"""Part "100,000 workers" of the results page: tables, text and picture of ``results/capacity.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from tests.benchmarks import chart
from tests.benchmarks.tables import table

PICTURE: Final = "performance-capacity.svg"
Figures = Mapping[str, Any]

_KINDS: Final = {
    "rest": "at rest, a second",
    "worker": "1,000 enrolled workers at rest, a second",
    "batch": "a batch of heartbeats",
    "heartbeat": "each heartbeat in it",
    "renewal": "a batch that renews leases, more",
    "lease": "each lease in it, more",
    "running": "a running task, a second",
    "placing": "placing and sending a task",
    "claim": "a claim",
    "exchange": "an exchange",
    "receive": "a poll through the gateway",
}
_CAUSES: Final = {
    "rest": "at rest",
    "worker": "statements over the table of workers",
    "batch": "batches of heartbeats",
    "heartbeat": "heartbeats in them",
    "renewal": "batches that renew leases",
    "lease": "leases in them",
    "running": "looking at running tasks",
    "placing": "placing and sending tasks",
    "claim": "claims",
    "exchange": "exchanges",
    "receive": "polls through the gateway",
}
_UNITS: Final = {"worker": 1e3}
"""Number of a kind that a row of the table is about, where it is not one."""


def text(results: Figures) -> str:
    """Return the part of the page."""
    return "\n\n".join(
        [
            _intro(results),
            "#### Cost of one",
            _costs(results),
            "#### Prediction and measurement",
            _validation(results),
            _latency(results),
            "#### Simulated",
            _simulated(results),
            "#### The database's share",
            _database_share(results),
            "#### Where the wall is",
            _wall(results),
            "#### What moves it",
            _moved(results),
            "#### Assumptions",
            _assumptions(results),
        ]
    )


def pictures(results: Figures) -> dict[str, str]:
    """Return the chart of utilisation by the number of workers."""
    reference = results["simulated"][-1]["deployment"]
    labels = {
        "gateways": f"{reference['gateways']} gateways",
        "Postgres": f"Postgres, {reference['postgres_cores']} cores",
        "schedulers": f"{reference['schedulers']} schedulers",
        "WAL": "WAL of the disk",
    }
    series: dict[str, list[tuple[float, float]]] = {
        label: [(each["deployment"]["workers"], each["shares"][name]) for each in results["drawn"]]
        for name, label in labels.items()
    }
    series["1 gateway, measured"] = [
        (each["workers"], each["gateway"]["measured"])
        for each in results["validation"]
        if each["fitted"] and each["transport"] == "direct" and each["workers"] >= 1_000
    ]
    title = "Modelled share of each resource that is used, by the number of workers"
    return {PICTURE: chart.lines(title, "workers", "share used", series)}


def _intro(results: Figures) -> str:
    stamps = results["measured_at"]
    return (
        f"Costs measured {stamps['costs']} by `make bench-costs`, at a load of {stamps['costs_load']}, and {', '.join(stamps['swarm'])} by `make bench-swarm`; modelled and simulated by "
        f"`make bench-capacity`.\n\n![Share of each resource by the number of workers]({PICTURE})"
    )


def _costs(results: Figures) -> str:
    costs = results["costs"]
    rows = []
    for kind, words in _KINDS.items():
        times = _UNITS.get(kind, 1.0)
        cpu = [
            _ms(costs[name][kind] * times) for name in ("gateway", "gateway_loop", "postgres", "scheduler")
        ]
        rows.append((words, *cpu, f"{costs['wal_bytes'][kind] * times / 1e3:.2f}"))
    heads = ["", "gateway, ms", "of which its event loop", "Postgres, ms", "scheduler, ms", "WAL, kB"]
    memory = results["memory_mb"]
    which = f"{_collinear(results)}{_busy(results)}"
    return (
        f"{table(heads, rows)}\n\n{which} A gateway has {memory['gateway']:.0f} MB, and {memory['connection'] * 1e3:.0f} kB for each connection. "
        f"{results['hot_updates_share']:.0%} of the updates of workers' rows changed no index; the table had "
        f"{results['worker_table_bytes_a_row'] / 1e3:.1f} kB a worker, dead rows included."
    )


def _busy(results: Figures) -> str:
    """Say so if other programs ran while the costs were measured."""
    load, cpus = results["measured_at"]["costs_load"], results["measured_at"]["costs_cpus"]
    if load < cpus:
        return ""
    return (
        f" At a load of {load} on {cpus} cores other programs ran beside the measurement: CPU of a request is then higher, and a gateway that does not keep up makes "
        "fewer batches than are counted, so that a batch and what is in it are badly distinguished. Measure again on a quiet machine before you rely on them."
    )


def _collinear(results: Figures) -> str:
    stages, together = results["not_told_apart_by_stages"], results["not_told_apart"]
    words = (
        f"The swarm's stages alone do not distinguish these: {_list(stages)}. `make bench-costs` therefore measures each by itself. "
        if stages
        else ""
    )
    if together:
        return (
            f"{words}Both together do not distinguish these, and only their sum is sure: {_list(together)}."
        )
    return f"{words}Both together distinguish all of them."


def _list(kinds: Sequence[str]) -> str:
    return "; ".join(_KINDS[kind] for kind in kinds)


def _validation(results: Figures) -> str:
    rows = []
    for each in results["validation"]:
        row: list[object] = [
            f"{each['workers']:,}",
            each["gateways"],
            "through the gateway" if each["transport"] == "gateway" else "from the queue",
            _fit(each),
        ]
        for resource in ("gateway", "postgres"):
            found = each[resource]
            row += [found["measured"], found["predicted"], _error(found)]
        rows.append(row)
    heads = [
        "workers",
        "gateways",
        "receiving",
        "predicted from",
        "gateways' CPU, cores",
        "predicted",
        "error",
        "Postgres's CPU, cores",
        "predicted",
        "error",
    ]
    return (
        "CPU of each stage of the swarm, and its prediction by a fit to everything but that stage. Stages in which requests failed, and those of several gateways, "
        f"which shared two cores with everything else, are no part of any fit.\n\n{table(heads, rows)}"
    )


def _fit(stage: Figures) -> str:
    if not stage["fitted"]:
        return "all phases and fitted stages"
    return "all others" if stage["blind"] else "all, itself included: no other has polls"


def _latency(results: Figures) -> str:
    rows = []
    for each in results["validation"]:
        if "latency" not in each:
            continue
        latency = each["latency"]
        row: list[object] = [f"{each['workers']:,}", latency["claims_within"]]
        for kind in ("heartbeat", "claim", "exchange"):
            row += [_p(latency[kind]["measured"]), _p(latency[kind]["simulated"])]
        rows.append(row)
    heads = [
        "workers",
        "tasks came within, s",
        "heartbeat, s (p50 / p95 / p99)",
        "simulated",
        "claim, s",
        "simulated",
        "exchange, s",
        "simulated",
    ]
    return (
        "Latencies of the stages of one gateway, measured and simulated, with Postgres on the core that it shared with scheduler, emulator and simulator: it is simulated as slower by the share that these need at rest. "
        f"{_worst(results)}\n\n{table(heads, rows)}"
    )


def _worst(results: Figures) -> str:
    """Say where simulation and measurement are furthest apart."""
    ratios = {
        (each["workers"], kind): found["simulated"]["p99"] / found["measured"]["p99"]
        for each in results["validation"]
        if "latency" in each
        for kind, found in each["latency"].items()
        if kind != "claims_within" and found["simulated"] and found["measured"].get("p99")
    }
    if not ratios:
        return "There is none."
    (workers, kind), ratio = max(ratios.items(), key=lambda item: max(item[1], 1 / max(item[1], 1e-6)))
    optimistic = (
        " What the processes on that core add to one another while all of them have work, as when many tasks come at once, is left out."
        if ratio < 1
        else ""
    )
    return f"At p99 they are furthest apart for {kind}s of {workers:,} workers: simulated {ratio:.2f} times the measured.{optimistic}"


def _simulated(results: Figures) -> str:
    rows = []
    for each in results["simulated"]:
        deployment = each["deployment"]
        if each["least_gateways"] is None:
            rows.append((f"{deployment['workers']:,}", "no number is enough", *[""] * 9))
            continue
        shares = each["shares"]
        rows.append(
            (
                f"{deployment['workers']:,}",
                each["least_gateways"],
                _p(each["seconds"]["heartbeat"]),
                _p(each["seconds"]["claim"]),
                f"{shares['gateways']:.0%}",
                f"{shares['Postgres']:.0%}",
                f"{shares['schedulers']:.0%}",
                f"{each['gateway_memory_mb']:,}",
                each["wal_mb_a_second"],
                f"{each['worker_rows_a_second']:,}",
                each["postgres_connections"],
            )
        )
    base = results["simulated"][-1]["deployment"]
    heads = [
        "workers",
        "gateways of a core, the least",
        "heartbeat, s (p50 / p95 / p99)",
        "claim, s",
        "each gateway",
        f"Postgres, {base['postgres_cores']} cores",
        f"{base['schedulers']} schedulers",
        "gateways' memory, MB",
        "WAL, MB/s",
        "workers' rows updated a second",
        "connections to Postgres, at most",
    ]
    return (
        f"Heartbeats every {base['heartbeat_interval']:g} s, {base['tasks_a_minute']:g} tasks a minute on each worker that take {base['task_minutes']:g} minutes each, received "
        f"from the queue, at random times. The least number of gateways is the one with which heartbeats and claims take less than a second at p99.\n\n{table(heads, rows)}"
    )


def _wall(results: Figures) -> str:
    reference = results["moved"]["as above"]
    deployment, at = reference["deployment"], reference["workers_at_wall"]
    first = min(at, key=at.__getitem__)
    rows = [
        (name, f"{reference['shares'][name]:.0%}", f"{workers:,}")
        for name, workers in sorted(at.items(), key=lambda item: item[1])
    ]
    after = sorted(at, key=at.__getitem__)[1]
    fixed = min((name for name in at if name != "gateways"), key=at.__getitem__)
    heads = ["", f"used at {deployment['workers']:,} workers", f"workers at {results['assumed']['wall']:.0%}"]
    return (
        f"With {_size(deployment)}, the first to reach {results['assumed']['wall']:.0%} is **{_name(first, deployment)}, at {at[first]:,} workers**; "
        f"then {_name(after, deployment)}, at {at[after]:,}. Gateways can be added; the wall that this does not move is {_name(fixed, deployment)}, at {at[fixed]:,} workers.\n\n{table(heads, rows)}"
    )


def _size(deployment: Figures) -> str:
    gateways, schedulers = deployment["gateways"], deployment["schedulers"]
    return (
        f"{gateways} gateway{'s' * (gateways > 1)} of one core each, a Postgres of {deployment['postgres_cores']} cores and "
        f"{schedulers} scheduler{'s' * (schedulers > 1)}"
    )


def _name(resource: str, deployment: Figures) -> str:
    words = {
        "gateways": "the core of each gateway",
        "Postgres": f"Postgres on {deployment['postgres_cores']} cores",
        "schedulers": "the core of each scheduler",
        "WAL": "the disk that takes the WAL",
    }
    return words[resource]


def _database_share(results: Figures) -> str:
    """Return how much of the platform's CPU is the database's, and what it is spent on."""
    reference = results["moved"]["as above"]
    names = ("gateway", "postgres", "scheduler")
    cores = {name: reference["cores"][name] for name in names}
    totals = {name: sum(cores[name].values()) for name in names}
    rows = [
        (
            words,
            *(f"{cores[name][kind]:.2f}" for name in names),
            f"{cores['postgres'][kind] / totals['postgres']:.0%}",
        )
        for kind, words in _CAUSES.items()
        if any(cores[name][kind] for name in names)
    ]
    rows.append(("all", *(f"{totals[name]:.2f}" for name in names), "100%"))
    heads = ["cores", "gateways", "Postgres", "schedulers", "of Postgres's"]
    share = totals["postgres"] / sum(totals.values())
    return (
        f"{reference['deployment']['workers']:,} workers on {_size(reference['deployment'])}. The database's share of the CPU of the three together is **{share:.0%}**."
        f"\n\n{table(heads, rows)}"
    )


def _moved(results: Figures) -> str:
    rows = []
    for name, each in results["moved"].items():
        at, deployment, shares = each["workers_at_wall"], each["deployment"], each["shares"]
        first = min(at, key=at.__getitem__)
        rows.append(
            (
                name,
                each["least_gateways"] or "no number is enough",
                f"{shares['gateways']:.0%} of {deployment['gateways']}",
                f"{shares['Postgres']:.0%} of {deployment['postgres_cores']}",
                f"{shares['schedulers']:.0%} of {deployment['schedulers']}",
                each["wal_mb_a_second"],
                f"{first}, at {at[first]:,}",
                f"{at['Postgres']:,}",
            )
        )
    workers = results["moved"]["as above"]["deployment"]["workers"]
    heads = [
        f"{workers:,} workers",
        "gateways, the least",
        "cores of gateways",
        "cores of Postgres",
        "cores of schedulers",
        "WAL, MB/s",
        "first wall, workers",
        "Postgres's wall, workers",
    ]
    return f"One thing changed in each row; the number of gateways stays, but for the column of the least.\n\n{table(heads, rows)}"


def _assumptions(results: Figures) -> str:
    assumed = results["assumed"]
    lines = [
        (
            "Measured: CPU of gateway, Postgres and scheduler by kind of request, WAL, memory, and the latencies of up to "
            f"{max(each['workers'] for each in results['validation']):,} workers. Everything about more of them is modelled: costs add up, "
            "and stay the same for each request whatever the number of workers."
        ),
        "Cores are those of the machine that measured, and each gateway has one of its own.",
        (
            f"Assumed, not measured: {assumed['round_trip'] * 1e3:g} ms from gateway to Postgres and back; {assumed['commit'] * 1e3:g} ms for a commit, which the Postgres of the measurements, "
            f"without `fsync` and `full_page_writes`, does not wait for, so that its WAL is a lower bound as well; a disk that takes {assumed['wal_limit'] / 1e6:g} MB of WAL a second, the base of an AWS gp3 volume."
        ),
        "Requests come at random times, one work item a claim and one task an exchange. Workers that all come back after a cut are [another measurement](reconnection.md).",
        (
            "A gateway is simulated as its code has it: one event loop; batches of up to 200 heartbeats at least 50 ms apart in one thread; 4 threads for claims, 8 for exchanges "
            "(`gateway_threads`), which have the interpreter in turns of 1 ms. Postgres is a number of cores over one queue of statements: waiting for row locks, vacuum and checkpoints are left out."
        ),
        "Two schedulers are taken to place twice as many tasks as one. Airflow's lock each other out of the pools' rows for part of their loop, so this is an upper bound.",
        "A scheduler looks at running tasks as often as it has time to, which is left out of its share; Postgres answers it for 20 runs of 100 tasks a second. Its costs are those of small tables; tables of millions of task instances cost more.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _error(found: Figures) -> str:
    return f"{found['predicted'] / found['measured'] - 1:+.0%}" if found["measured"] else ""


def _p(seconds: Figures) -> str:
    return " / ".join(f"{seconds[rank]:.2f}" for rank in ("p50", "p95", "p99")) if seconds else "none"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f}" if seconds < 0.0099 else f"{seconds * 1e3:.1f}"
