"""Puts the harness's figures into docs/explanation/measurements/performance.md: its tables, between markers, and the pictures beside it; and a
summary into the README.

    python -m tests.benchmarks.report

Reads ``tests/benchmarks/results/``: `full.json` of ``make bench`` (`latest.json`, if there is none), `swarm.json` and its like of ``make bench-swarm``, `runner.json` of
``make bench-runner``, `capacity.json` of ``make bench-capacity``. What has not been measured leaves its part of the page as it is.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks import chart, summary
from tests.benchmarks.cases import FIBONACCI
from tests.benchmarks.sizing import page as capacity_page
from tests.benchmarks.sizing.measurements import STAGES
from tests.benchmarks.steps import STEPS
from tests.benchmarks.tables import table

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "tests" / "benchmarks" / "results"
PICTURES = ROOT / "docs" / "explanation" / "measurements"
PAGE = PICTURES / "performance.md"
README = ROOT / "README.md"
SWARM_PICTURE = "performance-swarm.svg"

NAMES = {
    "airbridge": "AirBridge",
    "local": "LocalExecutor",
    "celery": "Celery, Redis",
    "edge3": "edge3 1.1.3",
    "edge3-1s": "edge3 1.1.3 polling each second",
    "edge3-5": "edge3 5.1.0",
    "edge3-5-1s": "edge3 5.1.0 polling each second",
}
COLOURS = {"AirBridge": 0, "LocalExecutor": 1, "Celery": 2, "edge3": 3}
WANTED = {
    "fanout_vs_local": ("100 tasks: throughput, times LocalExecutor's", "at least 4"),
    "fanout_vs_celery": ("100 tasks: throughput, times Celery's", "at least 6"),
    "fanout_vs_edge3_5": ("100 tasks: throughput, times that of edge3 5.1.0", "at least 20"),
    "fanout_vs_edge3_5_polling_each_second": (
        "the same, edge3 5.1.0 polling each second in place of every 5 s",
        "at least 8",
    ),
    "fanout_vs_edge3": ("100 tasks: throughput, times that of edge3 1.1.3", "at least 15"),
    "fanout_vs_edge3_polling_each_second": (
        "the same, edge3 1.1.3 polling each second in place of every 5 s",
        "",
    ),
    "chain_0ms_vs_local": ("chain of ten: makespan, times LocalExecutor's", "at most 0.3"),
    "chain_100ms_vs_local": (
        "chain of ten at 100 ms: makespan, times LocalExecutor's without any distance",
        "at most 0.9",
    ),
    "local_worker_cpu_vs_worker": (
        "CPU of a task of the fan-out: LocalExecutor's worker and task processes, times all of AirBridge's worker",
        "at least 5",
    ),
    "local_cpu_vs_worker": (
        "the same, LocalExecutor's scheduler and api-server (all of its machine but the database) counted with it",
        "",
    ),
    "local_cpu_vs_all": (
        "the same, and AirBridge's control plane with its worker: everything but databases and AWS",
        "",
    ),
    "throughput_5000_vs_100": ("throughput with 5,000 tasks queued, times that with 100", "at least 0.9"),
}

# Of windmill.dev/docs/misc/benchmarks/competitors, Python, one worker, read on 2026-11-29.
PUBLISHED: Mapping[str, Mapping[str, float]] = {
    "Airflow, release 2.7.3, with Celery": {"fibo_33_chain_10": 54.668, "fibo_10_chain_40": 116.221},
    "Kestra 0.22.3": {"fibo_33_chain_10": 15.786, "fibo_10_chain_40": 6.044},
    "Prefect 2.14.4": {"fibo_33_chain_10": 15.489, "fibo_10_chain_40": 4.872},
    "Temporal 2.34.0": {"fibo_33_chain_10": 7.247, "fibo_10_chain_40": 2.967},
    "Hatchet 0.62.0": {"fibo_33_chain_10": 7.793, "fibo_10_chain_40": 1.222},
    "Windmill 1.483.1": {"fibo_33_chain_10": 8.347, "fibo_10_chain_40": 4.383},
    "Windmill 1.483.1, dedicated worker": {"fibo_33_chain_10": 7.701, "fibo_10_chain_40": 2.092},
}
PUBLISHED_WHERE = (
    "Published figures are of [windmill.dev's benchmark page](https://www.windmill.dev/docs/misc/benchmarks/competitors), on an AWS m4.large "
    "(two virtual cores of 2016, 8 GiB): compare the ratio to Airflow's own row in each place, not the seconds. Engines that keep a task's "
    "interpreter running (Temporal, Hatchet, dedicated workers) start no process for a task."
)

Case = Mapping[str, Any]


def _of(results: Mapping[str, Any], name: str) -> list[Case]:
    found = [case for case in results["cases"] if case["case"] == name]
    return sorted(found, key=lambda case: (list(NAMES).index(case["system"]), case["round_trip_ms"]))


def _who(case: Case) -> str:
    return f"{NAMES[case['system']]}, {case['round_trip_ms']:.0f} ms"


def _spread(case: Case) -> str:
    values = case["makespan_s"]
    return f"{min(values):.2f} to {max(values):.2f} ({len(values)})"


def _p(figures: Mapping[str, float]) -> str:
    return " / ".join(f"{figures[rank]:.2f}" for rank in ("p50", "p95", "p99"))


def about(results: Mapping[str, Any]) -> str:
    """Return date, machine, and the cases that failed or were left out."""
    machine = results["machine"]
    where = f"on {machine['cpus']} cores, Python {machine['python']}, Linux {machine['kernel']}"
    words = [
        f"Measured {results['measured_at']} by `{results['command']}` in {results['seconds']} s, {where}."
    ]
    words += [f"Left out for want of time: {each}." for each in results["left_out"]]
    words += [f"Failed: {each}." for each in results["failed"]]
    return "\n".join(words)


def ratios(results: Mapping[str, Any]) -> str:
    """Return the comparison, beside the required ratios."""
    found = results["ratios"]
    rows = [(words, wanted, found.get(name, "not measured")) for name, (words, wanted) in WANTED.items()]
    return table(["", "wanted", "measured"], rows)


def runs(results: Mapping[str, Any], name: str) -> str:
    """One workload on every system at every distance."""
    rows = [
        (
            _who(case),
            f"{case['makespan_s_median']:.2f}",
            _spread(case),
            case["tasks_per_s"],
            _p(case["queue_to_start_s"]),
            _p(case["start_to_commit_s"]),
            case["load_before"],
            f"{case['others_cpu_share']:.0%}",
        )
        for case in _of(results, name)
    ]
    heads = [
        "",
        "makespan, s",
        "of all runs",
        "tasks/s",
        "queue to start, s (p50 / p95 / p99)",
        "start to commit, s",
        "load before",
        "CPU of others",
    ]
    return table(heads, rows)


def cpu(results: Mapping[str, Any]) -> str:
    """CPU of a task, by component."""
    names = ("worker", "control", "scheduler", "gateway", "api-server", "dag-processor", "database", "broker")
    rows = [
        (_who(case), *(case["cpu_ms_per_task"].get(name, "") for name in names))
        for case in _of(results, "fanout_100")
    ]
    return table(["ms a task", *names], rows)


def traffic(results: Mapping[str, Any]) -> str:
    """Requests and bytes of a task, and of an idle minute."""
    rows: list[Sequence[object]] = []
    for name in ("fanout_100", "chain_10"):
        for case in _of(results, name):
            if "requests_per_task" in case:
                requests, sent = case["requests_per_task"], case.get("bytes_per_task", [])
                rows.append(
                    (_who(case), name, max(requests), f"{max(sent):,}" if sent else "")  # the worst repeat
                )
    for case in _of(results, "idle"):
        sent = case["bytes_per_minute"]
        rows.append(
            (
                _who(case),
                "idle, a minute",
                case["requests_per_minute"],
                f"{sent:,}" if sent is not None else "",
            )
        )
    return table(["", "", "requests", "bytes"], rows)


def idle(results: Mapping[str, Any]) -> str:
    """CPU of a system with nothing to do."""
    names = ("worker", "control", "scheduler", "gateway", "api-server", "dag-processor", "database", "broker")
    rows = [
        (_who(case), *(case["cpu_ms_per_s"].get(name, "") for name in names)) for case in _of(results, "idle")
    ]
    return table(["ms a second", *names], rows)


def memory(results: Mapping[str, Any]) -> str:
    """Memory of sleeping tasks."""
    rows = [
        (
            _who(case),
            case["sleepers_running"],
            case["pss_mb_per_sleeper"],
            case["pss_mb_workers_idle"],
            case["pss_mb_workers_with_sleepers"],
        )
        for name in ("sleepers_8", "sleepers_200")
        for case in _of(results, name)
    ]
    return table(["PSS, MB", "tasks asleep", "a task", "workers before", "workers with all asleep"], rows)


def backlog(results: Mapping[str, Any]) -> str:
    """Throughput and memory as work grows."""
    rows = [
        (
            NAMES[case["system"]],
            case["tasks"],
            case["tasks_per_s"],
            case["messages_on_queues_max"],
            *(
                f"{case['pss_mb_before'].get(name, '')} / {case['pss_mb_peak'].get(name, '')}"
                for name in ("scheduler", "gateway")
            ),
        )
        for count in (100, 1000, 5000)
        for case in _of(results, f"backlog_{count}")
    ]
    heads = [
        "",
        "tasks at once",
        "tasks/s",
        "messages on the queue at most",
        "scheduler, PSS MB before / at most",
        "gateway, PSS MB before / at most",
    ]
    return table(heads, rows)


def swarm(results: Mapping[str, Any]) -> str:
    """Many workers on one gateway."""
    rows = []
    for stage in results["stages"]:
        requests = stage["requests"]
        row: list[object] = [f"{stage['workers']:,}", *_ways(stage)]
        for kind in ("heartbeat", "claim", "exchange"):
            found = requests.get(kind)
            row.append(_p(found["seconds"]) if found and found["seconds"] else "none")
        late = requests["heartbeat"].get("sent_late") or {}
        row += [
            late.get("p99", "none"),
            _p(stage["heartbeat_interval_s"]) if stage.get("heartbeat_interval_s") else "10",
            sum(found["failed"] for found in requests.values()),
            stage["gateway_cpu_share_of_a_core"],
            stage["postgres_cpu_share_of_a_core"],
            stage["gateway_pss_mb"],
            stage.get("gateway_kb_per_connection", "none"),
        ]
        rows.append(row)
    heads = [
        "workers",
        "gateways",
        "receiving",
        "heartbeat, s (p50 / p95 / p99)",
        "claim, s",
        "exchange, s",
        "heartbeats sent late by the simulator, s (p99)",
        "interval given last, s",
        "failed",
        "gateways' CPU, cores",
        "Postgres's CPU, cores",
        "gateways' PSS, MB",
        "kB a connection",
    ]
    when = f"Measured {results['measured_at']} by `make bench-swarm`."
    return f"{when}\n\n![Latency and CPU by the number of workers]({SWARM_PICTURE})\n\n{table(heads, rows)}"


def _ways(stage: Mapping[str, Any]) -> tuple[int, str]:
    """Return how many gateways there were, and where the workers received."""
    through = stage.get("transport") == "gateway"
    return stage.get("gateways", 1), "through the gateway" if through else "from the queue"


def runner(results: Mapping[str, Any]) -> str:
    """A task on the worker by itself."""
    names = ("cpu_ms_per_task", "of_which_in_the_kernel", "page_faults_per_task", "wall_ms_p50")
    rows = [
        (words, *(results[kind][name] for name in names))
        for kind, words in (("warm", "from a parsed file"), ("cold", "file parsed in the task"))
    ]
    when = f"Measured {results['measured_at']} by `make bench-runner`, at a load of {results['load_before']}."
    heads = ["a no-op task", "CPU, ms", "of which in the kernel", "page faults", "wall, ms (p50)"]
    text = f"{when}\n\n{table(heads, rows)}"
    return f"{text}\n\n{_environment(results['environment'])}" if "environment" in results else text


def _environment(results: Mapping[str, Any]) -> str:
    """Warm tasks with and without an environment."""
    words = {
        "without": "without an environment",
        "nothing imported": "in an environment, nothing imported from it",
        "pandas imported": "in an environment, pandas imported by the file",
    }
    names = ("cpu_ms_per_task", "page_faults_per_task", "wall_ms_p50")
    rows = [
        (text, *(results["warm"][kind][name] for name in names), results["template_pss_mib"][kind])
        for kind, text in words.items()
    ]
    intro = f"From a parsed file, in turn in one run; the environment has {', '.join(results['packages'])}."
    heads = ["a no-op task", "CPU, ms", "page faults", "wall, ms (p50)", "its template, MiB (PSS)"]
    return f"{intro}\n\n{table(heads, rows)}"


def fibonacci(results: Mapping[str, Any]) -> str:
    """The Fibonacci workload, and what its authors published of others on a machine of theirs."""
    measured: dict[str, dict[str, Case]] = {}
    for name in FIBONACCI:
        for case in _of(results, name):
            measured.setdefault(_who(case), {})[name] = case
    if not measured:
        return "Not measured yet."
    rows: list[Sequence[object]] = [
        (
            who,
            "here",
            *(f"{found[name]['makespan_s_median']:.2f}" if name in found else "" for name in FIBONACCI),
        )
        for who, found in measured.items()
    ]
    rows += [
        (who, "published", *(found.get(name, "") for name in FIBONACCI)) for who, found in PUBLISHED.items()
    ]
    heads = ["makespan, s", "", *(name.replace("_", " ") for name in FIBONACCI)]
    return f"{PUBLISHED_WHERE}\n\n{table(heads, rows)}"


def steps(results: Mapping[str, Any]) -> str:
    """Return the part about the steps of a chain's task."""
    distances = results["distances"]
    rows = [(words, *(f"{each['ms'][name]:.0f}" for each in distances)) for name, words in STEPS.items()]
    rows.append(("all", *(f"{sum(each['ms'].values()):.0f}" for each in distances)))
    heads = ["ms a task, median", *(f"{each['round_trip_ms']:.0f} ms" for each in distances)]
    loads = " and ".join(str(each["load_before"]) for each in distances)
    return f"Measured {results['measured_at']} by `make bench-steps`, at loads of {loads}.\n\n{table(heads, rows)}"


