"""The simulation over time, as an SVG picture: the backlog and the signal, the group, the work."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

WIDTH, HEIGHT, LEFT, RIGHT, TOP, GAP = 960, 150, 70, 20, 46, 46
Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One line of a panel. A stepped line keeps its value until the next one."""

    label: str
    colour: str
    points: Sequence[Point]
    stepped: bool = False


@dataclass(frozen=True)
class Panel:
    """Lines over the same axes."""

    title: str
    lines: Sequence[Line]

    @property
    def top(self) -> float:
        """The highest value that the axis shows."""
        return _round_up(max((y for line in self.lines for _, y in line.points), default=1.0))


def _round_up(value: float) -> float:
    if value <= 0:
        return 1.0
    unit = 10 ** math.floor(math.log10(value))
    return next(step * unit for step in (1, 2, 4, 5, 10) if step * unit >= value)


def draw(seen: dict[str, Any]) -> str:
    """The picture."""
    moments = seen["moments"]
    end = moments[-1]["at"]

    def series(name: str) -> list[Point]:
        return _thinned([(moment["at"], moment[name]) for moment in moments])

    panels = [
        Panel("work items", [Line("waiting", "#c2410c", series("waiting")), Line("running", "#1d4ed8", series("running")), Line("done", "#15803d", series("done"))]),
        Panel("signal: BacklogPerSlot, highest of each 10 s", [Line("BacklogPerSlot", "#c2410c", seen["signal"], stepped=True)]),
        Panel("instances", [Line("capacity asked for", "#6b7280", series("capacity"), stepped=True), Line("alive", "#1d4ed8", series("alive"), stepped=True), Line("of these draining", "#b91c1c", series("draining"), stepped=True)]),
    ]  # fmt: skip
    marks = [(at, name) for name, at in seen["backlogs"].items()]
    if seen["spot"]:
        marks.append((seen["spot"]["noticed_at"], "Spot notice"))
    height = TOP + len(panels) * (HEIGHT + GAP)
    body = [part for index, panel in enumerate(panels) for part in _panel(panel, index, end, marks)]
    title = escape(f"{seen['group']}: from nothing and back under a burst; decided after {_words(seen)}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>\n'
        f'<text x="{LEFT}" y="20" font-size="15">{title}</text>\n' + "\n".join(body) + "\n</svg>\n"
    )


def _words(seen: dict[str, Any]) -> str:
    return ", ".join(f"{seconds} s ({name})" for name, seconds in seen["decided_after_seconds"].items())


def _panel(panel: Panel, index: int, end: float, marks: Iterable[tuple[float, str]]) -> Iterable[str]:
    base = TOP + index * (HEIGHT + GAP) + HEIGHT
    scale = (WIDTH - LEFT - RIGHT) / end

    def x(seconds: float) -> float:
        return round(LEFT + seconds * scale, 1)

    def y(value: float) -> float:
        return round(base - value / panel.top * (HEIGHT - 18), 1)

    yield f'<text x="{LEFT}" y="{base - HEIGHT + 8}" fill="#374151">{escape(panel.title)}</text>'
    for value in (0, panel.top / 2, panel.top):
        yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value)}" y2="{y(value)}" stroke="#e5e7eb"/>'
        yield f'<text x="{LEFT - 6}" y="{y(value) + 4}" text-anchor="end" fill="#6b7280">{value:g}</text>'
    for seconds in range(0, int(end) + 1, _step(end)):
        yield f'<text x="{x(seconds)}" y="{base + 15}" text-anchor="middle" fill="#6b7280">{seconds} s</text>'
    for at, name in marks:
        yield f'<line x1="{x(at)}" x2="{x(at)}" y1="{base - HEIGHT + 14}" y2="{base}" stroke="#9ca3af" stroke-dasharray="3 3"/>'
        if index == 0:
            yield f'<text x="{x(at) + 3}" y="{base - HEIGHT + 24}" fill="#6b7280">{escape(name)}</text>'
    for number, line in enumerate(panel.lines):
        points = " ".join(f"{x(at)},{y(value)}" for at, value in _stepped(line, end))
        yield f'<polyline points="{points}" fill="none" stroke="{line.colour}" stroke-width="1.6"/>'
        left = WIDTH - RIGHT - 130 * (len(panel.lines) - number)
        yield f'<text x="{left}" y="{base - HEIGHT + 8}" fill="{line.colour}">{escape(line.label)}</text>'


def _step(end: float) -> int:
    return next((step for step in (30, 60, 120, 300) if end / step <= 12), 600)


def _stepped(line: Line, end: float) -> list[Point]:
    if not line.stepped:
        return list(line.points)
    found: list[Point] = []
    for at, value in line.points:
        if found:
            found.append((at, found[-1][1]))
        found.append((max(0.0, at), value))
    return [*found, (end, found[-1][1])] if found else []


def _thinned(points: list[Point]) -> list[Point]:
    """Without what a straight line would show anyway: equal values between equal neighbours."""
    return [
        point
        for index, point in enumerate(points)
        if index in {0, len(points) - 1} or not points[index - 1][1] == point[1] == points[index + 1][1]
    ]
