"""The backlog of one pool, without a database."""

from __future__ import annotations

from dataclasses import astuple
from datetime import UTC, datetime, timedelta

from airbridge.executor.ledger.backlogs import Backlog, _one
from airbridge.executor.ledger.models import ItemState

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def test_nothing_is_nothing() -> None:
    """A pool that nothing is known of has no work, no workers and no slots."""
    assert astuple(Backlog()) == (0, 0, 0, None, 0, 0, 0, 0, None)
    assert _one({}, {}, (0, 0)) == Backlog()


def test_counts_are_per_state() -> None:
    """Each state has its count; the oldest item that waits may be placed or sent, but not claimed."""
    states: dict[str, tuple[int, datetime | None]] = {
        ItemState.PLACED: (3, NOON),
        ItemState.SENT: (2, NOON - timedelta(minutes=1)),
        ItemState.CLAIMED: (5, NOON - timedelta(hours=1)),
    }
    triggers: dict[str, tuple[int, datetime | None]] = {
        ItemState.PLACED: (4, NOON),
        ItemState.CLAIMED: (1, NOON - timedelta(hours=9)),
    }
    found = _one(states, triggers, (2, 9))
    assert (found.placed, found.sent, found.claimed) == (3, 2, 5)
    assert (found.workers_alive, found.slots) == (2, 9)
    assert found.oldest_placed_at == NOON - timedelta(minutes=1)
    assert (found.triggers, found.triggers_placed) == (5, 4)
