"""Bars, marks and rows of a task's timeline."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from airbridge.control_plane._airflow import Try
from airbridge.control_plane.dashboard.drawings import gantt, window
from airbridge.control_plane.dashboard.drawings.gantt import Gantt
from airbridge.control_plane.dashboard.drawings.window import Window
from airbridge.control_plane.read_model.history.timeline import Step, Timeline
from airbridge.control_plane.read_model.tasks import TaskView
from airbridge.control_plane.read_model.work import ItemView
from airbridge.core.protocol import ItemKind
from airbridge.executor.ledger.models import ItemState

START = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


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
    known |= {"event": "x"}
    return Step(**{**names, **known, **changes})  # type: ignore[arg-type]


def control(seconds: float, event: str, item_id: str = "i", **changes: Any) -> Step:
    return step(seconds, event=event, side="control", item_id=item_id, region="eu", **changes)


def timeline(
    items: tuple[ItemView, ...], *steps: Step, now: float = 20, state: str | None = "running"
) -> Timeline:
    one = Try("t", 1, state, "eu", None, None, None, None, None, 1)
    return Timeline(TaskView("d", "r", "t", -1, (one,)), items, steps, at(now), complete=True)


def drawn(line: Timeline, silent_since: datetime | None = None) -> Gantt:
    found = gantt.draw(line, silent_since)
    assert found is not None
    return found


def bars(found: Gantt, row: int = 0) -> list[tuple[str, float, float]]:
    return [(bar.kind, bar.x, bar.width) for bar in found.rows[row].bars]


def test_bars_are_proportional_to_time() -> None:
    """A tenth of the time is a tenth of the width, on every row."""
    found = drawn(timeline((item(),), step(6, began_at=at(4))))
    assert ["Try 1: eu, w", "x"] == [row.label for row in found.rows]
    assert [("outbox", 0.0, 100.0), ("queue", 100.0, 100.0), ("run", 200.0, 800.0)] == bars(found)
    assert [("edge", 400.0, 200.0)] == bars(found, 1)


def test_open_bar_reaches_now() -> None:
    """A running task's bar ends at the right edge and is marked open."""
    running = item(state=ItemState.CLAIMED, settled_at=None, outcome=None)
    row = drawn(timeline((running,), now=20)).rows[0]
    bar = row.bars[-1]
    assert (bar.x + bar.width, bar.open, row.seconds) == (gantt.WIDTH, True, None)


def test_resend_stays_on_the_queue() -> None:
    """A message that expired and was sent again was on the queue meanwhile, not in the control plane."""
    resent = item(sent_at=at(8), claimed_at=at(9))
    sends = (control(1, "item.sent"), control(8, "item.sent"), control(9, "claim.granted"))
    found = bars(drawn(timeline((resent,), *sends)))
    assert [
        ("outbox", 0.0, 100.0),
        ("queue", 100.0, 700.0),
        ("queue", 800.0, 100.0),
        ("run", 900.0, 100.0),
    ] == found


def test_released_item_waits_again() -> None:
    """An item that its worker gave back waits, is sent and runs a second time on the same row."""
    again = item(sent_at=at(5), claimed_at=at(6))
    steps = (
        *(control(1, "item.sent"), control(2, "claim.granted"), control(4, "item.released")),
        *(control(5, "item.sent"), control(6, "claim.granted")),
    )
    kinds = [kind for kind, _, _ in bars(drawn(timeline((again,), *steps)))]
    assert ["outbox", "queue", "run", "outbox", "queue", "run"] == kinds


