"""A DAG run over regions: attempts, moves of XComs, and the drawing of them."""

from __future__ import annotations

import itertools
import re
import time
from typing import Any
from uuid import uuid4

from tests.support import runs
from tests.support.airflow_home import Metadata
from tests.support.items import new_item

from airbridge.control_plane.dashboard.drawings import run_map
from airbridge.control_plane.read_model.history import run
from airbridge.executor.ledger import events, items, leases
from airbridge.executor.ledger.models import Outcome


def seeded(metadata: Metadata, tasks: int = 12) -> run.Run:
    with metadata.session() as session:
        runs.seed_run(session, tasks)
        found = run.find(session, runs.DAG, runs.RUN)
    assert found is not None
    return found


def test_unknown_run_is_none(metadata: Metadata) -> None:
    """The ledger may have nothing of a run."""
    with metadata.session() as session:
        assert run.find(session, "none", "none") is None


def test_tasks_have_their_attempts(metadata: Metadata) -> None:
    """Every task is there once, with its attempts in order; a run with work that waits has not ended."""
    found = seeded(metadata)
    by_name = {task.last.name: task for task in found.tasks}
    assert len(by_name) == len(found.tasks) == 13
    clean = by_name["clean"]
    assert [(each.region, each.trouble) for each in clean.attempts] == [
        ("ap-south-1", True),
        ("eu-west-1", False),
    ]
    assert clean.last.why == "it is near s3://eu-west-1-data"
    assert found.end is None
    assert by_name["join"].written == 3_000
    assert by_name["join"].read == sum(40_000 * (n + 1) for n in range(8))


def test_order_of_tasks_of_one_moment(metadata: Metadata) -> None:
    """Tasks that were placed at one time stand in the order of their names, whatever their work items are called."""
    with metadata.session() as session:
        regions = {f"t{number}": ("us-east-1", "eu-west-1")[number % 2] for number in range(12)}
        new = [
            new_item(dag_id="ties", run_id="r", task_id=task, region=regions[task])
            for task in sorted(regions)
        ]
        items.place(session, new[::-1], 1)
        session.commit()
        found = run.find(session, "ties", "r")
    assert found is not None
    assert [task.last.name for task in found.tasks] == sorted(regions)
    assert [region.name for region in found.regions] == ["us-east-1", "eu-west-1"]


def test_trigger_is_no_attempt(metadata: Metadata) -> None:
    """A task that waits for its trigger has the attempt that deferred it; the time of waiting is no time of a worker."""
    with metadata.session() as session:
        [row] = items.place(session, [new_item(dag_id="waits", run_id="r")], 1)
        leases.settle(session, row, Outcome.SUCCESS, "deferred")
        items.place_trigger(session, row, 1)
        session.commit()
        found = run.find(session, "waits", "r")
    assert found is not None
    assert [[each.id for each in task.attempts] for task in found.tasks] == [[row.id]]


def test_moves_between_regions_add_up(metadata: Metadata) -> None:
    """What regions sent is what regions received, and what was read in its own region is in neither."""
    found = seeded(metadata)
    assert sum(region.sent for region in found.regions) == found.crossed
    assert sum(region.received for region in found.regions) == found.crossed
    at_home = sum(40_000 * (n + 1) for n in range(8) if runs.REGIONS[n % 3] == "eu-west-1")
    everything = sum(40_000 * (n + 1) for n in range(8))
    assert found.crossed == everything - at_home + 900 + 3_000
    [checked] = [move for move in found.moves if move.reader == "check"]
    assert (checked.source_region, checked.reader_region, checked.stored) == ("eu-west-1", "ap-south-1", None)


def test_another_runs_xcom_is_named(metadata: Metadata) -> None:
    """An XCom of another DAG is named with it; its region is that of its bucket, if it lies in one."""
    found = seeded(metadata)
    events = [
        type(
            "Row",
            (),
            {"item_id": found.tasks[0].last.id, "event": "xcom.read", "at": found.start, "detail": each},
        )
        for each in (
            {"of_dag": "other", "of_run": "r", "of_task": "t", "of_index": 3, "key": "k", "bytes": 5},
            {"key": "k", "bytes": 5, "stored": "sa-east-1"},
        )
    ]
    attempts = [attempt for task in found.tasks for attempt in task.attempts]
    first, second = run._moves(events, attempts, (runs.DAG, runs.RUN))
    assert (first.source, first.source_region, first.crosses) == ("other / r / t [3]", None, False)
    assert (second.source, second.source_region, second.crosses) == ("", "sa-east-1", True)


