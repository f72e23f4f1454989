"""A line of a region's throughput, small enough for a table's cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

WIDTH: Final = 120
HEIGHT: Final = 24


def points(counts: Sequence[int], most: int) -> str:
    """Return the points of an SVG polyline; empty if nothing has ended. `most` is the largest count of all lines."""
    if not any(counts) or len(counts) < 2:
        return ""
    step = WIDTH / (len(counts) - 1)
    height = HEIGHT - 2
    return " ".join(
        f"{number * step:.0f},{HEIGHT - 1 - height * count / max(most, 1):.0f}"
        for number, count in enumerate(counts)
    )