def test_bars_of_a_trigger() -> None:
    """The bars of a deferred task's trigger are called so; one that its worker lost waits to be sent again."""
    trigger = item(
        kind=ItemKind.TRIGGER, state=ItemState.PLACED, settled_at=None, outcome=None, worker_id="w"
    )
    steps = (control(1, "item.sent"), control(2, "claim.granted"), control(8, "trigger.lost"))
    row = drawn(timeline((trigger,), *steps, state="deferred")).rows[0]
    assert [
        ("outbox", "trigger waiting to be sent, 1.0 s"),
        ("queue", "trigger on the queue of eu, 1.0 s"),
    ] == [(bar.kind, bar.label) for bar in row.bars[:2]]
    assert [("run", "trigger held by w, 6.0 s"), ("outbox", "trigger waiting to be sent, not over")] == [
        (bar.kind, bar.label) for bar in row.bars[2:]
    ]


def test_waits_between_items_are_drawn() -> None:
    """The time of a deferral and the wait for a retry belong to a task as much as its runs."""
    deferred = item(detail="deferred", settled_at=at(3))
    failed = item(
        id="j", placed_at=at(6), sent_at=at(6), claimed_at=at(6), settled_at=at(8), outcome="failed"
    )
    retried = item(id="k", try_number=2, placed_at=at(9), sent_at=at(9), claimed_at=at(9), settled_at=at(10))
    found = drawn(timeline((deferred, failed, retried)))
    assert 2 == len(found.rows)
    first = [(bar.kind, bar.x, bar.width, bar.label) for bar in found.rows[0].bars if bar.kind == "wait"]
    assert [
        ("wait", 300.0, 300.0, "deferred, 3.0 s"),
        ("wait", 800.0, 100.0, "waiting for retry, 1.0 s"),
    ] == first


def test_present_wait_is_open() -> None:
    """A task that waits for its next attempt now has an open bar."""
    failed = item(outcome="failed")
    row = drawn(timeline((failed,), now=30, state="up_for_retry")).rows[0]
    bar = row.bars[-1]
    assert ("wait", True, gantt.WIDTH, None) == (bar.kind, bar.open, bar.x + bar.width, row.seconds)
    assert bar.label.startswith("waiting for retry")


def test_cut_off_task_is_marked() -> None:
    """From the last heartbeat on, the bar of a task whose worker is silent is no longer that of a running task."""
    running = item(state=ItemState.CLAIMED, settled_at=None, outcome=None)
    found = drawn(timeline((running,), now=20), at(12)).rows[0].bars[-2:]
    assert [("run", False, False), ("silent", True, True)] == [
        (bar.kind, bar.trouble, bar.open) for bar in found
    ]
    assert (600.0, 400.0) == (found[1].x, found[1].width)


def test_runs_bar_is_called_a_run() -> None:
    """Rows are named by what took the time, not by the event that ended it."""
    ended = step(9, began_at=at(3), event="task.ended", what="process ended on w", worker="w")
    assert ["Try 1: eu, w", "task's process on w"] == [
        row.label for row in drawn(timeline((item(),), ended)).rows
    ]


def test_three_tries_are_three_lanes() -> None:
    """Steps have rows of their own for the last try alone."""
    tries = tuple(item(id=str(number), try_number=number) for number in (1, 2, 3))
    steps = [step(6, began_at=at(4), item_id=each.id, what=f"s{each.id}") for each in tries]
    labels = [row.label for row in drawn(timeline(tries, *steps)).rows]
    assert ["Try 1: eu, w", "Try 2: eu, w", "Try 3: eu, w", "s3"] == labels


def test_long_message_is_cut_in_the_label() -> None:
    """The label of a row is short, whatever the event says."""
    long = step(6, began_at=at(4), what="{x}" * 200, event="bundle.failing")
    assert all(len(row.label) <= 80 for row in drawn(timeline((item(),), long)).rows)


def test_everything_stays_within_the_drawing() -> None:
    """Steps before the first and after the last moment, of no length or in the wrong order, are drawn all the same."""
    odd = item(sent_at=at(5), claimed_at=at(4), settled_at=at(4))
    found = drawn(timeline((odd,), step(3, began_at=at(9)), step(30), step(-4)))
    for row in found.rows:
        for bar in row.bars:
            assert 0 <= bar.x <= gantt.WIDTH
            assert bar.width > 0
        assert all(0 <= mark.x <= gantt.WIDTH for mark in row.marks)