def _draw(results: Mapping[str, Any]) -> dict[str, str]:
    fanout = [(_who(case), case["tasks_per_s"]) for case in _of(results, "fanout_100")]
    chain = [(_who(case), round(case["makespan_s_median"], 2)) for case in _of(results, "chain_10")]
    return {
        "performance-fanout.svg": chart.bars(
            "100 independent no-op tasks (more is better)", "tasks/s", fanout, COLOURS
        ),
        "performance-chain.svg": chart.bars(
            "A chain of ten no-op tasks, makespan (less is better)", "s", chain, COLOURS
        ),
    }


def _draw_swarm(results: Mapping[str, Any]) -> dict[str, str]:
    series: dict[str, list[tuple[float, float]]] = {}
    for stage in results["stages"]:
        gateways, receiving = _ways(stage)
        way = f"{gateways} gateway{'s' if gateways > 1 else ''}, {receiving}"
        seconds = stage["requests"]["heartbeat"]["seconds"]
        if seconds:
            series.setdefault(f"p99: {way}", []).append((stage["workers"], seconds["p99"]))
    title = "Heartbeats of many workers: seconds at p99"
    return {SWARM_PICTURE: chart.lines(title, "simulated workers", "seconds", series)}


PARTS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "about": about,
    "ratios": ratios,
    "fanout": lambda results: runs(results, "fanout_100"),
    "chain": lambda results: runs(results, "chain_10"),
    "cpu": cpu,
    "traffic": traffic,
    "idle": idle,
    "memory": memory,
    "backlog": backlog,
    "fibonacci": fibonacci,
}


