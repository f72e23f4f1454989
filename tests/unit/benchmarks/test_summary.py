"""The README's figures are those of the results page."""

from __future__ import annotations

import re

from tests.benchmarks import summary
from tests.benchmarks.report import PAGE, README

CASE = {"tasks_per_s": 32.68, "makespan_s_median": 3.0601, "cpu_ms_per_task": {"worker": 31.7}}


def case(system: str, name: str, distance: float) -> dict[str, object]:
    return {**CASE, "system": system, "case": name, "round_trip_ms": distance}


def test_only_what_was_measured() -> None:
    """A system without a fan-out has no column; a case that was not run has an empty cell."""
    results = {
        "measured_at": "2026-01-02T03:04:05+00:00",
        "cases": [case("airbridge", "fanout_100", 0), case("airbridge", "chain_10", 100)],
    }
    found = summary.text(results)
    assert found.splitlines()[0] == "Measured 2026-01-02."
    assert "|  | AirBridge |" in found
    assert "| chain of ten, makespan |  |" in found
    assert "| chain of ten, 100 ms from the control plane | 3.06 s |" in found


def test_figures_stand_on_the_page() -> None:
    """Whatever the README claims, the page that it cites has."""
    [part] = re.findall(r"<!-- bench:summary -->(.*?)<!-- /bench:summary -->", README.read_text(), re.DOTALL)
    figures = re.findall(r"\| *([0-9.]+)(?= s\b| ms\b| \|)", part)
    assert len(figures) >= 8
    page = PAGE.read_text()
    assert [each for each in figures if each not in page] == []