def test_no_chart_without_times() -> None:
    """Without a single time there is nothing to draw."""
    assert gantt.draw(timeline(())) is None


def test_long_chart_is_cut() -> None:
    """Of a hundred tries the last are drawn."""
    found = drawn(timeline(tuple(item(id=str(n), try_number=n) for n in range(100))))
    assert found.cut
    assert (60, "Try 99: eu, w") == (len(found.rows), found.rows[-1].label)


def zoomed(part: str, **changes: Any) -> Gantt:
    line = timeline((item(**changes),), step(6, began_at=at(4)), step(9.5, began_at=at(9), what="late"))
    found = gantt.draw(line, part=window.parse(part))
    assert found is not None
    return found


def test_part_has_the_whole_width() -> None:
    """A part of the time is drawn over the whole width; what lies outside of it is not there, what reaches over it is cut."""
    found = zoomed("4-8")
    assert (4.0, 5.0, 6.0, 7.0, 8.0) == found.ticks
    assert ["Try 1: eu, w", "x"] == [row.label for row in found.rows]
    assert [("run", 0.0, 1000.0)] == bars(found)
    assert [("edge", 0.0, 500.0)] == bars(found, 1)


def test_row_has_the_part_that_shows_it() -> None:
    """The link of a row is to its own time, with a margin."""
    found = drawn(timeline((item(),), step(6, began_at=at(4))))
    assert ["0-10", "3.9-6.1"] == [str(row.window) for row in found.rows]
    assert None is found.part
    assert () == found.steps


def test_steps_from_a_part() -> None:
    """From a part one goes to the whole, out, in, and to both sides; not beyond the ends."""
    assert {"Whole": "None", "Out": "2-6", "In": "3.5-4.5", "Earlier": "2-4", "Later": "4-6"} == {
        name: str(part) for name, part in zoomed("3-5").steps
    }
    assert "Earlier" not in dict(zoomed("0-5").steps)
    assert "Later" not in dict(zoomed("8-10").steps)
    assert None is dict(zoomed("3-9").steps)["Out"]
    assert "In" not in dict(zoomed("3-3.02").steps)


@pytest.mark.parametrize(
    "part", ["", "5", "5-3", "a-b", "-1-3", "0-99", "11-12", "3-3", "1e3-2e3", "0-" + "9" * 40]
)
def test_other_parts_show_the_whole(part: str) -> None:
    """What is no part, or lies outside of the timeline, shows all of it."""
    found = zoomed(part)
    assert None is found.part
    assert (0.0, 10.0) == (found.ticks[0], found.ticks[-1])


@pytest.mark.parametrize("begin", [0.0, 86_399.999, 1_234_567.125])
def test_address_has_a_part_to_the_millisecond(begin: float) -> None:
    """Also in a task of days a step of milliseconds has a part of its own."""
    part = Window(begin, begin + 0.05)
    again = window.parse(str(part))
    assert again is not None
    assert (again.begin, again.end) == (
        pytest.approx(begin, abs=0.0005),
        pytest.approx(begin + 0.05, abs=0.0005),
    )


@pytest.mark.parametrize("at_end", [0.0, 10.0])
def test_moment_at_an_end_has_a_part(at_end: float) -> None:
    """A step of no time at the first or last moment has a part that can be shown."""
    assert Window(at_end, at_end).around(10.0).inside(10.0) is not None


def test_open_bar_of_a_part_reaches_its_end() -> None:
    """What lasts reaches the right edge of a part that it has begun before."""
    found = zoomed("4-8", state=ItemState.CLAIMED, settled_at=None, outcome=None)
    assert [("run", 0.0, 1000.0)] == bars(found)
    assert found.rows[0].bars[0].open
