"""Where things lie in the drawings: the network of regions, and the bars of a task's timeline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from airbridge.control_plane.dashboard.wording import duration
from airbridge.control_plane.observe.regions import Health, RegionView
from airbridge.control_plane.observe.timeline import Step, Timeline
from airbridge.control_plane.observe.work import ItemView
from airbridge.executor.ledger.models import ItemState

# --- The network ----------------------------------------------------------------------------------

ROW_HEIGHT: Final = 58
_LINKS: Final = {
    Health.HEALTHY: ("connected", "connected"),
    Health.DEGRADED: ("degraded", "degraded"),
    Health.CUT_OFF: ("cut", "cut off"),
    Health.NO_WORKERS: ("cut", "no worker"),
    Health.IDLE: ("idle", "nobody there"),
}


@dataclass(frozen=True, slots=True)
class Link:
    """A region and the line to it. Coordinates are in the drawing's own units."""

    region: RegionView
    kind: str
    """connected, degraded, cut, idle: how the line looks."""
    label: str
    middle: int
    """The height of the region's box at its middle."""
    path: str


@dataclass(frozen=True, slots=True)
class Network:
    """The control plane on the left, the regions below each other on the right."""

    links: tuple[Link, ...]
    height: int

    @property
    def words(self) -> str:
        """The drawing, for those who do not see it."""
        return "; ".join(f"{link.region.name}: {link.label}" for link in self.links)


def network(regions: Sequence[RegionView]) -> Network:
    """Lay the regions out in the order given."""
    height = max(len(regions), 2) * ROW_HEIGHT + 10
    centre = height // 2
    return Network(tuple(_links(regions, centre, height)), height)


def _links(regions: Sequence[RegionView], centre: int, height: int) -> Iterator[Link]:
    top = (height - len(regions) * ROW_HEIGHT) // 2
    for number, region in enumerate(regions):
        middle = top + number * ROW_HEIGHT + ROW_HEIGHT // 2
        kind, label = _LINKS[region.health]
        yield Link(region, kind, label, middle, f"M150 {centre} C 230 {centre}, 230 {middle}, 320 {middle}")


# --- The timeline ---------------------------------------------------------------------------------

WIDTH: Final = 1000
"""A row is this wide whatever the time it stands for; the browser stretches it."""
_LEAST: Final = 3.0
_SHORTEST: Final = timedelta(milliseconds=200)
_TICKS: Final = 4
_MOST_ROWS: Final = 60


@dataclass(frozen=True, slots=True)
class Bar:
    """A time that something took."""

    x: float
    width: float
    kind: str
    """outbox, queue, run, edge, airflow: how it looks."""
    label: str
    trouble: bool = False
    open: bool = False
    """Whether it has yet to end."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment at which something happened."""

    x: float
    label: str
    trouble: bool


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the chart."""

    label: str
    side: str
    """control, queue or edge."""
    bars: tuple[Bar, ...]
    marks: tuple[Mark, ...] = ()
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Gantt:
    """The chart: rows over one axis of time."""

    start: datetime
    end: datetime
    rows: tuple[Row, ...]
    cut: bool
    """Whether there were more rows than are drawn."""

    @property
    def ticks(self) -> tuple[float, ...]:
        """The seconds since the start at which the axis has a tick."""
        whole = (self.end - self.start).total_seconds()
        return tuple(whole * number / _TICKS for number in range(_TICKS + 1))

    @property
    def grid(self) -> tuple[float, ...]:
        """Where the ticks between the ends lie."""
        return tuple(WIDTH * number / _TICKS for number in range(1, _TICKS))


@dataclass(frozen=True, slots=True)
class _Axis:
    start: datetime
    end: datetime

    def at(self, moment: datetime) -> float:
        whole = (self.end - self.start).total_seconds()
        share = (moment - self.start).total_seconds() / whole
        return round(WIDTH * min(1.0, max(0.0, share)), 2)

    def bar(
        self,
        begin: datetime,
        end: datetime | None,
        kind: str,
        label: str,
        *,
        trouble: bool = False,
    ) -> Bar:
        x = self.at(begin)
        width = max(_LEAST, self.at(end or self.end) - x)
        return Bar(min(x, WIDTH - _LEAST), round(width, 2), kind, label, trouble, open=end is None)


def gantt(timeline: Timeline) -> Gantt | None:
    """Draw a timeline; None if nothing of it has a time yet."""
    moments = [*_moments(timeline)]
    if not moments:
        return None
    running = any(item.open for item in timeline.items)
    start = min(moments)
    end = max(timeline.now if running else max(moments), start + _SHORTEST)
    axis = _Axis(start, end)
    rows = [row for item in timeline.items for row in _rows(axis, item, timeline.steps)]
    return Gantt(start, end, tuple(rows[:_MOST_ROWS]), cut=len(rows) > _MOST_ROWS)


def _moments(timeline: Timeline) -> Iterator[datetime]:
    for item in timeline.items:
        times = (item.placed_at, item.sent_at, item.claimed_at, item.settled_at)
        yield from (at for at in times if at is not None)
    for step in timeline.steps:
        yield step.at
        if step.began_at is not None:
            yield step.began_at


def _rows(axis: _Axis, item: ItemView, steps: Sequence[Step]) -> Iterator[Row]:
    """The rows of one work item: what the control plane did, how long it lay on the queue, what the edge did."""
    mine = [step for step in steps if step.item_id == item.id]
    name = f"Try {item.try_number}"
    control = [step for step in mine if step.side == "control"]
    left = item.sent_at or item.claimed_at or item.settled_at
    yield Row(
        f"{name}: control plane",
        "control",
        (axis.bar(item.placed_at, left, "outbox", f"waiting to be sent, {_took(item.placed_at, left)}"),),
        tuple(_mark(axis, step) for step in control),
        _seconds(item.placed_at, left),
    )
    if item.sent_at is not None:
        taken = item.claimed_at or item.settled_at
        label = f"on the queue of {item.region}, {_took(item.sent_at, taken)}"
        yield Row(
            f"{name}: queue {item.region}",
            "queue",
            (axis.bar(item.sent_at, taken, "queue", label),),
            (),
            _seconds(item.sent_at, taken),
        )
    if item.claimed_at is not None:
        yield from _edge_rows(axis, name, item, [step for step in mine if step.side == "edge"])


def _edge_rows(axis: _Axis, name: str, item: ItemView, steps: Sequence[Step]) -> Iterator[Row]:
    if item.claimed_at is None:
        return
    bad = item.state is ItemState.SETTLED and item.outcome != "success"
    label = f"held by {item.worker_id}, {_took(item.claimed_at, item.settled_at)}"
    yield Row(
        f"{name}: {item.worker_id or 'worker'}",
        "edge",
        (axis.bar(item.claimed_at, item.settled_at, "run", label, trouble=bad),),
        tuple(_mark(axis, step) for step in steps if step.began_at is None),
        _seconds(item.claimed_at, item.settled_at),
    )
    for step in steps:
        if step.began_at is not None:
            yield Row(
                step.what,
                "edge",
                (axis.bar(step.began_at, step.at, "edge", step.what, trouble=step.trouble),),
                (),
                step.seconds,
            )


def _mark(axis: _Axis, step: Step) -> Mark:
    return Mark(axis.at(step.at), step.what, step.trouble)


def _seconds(begin: datetime, end: datetime | None) -> float | None:
    return None if end is None else (end - begin).total_seconds()


def _took(begin: datetime, end: datetime | None) -> str:
    return "not over" if end is None else duration((end - begin).total_seconds())
