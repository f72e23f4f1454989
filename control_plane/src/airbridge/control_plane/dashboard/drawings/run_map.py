"""A DAG run drawn over regions: a band for each region, a bar for each time that a worker held a task, curves for what moved."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import log10
from typing import Final

from airbridge.control_plane.dashboard.formatting import duration, number
from airbridge.control_plane.read_model.history.event_text import size_text
from airbridge.control_plane.read_model.history.run import Attempt, Move, Run, RunRegion

# Width in drawing units, for any length of time; the browser stretches it. Heights are pixels.
WIDTH: Final = 1000
HEADER: Final = 24
PADDING: Final = 8
# Height of all lanes together that the lanes' own height is chosen for.
WANTED: Final = 640
TALLEST: Final = 16
LOWEST: Final = 3
# Lanes of one band; what runs beside more than that is drawn over the last.
MOST_LANES: Final = 100
MOST_CURVES: Final = 60
_LEAST: Final = 2.0
_SHORTEST: Final = timedelta(milliseconds=200)
_TICKS: Final = 4


@dataclass(frozen=True, slots=True)
class Bar:
    """Time for which a worker held a task."""

    x: float
    y: float
    width: float
    height: float
    #: Style: run, trouble, open.
    kind: str
    label: str


@dataclass(frozen=True, slots=True)
class Band:
    """Region of the run."""

    y: float
    height: float
    name: str
    label: str
    #: What it sent to other regions and received from them; empty for nothing.
    traffic: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True, slots=True)
class Curve:
    """XComs that a task read of one in another region."""

    path: str
    width: float
    label: str


@dataclass(frozen=True, slots=True)
class RunMap:
    """Bands over one time axis."""

    height: float
    bands: tuple[Band, ...]
    curves: tuple[Curve, ...]
    #: Moves between regions that are not drawn.
    hidden: int
    seconds: float
    #: True if a band has more at one time than it has lanes.
    crowded: bool

    @property
    def ticks(self) -> tuple[float, ...]:
        """Seconds since the start of each tick of the axis."""
        return tuple(self.seconds * number / _TICKS for number in range(_TICKS + 1))

    @property
    def grid(self) -> tuple[float, ...]:
        """Horizontal positions of the ticks between the ends."""
        return tuple(WIDTH * number / _TICKS for number in range(1, _TICKS))


@dataclass(frozen=True, slots=True)
class _Axis:
    start: datetime
    end: datetime

    def at(self, moment: datetime) -> float:
        share = (moment - self.start) / (self.end - self.start)
        return round(WIDTH * min(1.0, max(0.0, share)), 1)


def draw(run: Run) -> RunMap:
    """Draw a run. Bars have the lanes of their region in the order of their starts; a lane holds one at a time."""
    end = max(run.end or run.now, run.start + _SHORTEST)
    axis = _Axis(run.start, end)
    attempts = [attempt for task in run.tasks for attempt in task.attempts]
    lanes = {region.name: _lanes(attempts, region.name, end) for region in run.regions}
    most = {name: max(of.values(), default=0) + 1 for name, of in lanes.items()}
    lane = min(TALLEST, max(LOWEST, WANTED // max(1, sum(most.values()))))
    bands: list[Band] = []
    places: dict[str, Bar] = {}
    y = 0.0
    for region in run.regions:
        height = HEADER + most[region.name] * lane + PADDING
        mine = [each for each in attempts if each.id in lanes[region.name]]
        bars = {
            each.id: _bar(axis, each, run.now, y + HEADER + lanes[region.name][each.id] * lane, lane)
            for each in mine
        }
        places |= bars
        bands.append(Band(y, height, region.name, _label(region), _traffic(region), tuple(bars.values())))
        y += height
    crossing = [move for move in run.moves if move.crosses]
    drawn = [move for move in crossing if move.source_item in places and move.reader_item in places]
    return RunMap(
        height=y,
        bands=tuple(bands),
        curves=tuple(_curves(drawn[:MOST_CURVES], places)),
        hidden=len(crossing) - len(drawn[:MOST_CURVES]),
        seconds=(end - run.start).total_seconds(),
        crowded=any(count >= MOST_LANES for count in most.values()),
    )


def _lanes(attempts: Sequence[Attempt], region: str, end: datetime) -> dict[str, int]:
    """Return the lane of each attempt that a worker of the region has held: the first that is free when it starts."""
    held = [(each.claimed_at, each) for each in attempts if each.region == region and each.claimed_at]
    free_at: list[datetime] = []
    found: dict[str, int] = {}
    for start, each in sorted(held, key=lambda pair: (pair[0], pair[1].id)):
        lane = next((number for number, at in enumerate(free_at) if at <= start), len(free_at))
        lane = min(lane, MOST_LANES - 1)
        until = each.settled_at or end
        if lane == len(free_at):
            free_at.append(until)
        free_at[lane] = max(free_at[lane], until)
        found[each.id] = lane
    return found


def _bar(axis: _Axis, attempt: Attempt, now: datetime, y: float, lane: float) -> Bar:
    start, end = attempt.claimed_at or attempt.placed_at, attempt.settled_at or axis.end
    x = min(axis.at(start), WIDTH - _LEAST)
    kind = "trouble" if attempt.trouble else ("run" if attempt.settled_at else "open")
    tried = f", try {attempt.try_number}" if attempt.try_number > 1 else ""
    how = attempt.outcome or "running"
    label = f"{attempt.name}{tried}: {duration(attempt.ran(now))} on {attempt.worker_id}, {how}"
    gap = 1 if lane < 8 else 3
    return Bar(x, y, round(max(_LEAST, axis.at(end) - x), 1), lane - gap, kind, label)


def _label(region: RunRegion) -> str:
    tasks = "1 task" if region.tasks == 1 else f"{number(region.tasks)} tasks"
    parts = [tasks, f"{duration(region.run_seconds)} of work"]
    if region.waiting:
        parts.append(f"{number(region.waiting)} wait")
    return ", ".join(parts)


def _traffic(region: RunRegion) -> str:
    sent = [f"{size_text(region.sent)} sent"] if region.sent else []
    return ", ".join([*sent, *([f"{size_text(region.received)} received"] if region.received else [])])


def _curves(moves: Sequence[Move], places: dict[str, Bar]) -> Iterator[Curve]:
    """Yield a curve for each pair of tasks, from the end of the writer's bar to the start of the reader's."""
    pairs: defaultdict[tuple[str, str], list[Move]] = defaultdict(list)
    for move in moves:
        pairs[str(move.source_item), move.reader_item].append(move)
    for (source, reader), together in pairs.items():
        a, b = places[source], places[reader]
        x1, y1 = a.x + a.width, a.y + a.height / 2
        x2, y2 = b.x, b.y + b.height / 2
        bend = max(25.0, abs(x2 - x1) / 2)
        total = sum(move.bytes for move in together)
        first = together[0]
        yield Curve(
            path=f"M{x1:.1f} {y1:.1f}C{x1 + bend:.1f} {y1:.1f} {x2 - bend:.1f} {y2:.1f} {x2:.1f} {y2:.1f}",
            width=round(1 + min(5.0, log10(total + 1) / 2), 1),
            label=f"{first.source} in {first.source_region} to {first.reader} in {first.reader_region}: {size_text(total)}",
        )
