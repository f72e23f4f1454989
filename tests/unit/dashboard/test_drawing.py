"""Where things lie in the drawings."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

from airbridge.control_plane._airflow import Try
from airbridge.control_plane.dashboard import drawing
from airbridge.control_plane.observe.regions import Health, RegionView
from airbridge.control_plane.observe.tasks import TaskView
from airbridge.control_plane.observe.timeline import Step, Timeline
from airbridge.control_plane.observe.work import ItemView
from airbridge.executor.ledger.models import ItemState

START = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def region(name: str, health: Health) -> RegionView:
    return RegionView(name, home=False, known=True, health=health, why="", last_heard_at=None, pools=())


def item(**changes: Any) -> ItemView:
    names = dict.fromkeys(ItemView.__dataclass_fields__)
    known = {
        "id": "i",
        "region": "eu",
        "worker_id": "w",
        "try_number": 1,
        "placed_at": at(0),
        "sent_at": at(1),
        "claimed_at": at(2),
        "settled_at": at(10),
        "state": ItemState.SETTLED,
        "outcome": "success",
    }
    return ItemView(**{**names, **known, **changes})  # type: ignore[arg-type]


def step(seconds: float, **changes: Any) -> Step:
    names = dict.fromkeys(Step.__dataclass_fields__)
    known = {"at": at(seconds), "side": "edge", "what": "x", "item_id": "i", "trouble": False, "detail": {}}
    return Step(**{**names, **known, **changes})  # type: ignore[arg-type]


def timeline(items: tuple[ItemView, ...], *steps: Step, now: float = 20) -> Timeline:
    one = Try("t", 1, "running", "eu", None, None, None, None, None, 1)
    return Timeline(TaskView("d", "r", "t", -1, (one,)), items, steps, at(now), complete=True)


def test_regions_lie_below_each_other_and_none_overlap() -> None:
    """However many regions there are, each has a place of its own within the drawing, and words for its state."""
    for count in (1, 2, 3, 12):
        drawn = drawing.network([region(f"r{number}", Health.HEALTHY) for number in range(count)])
        middles = [link.middle for link in drawn.links]
        assert all(after - before == drawing.ROW_HEIGHT for before, after in itertools.pairwise(middles))
        assert min(middles) - 23 >= 0
        assert max(middles) + 23 <= drawn.height


def test_every_health_has_a_line_and_words() -> None:
    """Connected, degraded and cut off are told apart without colour."""
    drawn = drawing.network([region(health.value, health) for health in Health])
    assert {"connected", "degraded", "cut", "idle"} == {link.kind for link in drawn.links}
    assert "cut_off: cut off" in drawn.words


def test_bars_begin_and_end_where_their_times_say() -> None:
    """A tenth of the time is a tenth of the width, on every row."""
    drawn = drawing.gantt(timeline((item(),), step(6, began_at=at(4))))
    assert drawn is not None
    found = {row.label: [(bar.x, bar.width) for bar in row.bars] for row in drawn.rows}
    assert found == {
        "Try 1: control plane": [(0.0, 100.0)],
        "Try 1: queue eu": [(100.0, 100.0)],
        "Try 1: w": [(200.0, 800.0)],
        "x": [(400.0, 200.0)],
    }


def test_what_is_not_over_reaches_to_now() -> None:
    """A running task's bar ends at the right edge and says that it is open."""
    running = item(state=ItemState.CLAIMED, settled_at=None, outcome=None)
    drawn = drawing.gantt(timeline((running,), now=20))
    assert drawn is not None
    (bar,) = drawn.rows[-1].bars
    assert (bar.x + bar.width, bar.open, drawn.rows[-1].seconds) == (drawing.WIDTH, True, None)


def test_everything_stays_within_the_drawing() -> None:
    """Steps before the first and after the last moment, of no length or in the wrong order, are drawn all the same."""
    odd = item(sent_at=at(5), claimed_at=at(4), settled_at=at(4))
    drawn = drawing.gantt(timeline((odd,), step(3, began_at=at(9)), step(30), step(-4)))
    assert drawn is not None
    for row in drawn.rows:
        for bar in row.bars:
            assert 0 <= bar.x <= drawing.WIDTH
            assert bar.width > 0
        assert all(0 <= mark.x <= drawing.WIDTH for mark in row.marks)


def test_a_task_that_has_not_begun_has_no_drawing() -> None:
    """Without a single time there is nothing to draw."""
    assert drawing.gantt(timeline(())) is None


def test_a_task_of_many_tries_is_cut_and_says_so() -> None:
    """A hundred tries do not make a page of a hundred rows of bars."""
    drawn = drawing.gantt(timeline(tuple(item(id=str(number)) for number in range(100))))
    assert drawn is not None
    assert drawn.cut
    assert len(drawn.rows) == 60
