"""The benchmarks' computed figures, and their rendering in the results page."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.benchmarks import cases, chart, report
from tests.benchmarks.airflow_api import TaskTimes
from tests.benchmarks.bench import BUDGET_SECONDS, Report
from tests.benchmarks.cases import Case, Kind
from tests.benchmarks.delay import Counts
from tests.benchmarks.measured import Measured, percentiles, ratios

START = datetime(2025, 1, 1, tzinfo=UTC)


def task(queued: float, started: float, committed: float) -> TaskTimes:
    return TaskTimes(*(START + timedelta(seconds=each) for each in (queued, started, committed)))


def measured(name: str, *repeats: list[TaskTimes], worker_ms: float = 10.0) -> Measured:
    found = Measured(Case("airbridge", Kind.RUN, name), load_before=0.5)
    for times in repeats:
        found.add_times(times)
        cpu = {"worker": worker_ms / 1e3 * len(times), "control": 0.0}
        found.cpu.append(cpu)
        found.others_cpu_share.append(0.0)
    return found


def test_makespan_spans_queued_to_committed() -> None:
    """Makespan is from the first task queued to the last committed; repeats are kept, their median is the
    figure, and throughput follows from it.
    """
    short, long = [task(0, 1, 2), task(0, 2, 4)], [task(0, 1, 8), task(1, 2, 3)]
    figures = measured("fanout_100", short, long, short).as_json()
    assert [4.0, 8.0, 4.0] == figures["makespan_s"]
    assert 0.5 == figures["tasks_per_s"]
    assert {"control": 0.0, "worker": 10.0} == figures["cpu_ms_per_task"]


def test_rounds_are_one_case(tmp_path: Path) -> None:
    """Figures of a later round are added to the earlier ones, and what one round alone measured stays."""
    rounds = Report([tmp_path / "latest.json"], quick=False)
    first = measured("fanout_100", [task(0, 1, 2)])
    first.more = {"requests_per_task": [1.0], "pss": 3}
    second = measured("fanout_100", [task(0, 1, 6)])
    second.more = {"requests_per_task": [2.0]}
    rounds.add(first)
    rounds.add(second)
    [case] = rounds.write()["cases"]
    assert case["makespan_s"] == [2.0, 6.0]
    assert (case["repeats"], case["requests_per_task"], case["pss"]) == (2, [1.0, 2.0], 3)


def test_percentiles_are_values_that_were_measured() -> None:
    """Percentiles are measured values without interpolation: p50, p95 and p99 of a hundred; none of an empty list."""
    assert {"p50": 50, "p95": 95, "p99": 99} == percentiles([float(each) for each in range(100)])
    assert {} == percentiles([])


def test_ratios_are_of_what_was_measured() -> None:
    """Throughput is divided by the peer's, a chain's makespan by LocalExecutor's at no distance; missing figures give no ratio."""

    def run(seconds: float, tasks_per_s: float) -> dict[str, Any]:
        return {"makespan_s_median": seconds, "tasks_per_s": tasks_per_s}

    found = {
        ("airbridge", "fanout_100", 0.0): run(5, 20.0),
        ("celery", "fanout_100", 0.0): run(20, 5.0),
        ("airbridge", "chain_10", 100.0): run(3, 3.0),
        ("local", "chain_10", 0.0): run(2, 5.0),
    }
    assert {"fanout_vs_celery": 4.0, "chain_100ms_vs_local": 1.5} == ratios(found)


def test_every_ratio_is_shown() -> None:
    """Every computed ratio has a text on the page."""
    cpu = {"worker": 1.0, "control": 1.0}
    figures = {"makespan_s_median": 1.0, "tasks_per_s": 1.0, "cpu_ms_per_task": cpu}
    found = {
        (group.system, case.name, case.round_trip_ms): figures
        for group in cases.plan(quick=False)
        for case in group.cases
    }
    assert set(ratios(found)) == set(report.WANTED)


def test_page_part_is_replaced() -> None:
    """The text around the markers stays, and a page without the markers is refused by name."""
    page = "before\n<!-- bench:cpu -->\nold\n<!-- /bench:cpu -->\nafter\n"
    wanted = "before\n<!-- bench:cpu -->\nnew \\1\n<!-- /bench:cpu -->\nafter\n"
    assert wanted == report.replace(page, "cpu", "new \\1")
    with pytest.raises(ValueError, match="bench:chain"):
        report.replace(page, "chain", "new")


def test_page_has_all_markers() -> None:
    """`make bench-report` finds all its markers."""
    page = report.PAGE.read_text()
    for name in (*report.PARTS, "swarm", "runner", "capacity"):
        report.replace(page, name, "")


def test_labels_are_escaped_in_pictures() -> None:
    """A picture is well-formed, whatever is drawn."""
    picture = chart.bars("a < b", "s", [("x & y", 1.0), ("z", 0.0)], {})
    assert "a &lt; b" in picture
    assert "x &amp; y" in picture


def test_proxy_counts_readable_requests() -> None:
    """Heads of HTTP requests are counted in what passes, and every byte."""
    counts = Counts()
    counts.add(b"GET / HTTP/1.1\r\n\r\nPOST /x HTTP/1.1\r\n\r\n")
    counts.add(b"\x17\x03\x03")
    assert (2, 41) == (counts.requests, counts.passed_bytes)


def test_interrupted_run_is_resumed(tmp_path: Path) -> None:
    """Measured figures are kept, with the time that they took, and only the rest is measured: a case with all its rounds too."""
    output = tmp_path / "full.json"
    Report([output], quick=False).write()
    first = Report([output], quick=False)
    rounds = cases.repeats(cases.plan(quick=False))["airbridge", "chain_10", 0.0]
    for _ in range(rounds):
        first.add(measured("chain_10", [task(0, 1, 2)]))
    first.add(measured("fanout_100", [task(0, 1, 2)]))
    first.write()
    second = Report([output], quick=False)
    second.go_on_with(output)
    assert not second.lacks(Case("airbridge", Kind.RUN, "chain_10"))
    assert second.lacks(Case("airbridge", Kind.RUN, "fanout_100"))
    assert json.loads(output.read_text())["cases"][0]["makespan_s"] == [2.0] * rounds
    assert second.write()["cases"] == json.loads(output.read_text())["cases"][:1]


def test_old_run_is_not_resumed(tmp_path: Path) -> None:
    """An interrupted run is resumed only while it is fresh: its figures must be comparable with each other."""
    output = tmp_path / "full.json"
    old = (datetime.now(UTC) - timedelta(days=1)).isoformat()
    output.write_text(json.dumps({"measured_at": old, "seconds": 1, "cases": []}))
    with pytest.raises(ValueError, match="too old to go on with"):
        Report([output], quick=False).go_on_with(output)


def test_required_figures_fit_time_limit() -> None:
    """The figures that are required come before those for which the time may be too short."""
    groups = cases.plan(quick=False)
    wanted = {(g.system, g.round_trip_ms, case.name) for g in groups[:14] for case in g.cases}
    assert {
        *(
            (system, 0, name)
            for system in ("airbridge", "local", "celery", "edge3-5")
            for name in ("fanout_100", "chain_10")
        ),
        ("airbridge", 100, "chain_10"),
        ("airbridge", 0, "sleepers_200"),
        *(("airbridge", 0, f"backlog_{count}") for count in (100, 1000, 5000)),
    } <= wanted
    assert sum(group.about_seconds for group in groups[:14]) < BUDGET_SECONDS
