"""Coordinates of the world map: regions where they are, linked to the home region. For platforms with many regions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from airbridge.control_plane.dashboard.drawings.network import link_of
from airbridge.control_plane.read_model.regions import RegionView

# The land is a static picture of this size, from 180 degrees west and 75 degrees north, four units a degree.
WIDTH: Final = 1440
HEIGHT: Final = 530
_UNITS: Final = 4
_NORTH: Final = 75.0
# Regions whose place is not known stand below the land, in rows of at most so many: as many as their words have room for.
_ROW: Final = 6
_ROW_HEIGHT: Final = 56
# Width of a letter at the drawing's size of letters, and of what stands around a region's words.
_LETTER: Final = 15
_AROUND: Final = 60
# Styles of regions in trouble.
_TROUBLED: Final = frozenset({"cut", "degraded"})

# Latitude and longitude of AWS's regions, to the degree, by the city or area that AWS names them by.
# https://docs.aws.amazon.com/global-infrastructure/latest/regions/aws-regions.html
PLACES: Final = {
    "af-south-1": (-34, 18), "ap-east-1": (22, 114), "ap-east-2": (25, 122), "ap-northeast-1": (36, 140),
    "ap-northeast-2": (38, 127), "ap-northeast-3": (35, 135), "ap-south-1": (19, 73), "ap-south-2": (17, 78),
    "ap-southeast-1": (1, 104), "ap-southeast-2": (-34, 151), "ap-southeast-3": (-6, 107),
    "ap-southeast-4": (-38, 145), "ap-southeast-5": (3, 102), "ap-southeast-6": (-37, 175),
    "ap-southeast-7": (14, 101), "ca-central-1": (45, -74), "ca-west-1": (51, -114), "eu-central-1": (50, 9),
    "eu-central-2": (47, 8), "eu-north-1": (59, 18), "eu-south-1": (45, 9), "eu-south-2": (42, -1),
    "eu-west-1": (53, -8), "eu-west-2": (51, 0), "eu-west-3": (49, 2), "il-central-1": (32, 35),
    "me-central-1": (24, 54), "me-south-1": (26, 51), "mx-central-1": (21, -100), "sa-east-1": (-24, -47),
    "us-east-1": (38, -78), "us-east-2": (40, -83), "us-west-1": (37, -121), "us-west-2": (46, -120),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Spot:
    """Region on the map, with the line to the home region; no line for the home region itself, and for one below the land."""

    region: RegionView
    #: Style: connected, draining, degraded, cut, idle.
    kind: str
    label: str
    x: int
    y: int
    path: str
    #: Width of the line, by how much work has ended: 2 to 10.
    width: float
    #: What is written beside it: its name if it is home or below the land, and its trouble if it is in any. Fifty names would hide the map.
    words: str
    #: Where the name stands: start (on the right) or end (on the left).
    anchor: str


@dataclass(frozen=True, slots=True)
class World:
    """Map, with regions in trouble last, so that they are drawn on top."""

    spots: tuple[Spot, ...]
    height: int

    @property
    def description(self) -> str:
        """Text alternative: the regions in trouble, and how many there are."""
        bad = [f"{spot.region.name}: {spot.label}" for spot in self.spots if spot.kind in _TROUBLED]
        return f"{len(self.spots)} regions. " + ("; ".join(bad) if bad else "None is in trouble.")


def draw(regions: Sequence[RegionView]) -> World:
    """Place the regions, those of unknown place below the land."""
    elsewhere = [region for region in regions if region.name not in PLACES]
    columns = _columns(elsewhere)
    at = {region.name: _position(region.name) for region in regions if region.name in PLACES}
    at |= {region.name: _below(number, columns) for number, region in enumerate(elsewhere)}
    home = next((at[region.name] for region in regions if region.home), None)
    most = max((region.settled for region in regions), default=0)
    spots = [
        _spot(region, at[region.name], home, most, below=region.name not in PLACES) for region in regions
    ]
    spots.sort(key=lambda spot: spot.kind in _TROUBLED)
    return World(tuple(spots), HEIGHT + -(-len(elsewhere) // columns) * _ROW_HEIGHT)


def _columns(below: Sequence[RegionView]) -> int:
    longest = max((len(_words(region)) for region in below), default=0)
    return max(1, min(_ROW, WIDTH // (longest * _LETTER + _AROUND)))


def _words(region: RegionView) -> str:
    kind, label = link_of(region)
    name = f"{region.name} (home)" if region.home else region.name
    return f"{name}: {label}" if kind in _TROUBLED else name


def _position(name: str) -> tuple[int, int]:
    north, east = PLACES[name]
    return round((east + 180) * _UNITS), round((_NORTH - north) * _UNITS)


def _below(number: int, columns: int) -> tuple[int, int]:
    row, column = divmod(number, columns)
    return 30 + column * (WIDTH // columns), HEIGHT + row * _ROW_HEIGHT + _ROW_HEIGHT // 2


def _spot(
    region: RegionView, at: tuple[int, int], home: tuple[int, int] | None, most: int, *, below: bool
) -> Spot:
    kind, label = link_of(region)
    x, y = at
    path = "" if home is None or region.home or below else " ".join(_arc(home, at))
    written = region.home or below or kind in _TROUBLED
    return Spot(
        region=region,
        kind=kind,
        label=label,
        x=x,
        y=y,
        path=path,
        width=round(2 + 8 * region.settled / most, 1) if most else 2.0,
        words=_words(region) if written else "",
        anchor="end" if x > WIDTH * 0.8 and not below else "start",
    )


def _arc(start: tuple[int, int], end: tuple[int, int]) -> Iterator[str]:
    """Yield a curve that rises with the distance."""
    rise = abs(end[0] - start[0]) // 5
    yield f"M{start[0]} {start[1]}"
    yield f"Q{(start[0] + end[0]) // 2} {(start[1] + end[1]) // 2 - rise} {end[0]} {end[1]}"