def replace(page: str, name: str, text: str) -> str:
    """Return the page with `text` between the markers of `name`. Raises `ValueError` if it has no such markers."""
    begin, end = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(page):
        raise ValueError(f"the page has no part {begin} ... {end}")
    return pattern.sub(lambda _match: f"{begin}\n{text}\n{end}", page, count=1)


def main() -> int:
    """Rewrite the page and the pictures from whatever results there are."""
    page = PAGE.read_text()
    pictures: dict[str, str] = {}
    full, swarmed = RESULTS / "full.json", RESULTS / "swarm.json"
    latest = full if full.exists() else RESULTS / "latest.json"
    if latest.exists():
        results = json.loads(latest.read_text())
        for name, part in PARTS.items():
            page = replace(page, name, part(results))
        pictures |= _draw(results)
        many = json.loads(swarmed.read_text()) if swarmed.exists() else None
        README.write_text(replace(README.read_text(), "summary", summary.text(results, many)))
    if swarmed.exists():
        results = json.loads(swarmed.read_text())
        for more in map(RESULTS.joinpath, STAGES[1:]):
            if more.exists():
                results["stages"] += json.loads(more.read_text())["stages"]
        page = replace(page, "swarm", swarm(results))
        pictures |= _draw_swarm(results)
    ran = RESULTS / "runner.json"
    if ran.exists():
        page = replace(page, "runner", runner(json.loads(ran.read_text())))
    capacity = RESULTS / "capacity.json"
    if capacity.exists():
        results = json.loads(capacity.read_text())
        page = replace(page, "capacity", capacity_page.text(results))
        pictures |= capacity_page.pictures(results)
    stepped = RESULTS / "steps.json"
    if stepped.exists():
        page = replace(page, "steps", steps(json.loads(stepped.read_text())))
    PAGE.write_text(page)
    for name, svg in pictures.items():
        (PICTURES / name).write_text(svg)
    print(f"{PAGE.relative_to(ROOT)} and {len(pictures)} pictures written", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