def test_reads_of_mapped_task_cross_borders(metadata: Metadata) -> None:
    """A read by position is of the map index there; a slice is of each region that wrote some of it.

    Values in buckets are read by calls of their own.
    """
    places = {0: "us-east-1", 2: "eu-west-1", 5: "ap-south-1", 7: "us-east-1"}
    name = f"mapped-{uuid4().hex[:8]}"
    with metadata.session() as session:
        new = [
            new_item(dag_id=name, run_id="r", task_id="extract", map_index=index, region=region)
            for index, region in places.items()
        ]
        *writers, reader = items.place(session, [*new, new_item(dag_id=name, run_id="r", task_id="load")], 1)
        for writer in writers:
            index = writer.map_index
            stored = {"stored": writer.region} if index == 5 else {}
            events.record(session, "xcom.written", "w", row=writer, key="k", bytes=100 + index, **stored)
        of = {"of_dag": name, "of_run": "r", "of_task": "extract", "key": "k"}
        for size, which in enumerate(
            ({"of_position": 1}, {"of_position": -1}, {"of_position": 9}, {"of_slice": [None, 3, None]}), 1
        ):
            events.record(session, "xcom.read", "w", row=reader, bytes=size, **of, **which)
        session.commit()
        found = run.find(session, name, "r")
    assert found is not None
    assert {(move.source, move.source_region, move.bytes, move.crosses) for move in found.moves} == {
        ("extract [2]", "eu-west-1", 1, False),
        ("extract [7]", "us-east-1", 2, True),
        ("extract", None, 3, False),
        ("extract [0]", "us-east-1", 100, True),
        ("extract [2]", "eu-west-1", 102, False),
    }
    assert {region.name: region.sent for region in found.regions}["us-east-1"] == 102


def test_bars_do_not_overlap(metadata: Metadata) -> None:
    """In a lane one bar ends before the next begins, and every bar is within its band and the time axis."""
    drawn = run_map.draw(seeded(metadata, 300))
    assert drawn.bands[-1].y + drawn.bands[-1].height == drawn.height
    assert drawn.height < 1_000
    for band in drawn.bands:
        lanes: dict[float, list[Any]] = {}
        for bar in band.bars:
            assert band.y < bar.y < bar.y + bar.height < band.y + band.height
            assert 0 <= bar.x < bar.x + bar.width <= run_map.WIDTH + 2
            lanes.setdefault(bar.y, []).append(bar)
        for bars in lanes.values():
            bars.sort(key=lambda bar: bar.x)
            for left, right in itertools.pairwise(bars):
                assert left.x + left.width <= right.x + 2.1


def test_curves_join_bars_of_two_bands(metadata: Metadata) -> None:
    """A curve begins in the writer's band and ends in the reader's; the largest moves are drawn, and the others are counted."""
    drawn = run_map.draw(seeded(metadata, 300))
    assert len(drawn.curves) == run_map.MOST_CURVES
    assert drawn.hidden > 100

    def band_of(y: float) -> str:
        return next(band.name for band in drawn.bands if band.y <= y < band.y + band.height)

    for curve in drawn.curves:
        numbers = [float(each) for each in re.findall(r"-?[\d.]+", curve.path)]
        assert band_of(numbers[1]) != band_of(numbers[-1])


def test_large_run_is_read_in_time(metadata: Metadata) -> None:
    """A run of a thousand tasks is read and drawn within 0.3 s at the server (the fastest of three)."""
    found = seeded(metadata, 1_000)
    times = []
    for _ in range(3):
        with metadata.session() as session:
            began = time.perf_counter()
            again = run.find(session, runs.DAG, runs.RUN)
            assert again is not None
            run_map.draw(again)
            times.append(time.perf_counter() - began)
    assert len(found.tasks) == 1_001
    print(f"run of 1,000 tasks: {1000 * min(times):.0f} ms")
