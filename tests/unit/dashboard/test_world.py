"""The map of many regions, and the line of each in the table."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise

from tests.unit.dashboard.test_network import region

from airbridge.control_plane.dashboard.drawings import sparkline, world
from airbridge.control_plane.dashboard.queries import Query
from airbridge.control_plane.dashboard.rendering import render
from airbridge.control_plane.read_model.overview import LimitView, Overview
from airbridge.control_plane.read_model.regions import Health, PoolView
from airbridge.control_plane.read_model.throughput import Throughput, largest
from airbridge.control_plane.read_model.usage import By, Usage
from airbridge.executor.ledger.sharing.usage import Amount

# Units that a letter takes at 26px.
LETTER = 15
POOL = PoolView("factory-1", "default", Health.HEALTHY, "", 0, 0, 0, None, 8, 0, Counter(), 0, 0)


def test_every_region_has_a_place_of_its_own() -> None:
    """All of AWS's regions and others lie within the drawing, at different points; others below the land."""
    names = [*world.PLACES, *(f"factory-{n}" for n in range(13))]
    drawn = world.draw([region(name, Health.HEALTHY) for name in names])
    points = {spot.region.name: (spot.x, spot.y) for spot in drawn.spots}
    assert len(set(points.values())) == len(names)
    assert all(0 <= x <= world.WIDTH and 0 <= y <= drawn.height for x, y in points.values())
    assert all((y > world.HEIGHT) == name.startswith("factory") for name, (_, y) in points.items())
    assert drawn.description == f"{len(names)} regions. None is in trouble."


def test_words_below_the_land_do_not_overlap() -> None:
    """A row holds as many regions as their words have room for, those in trouble with what it is."""
    regions = [region(f"factory-{n}", Health.CUT_OFF if n == 4 else Health.HEALTHY) for n in range(12)]
    drawn = world.draw(regions)
    rows = defaultdict(list)
    for spot in drawn.spots:
        rows[spot.y].append((spot.x, spot.x + 20 + LETTER * len(spot.words)))
    for row in rows.values():
        row.sort()
        assert all(end < start for (_, end), (start, _) in pairwise(row))
    assert "factory-4: cut off" in {spot.words for spot in drawn.spots}
    assert max(rows) < drawn.height


def test_regions_in_trouble_are_named_and_on_top() -> None:
    """A name stands at the home region and at those in trouble, which are drawn last."""
    regions = [
        region("eu-west-1", Health.CUT_OFF),
        replace(region("us-east-1", Health.HEALTHY), home=True),
        region("ap-south-1", Health.HEALTHY),
    ]
    drawn = world.draw(regions)
    assert [spot.region.name for spot in drawn.spots] == ["us-east-1", "ap-south-1", "eu-west-1"]
    assert [spot.words for spot in drawn.spots] == ["us-east-1 (home)", "", "eu-west-1: cut off"]
    assert [bool(spot.path) for spot in drawn.spots] == [False, True, True]
    assert drawn.description == "3 regions. eu-west-1: cut off"


def test_sparkline_fits_its_cell() -> None:
    """The points lie in the cell, the largest of all lines at its top; nothing ended is no line."""
    points = [tuple(map(int, each.split(","))) for each in sparkline.points([0, 10, 5], 10).split()]
    assert points == [(0, 23), (60, 1), (120, 12)]
    assert sparkline.points([0, 0], 10) == ""


def test_smaller_regions_share_a_line() -> None:
    """The chart has the regions with the most work, in order of name, and then the sum of all others."""
    counts = {"a": (1, 1), "b": (9, 9), "c": (0, 5), "d": (1, 0)}
    found = Throughput((datetime(2026, 1, 1, tzinfo=UTC),) * 2, counts)
    assert list(largest(found, 2).items()) == [("b", [9, 9]), ("c", [0, 5]), ("2 others", [2, 1])]
    assert list(largest(found, 4)) == ["a", "b", "c", "d"]


def test_page_of_many_regions_is_rendered() -> None:
    """The page has the map, a line of the last hour, and the regions that were chosen."""
    regions = [replace(region(name, Health.HEALTHY), pools=(POOL,)) for name in ("us-east-1", "factory-1")]
    found = Throughput((datetime(2026, 1, 1, tzinfo=UTC),) * 2, {"us-east-1": (3, 4)})
    html = render(
        "regions_live.html",
        {
            "root": "/airbridge",
            "query": Query({}),
            "screen": Overview(datetime.now(UTC), None, (), tuple(regions)),
            "network": None,
            "world": world.draw(regions),
            "gateways_alive": 1,
            "series": found,
            "sparklines": {"us-east-1": sparkline.points((3, 4), 4)},
            "chart": {"minutes": [0, 60], "regions": largest(found, 5)},
            "listed": regions[1:],
            "filtered": True,
            "own_version": "0.1.0",
        },
    )
    assert 'href="/airbridge/static/world.svg?v=' in html
    assert 'class="start">factory-1</text>' in html
    assert 'id="pool-factory-1-default"' in html
    assert 'id="pool-us-east-1-default"' not in html


def test_limits_are_on_the_usage_page() -> None:
    """The page lists the limits, those with the most waiting work first, and what of each is taken."""
    limits = (
        LimitView("free", ("gpu@eu-west-1",), 1, None, 2, 60, 0, full=False),
        LimitView("erp", (), 20, 20, 0, None, 312, full=True),
    )
    empty = Usage(datetime.now(UTC), datetime.now(UTC), (By.TEAM,), (), Amount())
    values = {"root": "/airbridge", "usage": empty, "limits": limits, "period": "the last day", "most": 200}
    html = render("usage_live.html", values)
    assert html.index('<th scope="row">erp</th>') < html.index('<th scope="row">free</th>')
    assert '20<span class="of">/20</span>' in html
    assert "gpu@eu-west-1" in html
