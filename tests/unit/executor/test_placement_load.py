"""Placement by load: of regions that hold the same data, the one with the shorter wait for a slot."""

from __future__ import annotations

import pytest
from tests.unit.executor.catalogues import catalogue

from airbridge.core import near
from airbridge.executor.ledger.backlogs import Backlog
from airbridge.executor.placement.placement import Decision, Placement
from airbridge.executor.settings import Settings

SETTINGS = Settings.read({"regions_file": "/r.toml", "secrets_dir": "/s", "stop_after": "500"}.get)


def decide(home: Backlog | None, away: Backlog | None, **hints: object) -> Decision:
    load = {("us-east-1", "default"): home, ("eu-west-1", "default"): away}
    known = {place: backlog for place, backlog in load.items() if backlog is not None}
    config = near("s3://shared/both", **hints)  # type: ignore[arg-type]
    return Placement(catalogue(), SETTINGS).decide("default", config, known)


def chosen(home: Backlog | None, away: Backlog | None) -> str:
    return str(decide(home, away).place)


@pytest.mark.parametrize("kind", ["placed", "sent", "claimed"])
def test_all_open_work_counts(kind: str) -> None:
    """Work that waits in the ledger, waits on the queue or runs: each of them makes the wait longer."""
    busy = Backlog(slots=4, workers_alive=1, **{kind: 8})
    assert chosen(busy, Backlog(slots=4, workers_alive=1)) == "eu-west-1"


def test_wait_is_per_slot() -> None:
    """Eight items over eight slots are a shorter wait than two over one."""
    assert chosen(Backlog(slots=1, sent=2), Backlog(slots=8, sent=8)) == "eu-west-1"
    assert chosen(Backlog(slots=8, sent=8), Backlog(slots=1, sent=2)) == "us-east-1"


@pytest.mark.parametrize("kind", ["placed", "sent"])
def test_shorter_backlog_without_workers(kind: str) -> None:
    """While no region has live workers, the region with fewer waiting items is chosen; running items do not count."""
    assert chosen(Backlog(**{kind: 5}), Backlog(placed=1)) == "eu-west-1"
    assert chosen(Backlog(claimed=5), Backlog(placed=1)) == "us-east-1"


def test_slots_without_work_beat_none() -> None:
    """A region whose row has zero slots counts as one without workers."""
    assert chosen(Backlog(placed=0), Backlog(placed=3, slots=1, workers_alive=1)) == "eu-west-1"


def test_unknown_load_counts_as_idle() -> None:
    """A region that nothing is known of has neither workers nor work."""
    assert chosen(Backlog(placed=1), None) == "eu-west-1"


def test_task_stop_after_overrides_deployment() -> None:
    """A task's own `stop_after` overrides the deployment's."""
    assert decide(None, None, stop_after=100).disconnect.stop_after == 100


@pytest.mark.parametrize("queue", [None, ""])
def test_no_queue_goes_home(queue: str | None) -> None:
    """A task without a queue is placed in the default region and pool."""
    assert str(Placement(catalogue(), SETTINGS).decide(queue, None, {}).place) == "us-east-1"
