"""Tables and result files of the cut matrix."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.chaos import cuts_edge3
from tests.chaos.cuts import BOUNDARIES, Cell, is_whole, merged, read, spread, table, tables, write

CELL = Cell(
    "AirBridge",
    "black hole",
    "mid-run",
    31.0,
    "success",
    1,
    xcoms=True,
    log_whole=True,
    seconds_to_report=2.4,
)
LOG = "line 0 of process 7\nline 1 of process 7\nthe end after 2 lines\n"


def test_incomplete_logs_are_found() -> None:
    """Lost, doubled and swapped lines are found."""
    assert is_whole(LOG, 2)
    assert not is_whole(LOG.replace("line 0 of process 7\n", ""), 2)
    assert not is_whole(LOG + "line 1 of process 7\n", 2)
    assert not is_whole(LOG.replace("line 0", "line 9"), 2)
    assert not is_whole(LOG + "the end after 2 lines\n", 2)


def test_survived_means_all_of_it() -> None:
    """Success at the first try, with XComs and the log."""
    assert CELL.survived
    for change in ({"state": "failed"}, {"tries": 2}, {"xcoms": False}, {"log_whole": False}):
        assert not replace(CELL, **change).survived  # type: ignore[arg-type]


def test_longest_cut_has_own_worker() -> None:
    """The longest cut has a worker of its own; the others share one and run in sequence."""
    assert [[600.0], [1.0, 300.0]] == spread([1.0, 600.0, 300.0])
    assert [[31.0]] == spread([31.0])


def test_tables_and_files(tmp_path: Path) -> None:
    """A repeated measurement replaces the earlier one; a failed cell names its missing parts."""
    failed = replace(CELL, system="edge3", state="failed", xcoms=False)
    path = tmp_path / "cells.json"
    assert read(path) == []
    write(path, merged([CELL, failed], [replace(CELL, seconds_to_report=9.0)]))
    cells = read(path)
    assert [9.0, 2.4] == [cell.seconds_to_report for cell in cells]
    assert table(cells[:1]).splitlines()[-1] == "| mid-run | success (+9 s) |"
    assert "**failed**, no whole XComs" in tables(cells)


def test_edge3_shares_airbridges_boundaries() -> None:
    """Edge3 is cut at boundaries at which AirBridge is cut too, so that the results compare."""
    assert set(cuts_edge3.BOUNDARIES) <= set(BOUNDARIES)
