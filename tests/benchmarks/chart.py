"""Small charts as SVG text: bars by group, and lines over a logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

COLOURS = ("#2563eb", "#94a3b8", "#f59e0b", "#dc2626", "#10b981", "#7c3aed")
_WIDTH, _LEFT, _ROW, _FONT = 760, 190, 22, 'font-family="system-ui, sans-serif"'
_PLOT = _WIDTH - _LEFT - 90


def bars(title: str, unit: str, rows: Sequence[tuple[str, float]], colour_of: Mapping[str, int]) -> str:
    """Return horizontal bars; a row's colour is that of the first key of `colour_of` that its label starts with."""
    top = max((value for _, value in rows), default=1.0) or 1.0
    parts = [_text(12, 24, title, size=15, weight=600)]
    for number, (label, value) in enumerate(rows):
        y = 44 + number * _ROW
        index = next((index for start, index in colour_of.items() if label.startswith(start)), 1)
        width = max(1.0, value / top * _PLOT)
        parts += [
            _text(_LEFT - 8, y + 12, label, anchor="end"),
            f'<rect x="{_LEFT}" y="{y}" width="{width:.1f}" height="15" rx="2" fill="{COLOURS[index]}"/>',
            _text(_LEFT + width + 6, y + 12, f"{value:g} {unit}"),
        ]
    return _svg(44 + len(rows) * _ROW + 12, parts)


def lines(title: str, x_name: str, y_name: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Return lines over two logarithmic axes."""
    points = [point for line in series.values() for point in line if point[1] > 0]
    x_low, x_high = _decades(x for x, _ in points)
    y_low, y_high = _decades(y for _, y in points)
    left, top, width, height = 70, 50, 520, 260

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            left + (math.log10(x) - x_low) / (x_high - x_low) * width,
            top + height - (math.log10(y) - y_low) / (y_high - y_low) * height,
        )

    parts = [_text(12, 24, title, size=15, weight=600), _text(12, top - 8, y_name)]
    for exponent in range(x_low, x_high + 1):
        x, _ = place(10.0**exponent, 10.0**y_low)
        parts += [_line(x, top, x, top + height), _text(x, top + height + 18, f"{10**exponent:,}", "middle")]
    for exponent in range(y_low, y_high + 1):
        _, y = place(10.0**x_low, 10.0**exponent)
        parts += [_line(left, y, left + width, y), _text(left - 8, y + 4, f"{10.0**exponent:g}", "end")]
    parts.append(_text(left + width / 2, top + height + 38, x_name, "middle"))
    for number, (name, line) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        places = [place(x, y) for x, y in line if y > 0]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        parts.append(f'<rect x="612" y="{top + number * 20}" width="12" height="12" fill="{colour}"/>')
        parts.append(_text(630, top + 11 + number * 20, name))
    return _svg(top + height + 54, parts)


def _decades(values: Iterable[float]) -> tuple[int, int]:
    found = [math.log10(value) for value in values]
    low, high = math.floor(min(found)), math.ceil(max(found))
    return low, max(high, low + 1)


def _text(x: float, y: float, text: str, anchor: str = "start", size: int = 12, weight: int = 400) -> str:
    style = f'{_FONT} font-size="{size}" font-weight="{weight}" fill="#334155"'
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {style}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#e2e8f0"/>'


def _svg(height: float, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" width="{_WIDTH}">'
    back = f'<rect width="{_WIDTH}" height="{height:.0f}" fill="#ffffff"/>'
    return "\n".join([head, back, *parts, "</svg>"]) + "\n"
