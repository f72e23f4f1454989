"""Coordinates of the elements of the drawings."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

from airbridge.control_plane.dashboard.drawings import network
from airbridge.control_plane.read_model.regions import Health, PoolView, RegionView
from airbridge.control_plane.read_model.standing import Standing


def region(name: str, health: Health) -> RegionView:
    return RegionView(name, home=False, known=True, health=health, why="", last_heartbeat_at=None, pools=())


def test_regions_do_not_overlap() -> None:
    """However many regions there are, each has a place of its own within the drawing, and words for its state."""
    for count in (1, 2, 3, 12):
        drawn = network.draw([region(f"r{number}", Health.HEALTHY) for number in range(count)])
        middles = [link.middle for link in drawn.links]
        assert all(after - before == network.ROW_HEIGHT for before, after in itertools.pairwise(middles))
        assert min(middles) - 23 >= 0
        assert max(middles) + 23 <= drawn.height


def test_every_health_has_a_style() -> None:
    """Connected, degraded and cut off are distinguishable without colour."""
    drawn = network.draw([region(health.value, health) for health in Health])
    assert {"connected", "draining", "degraded", "cut", "idle"} == {link.kind for link in drawn.links}
    assert "cut_off: cut off" in drawn.description


def test_link_is_not_cut_by_a_refusal() -> None:
    """Work that no worker may take is no fault of a link whose workers send heartbeats."""
    refused = region("eu", Health.NO_WORKERS)
    pool = PoolView(
        "eu", "default", Health.NO_WORKERS, "", 1, 0, 0, None, 0, 0, Counter({Standing.REFUSED: 1}), 0, 0
    )
    [there] = network.draw([replace(refused, pools=(pool,))]).links
    [nobody] = network.draw([refused]).links
    assert ("degraded", "no worker may claim") == (there.kind, there.label)
    assert ("cut", "no worker") == (nobody.kind, nobody.label)
