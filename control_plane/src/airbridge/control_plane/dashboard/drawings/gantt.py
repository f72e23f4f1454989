"""Gantt chart of a task's timeline: one lane for each try, and a row for each step of the last."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from typing import Final

from airbridge.control_plane.dashboard.drawings import phases
from airbridge.control_plane.dashboard.drawings.phases import Phase
from airbridge.control_plane.dashboard.drawings.window import SHORTEST, Window
from airbridge.control_plane.dashboard.formatting import duration
from airbridge.control_plane.read_model.history.timeline import Step, Timeline
from airbridge.control_plane.read_model.work import ItemView

# Width of a row in drawing units, for any length of time; the browser stretches it.
WIDTH: Final = 1000
MOST_ROWS: Final = 60
LONGEST_LABEL: Final = 80
_LEAST: Final = 3.0
_SHORTEST: Final = timedelta(milliseconds=200)
_TICKS: Final = 4

# Names of what took the time, by the event at its end.
_SPANS: Final = {
    "message.claimed": "claim by {worker}",
    "bundle.fetched": "DAG code fetched by {worker}",
    "task.forked": "process started on {worker}",
    "task.ended": "task's process on {worker}",
    "report.delivered": "reports of {worker}",
}


@dataclass(frozen=True, slots=True)
class Bar:
    """Span of time on a row."""

    x: float
    width: float
    #: Style: outbox, queue, run, silent, wait, edge.
    kind: str
    label: str
    trouble: bool = False
    #: True if it has yet to end.
    open: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """Moment on a row."""

    x: float
    label: str
    trouble: bool


@dataclass(frozen=True, slots=True)
class Row:
    """Row of the chart."""

    label: str
    #: try or step.
    side: str
    bars: tuple[Bar, ...]
    marks: tuple[Mark, ...] = ()
    #: None while it lasts.
    seconds: float | None = None
    #: Its own time, with a margin.
    window: Window | None = None


@dataclass(frozen=True, slots=True)
class Gantt:
    """Rows over one time axis: that of the whole timeline, or of a part."""

    start: datetime
    #: Seconds of the whole timeline.
    whole: float
    #: Part that is shown; None for all of it.
    part: Window | None
    rows: tuple[Row, ...]
    #: True if there were more rows than are drawn.
    cut: bool

    @property
    def shown(self) -> Window:
        """Time of the axis, in seconds since the start."""
        return self.part or Window(0.0, self.whole)

    @property
    def ticks(self) -> tuple[float, ...]:
        """Seconds since the start of each tick of the axis."""
        shown = self.shown
        return tuple(shown.begin + shown.seconds * number / _TICKS for number in range(_TICKS + 1))

    @property
    def steps(self) -> tuple[tuple[str, Window | None], ...]:
        """Other parts by name: the whole is None. Those that show nothing else are left out."""
        part, whole = self.part, self.whole
        if part is None:
            return ()
        steps = [
            ("In", part.scaled(0.5, whole) if part.seconds >= 2 * SHORTEST else None),
            ("Earlier", part.moved(-0.5, whole)),
            ("Later", part.moved(0.5, whole)),
        ]
        outer = ("Out", part.scaled(2, whole))
        return (("Whole", None), outer, *(each for each in steps if each[1] is not None))

    @property
    def grid(self) -> tuple[float, ...]:
        """Horizontal positions of the ticks between the ends."""
        return tuple(WIDTH * number / _TICKS for number in range(1, _TICKS))


@dataclass(frozen=True, slots=True)
class _Axis:
    start: datetime
    whole: float
    shown: Window

    def seconds(self, moment: datetime) -> float:
        return (moment - self.start).total_seconds()

    def at(self, moment: datetime) -> float:
        share = (self.seconds(moment) - self.shown.begin) / self.shown.seconds
        return round(WIDTH * min(1.0, max(0.0, share)), 2)

    def bar(
        self, begin: datetime, end: datetime | None, kind: str, label: str, *, trouble: bool = False
    ) -> Iterator[Bar]:
        """Yield the bar, unless it lies outside of what is shown."""
        until = self.whole if end is None else self.seconds(end)
        if max(until, self.seconds(begin)) < self.shown.begin or self.seconds(begin) > self.shown.end:
            return
        x = self.at(begin)
        width = max(_LEAST, (WIDTH if end is None else self.at(end)) - x)
        yield Bar(min(x, WIDTH - _LEAST), round(width, 2), kind, label, trouble, open=end is None)

    def marks(self, steps: Iterable[Step]) -> Iterator[Mark]:
        for step in steps:
            if self.shown.begin <= self.seconds(step.at) <= self.shown.end:
                yield Mark(self.at(step.at), step.what, step.trouble)

    def around(self, begin: datetime, end: datetime | None) -> Window:
        until = self.whole if end is None else self.seconds(end)
        return Window(self.seconds(begin), max(until, self.seconds(begin))).around(self.whole)


def draw(line: Timeline, silent_since: datetime | None = None, part: Window | None = None) -> Gantt | None:
    """Draw a timeline; None if nothing of it has a time yet.

    `silent_since`: the worker that holds the newest item has sent no heartbeat since. `part`: what to show of it; rows without
    anything in it are left out.
    """
    moments = [*_moments(line)]
    if not moments:
        return None
    waits = [*phases.waits(line)]
    lasting = any(item.open for item in line.items) or any(phase.end is None for _, phase in waits)
    start = min(moments)
    end = max(line.now if lasting else max(moments), start + _SHORTEST)
    whole = (end - start).total_seconds()
    part = part.inside(whole) if part else None
    axis = _Axis(start, whole, part or Window(0.0, whole))
    rows = [*_lanes(axis, line, waits, silent_since), *_steps_of_last_try(axis, line)]
    shown = [row for row in rows if row.bars or row.marks]
    return Gantt(start, whole, part, tuple(shown[-MOST_ROWS:]), cut=len(shown) > MOST_ROWS)


def _moments(line: Timeline) -> Iterator[datetime]:
    for item in line.items:
        times = (item.placed_at, item.sent_at, item.claimed_at, item.settled_at)
        yield from (at for at in times if at is not None)
    for step in line.steps:
        yield step.at
        if step.began_at is not None:
            yield step.began_at


def _lanes(
    axis: _Axis, line: Timeline, waits: Sequence[tuple[ItemView, Phase]], silent_since: datetime | None
) -> Iterator[Row]:
    for number, items in groupby(line.items, key=lambda item: item.try_number):
        found: list[Phase] = []
        marks: list[Mark] = []
        for item in items:
            mine = [step for step in line.steps if step.item_id == item.id]
            control = [step for step in mine if step.side == "control"]
            found += phases.of_item(item, control, silent_since if item is line.item else None)
            found += [phase for of, phase in waits if of.id == item.id]
            marks += axis.marks(step for step in mine if step.began_at is None)
        yield _lane(axis, _place(number, item), found, marks)


def _place(number: int, item: ItemView) -> str:
    return f"Try {number}: {item.region}{f', {item.worker_id}' if item.worker_id else ''}"


def _lane(axis: _Axis, label: str, found: Sequence[Phase], marks: Sequence[Mark]) -> Row:
    end = found[-1].end
    return Row(
        _short(label),
        "try",
        tuple(
            bar
            for phase in found
            for bar in axis.bar(
                phase.begin, phase.end, phase.kind, _with_length(phase), trouble=phase.trouble
            )
        ),
        tuple(marks),
        None if end is None else (end - found[0].begin).total_seconds(),
        axis.around(found[0].begin, end),
    )


def _steps_of_last_try(axis: _Axis, line: Timeline) -> Iterator[Row]:
    last = {item.id for item in line.items if line.item and item.try_number == line.item.try_number}
    for step in line.steps:
        if step.began_at is not None and step.side == "edge" and step.item_id in last:
            name = _span(step)
            bars = tuple(axis.bar(step.began_at, step.at, "edge", name, trouble=step.trouble))
            window = axis.around(step.began_at, step.at)
            yield Row(_short(name), "step", bars, (), step.seconds, window)


def _span(step: Step) -> str:
    known = _SPANS.get(step.event)
    return step.what if known is None else known.format(worker=step.worker or "a worker")


def _with_length(phase: Phase) -> str:
    if phase.end is None:
        return f"{phase.label}, not over"
    return f"{phase.label}, {duration((phase.end - phase.begin).total_seconds())}"


def _short(label: str) -> str:
    return label if len(label) <= LONGEST_LABEL else f"{label[: LONGEST_LABEL - 1]}…"
