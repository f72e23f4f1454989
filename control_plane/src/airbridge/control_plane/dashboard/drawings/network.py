"""Coordinates of the network drawing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from airbridge.control_plane.read_model.regions import Health, RegionView

ROW_HEIGHT: Final = 58
_LINKS: Final = {
    Health.HEALTHY: ("connected", "connected"),
    Health.DEGRADED: ("degraded", "degraded"),
    Health.DRAINING: ("draining", "draining"),
    Health.NO_QUEUE: ("degraded", "queue unreachable"),
    Health.STALE: ("degraded", "stale"),
    Health.NO_GATEWAY: ("cut", "no gateway"),
    Health.CUT_OFF: ("cut", "cut off"),
    Health.NO_WORKERS: ("cut", "no worker"),
    Health.IDLE: ("idle", "no workers, no work"),
}


@dataclass(frozen=True, slots=True)
class NetworkLink:
    """Region and the line to it, in the drawing's own units."""

    region: RegionView
    #: Style of the line: connected, draining, degraded, cut, idle.
    kind: str
    label: str
    #: Vertical centre of the region's box.
    middle: int
    path: str


@dataclass(frozen=True, slots=True)
class Network:
    """Network drawing: the control plane on the left, the regions below each other on the right."""

    links: tuple[NetworkLink, ...]
    height: int

    @property
    def description(self) -> str:
        """Text alternative of the drawing."""
        return "; ".join(f"{link.region.name}: {link.label}" for link in self.links)


def draw(regions: Sequence[RegionView]) -> Network:
    """Place the regions in the given order."""
    height = max(len(regions), 2) * ROW_HEIGHT + 10
    centre = height // 2
    return Network(tuple(_links(regions, centre, height)), height)


def _links(regions: Sequence[RegionView], centre: int, height: int) -> Iterator[NetworkLink]:
    top = (height - len(regions) * ROW_HEIGHT) // 2
    for number, region in enumerate(regions):
        middle = top + number * ROW_HEIGHT + ROW_HEIGHT // 2
        kind, label = link_of(region)
        yield NetworkLink(
            region, kind, label, middle, f"M150 {centre} C 230 {centre}, 230 {middle}, 320 {middle}"
        )


def link_of(region: RegionView) -> tuple[str, str]:
    """Return the style and the label of the line to a region."""
    # Workers that send heartbeats and may not claim are no fault of the link.
    if region.health is Health.NO_WORKERS and region.alive:
        return "degraded", "no worker may claim"
    return _LINKS[region.health]
