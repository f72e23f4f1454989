"""Held leases: which claimed rows a worker has, and the heartbeats that Airflow sees of them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import exc, text
from tests.integration.gateway.world import World, finished, lease

from airbridge.control_plane.gateway.work.held_leases import Held, held, keep_alive

LATER = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)


@pytest.fixture
def session(world: World) -> Iterator[Any]:
    with world.metadata.session() as session:
        yield session
        session.rollback()


def test_workers_have_their_claimed_rows(world: World, session: Any) -> None:
    """A worker's claimed rows with their task's state; others' rows, settled ones and workers without any are left out."""
    first, second, idle = world.worker(), world.worker(), world.worker()
    running, done, foreign = world.items(3)
    grants = [first.grant(running), first.grant(done)]
    second.grant(foreign)
    first.exchange(finished(grants[1], 1))
    row = world.row(running)
    assert held(session, {first.name.worker, idle.name.worker}) == {
        first.name.worker: [Held(lease(grants[0]), row.ti_id, "running", row.claimed_at, None, 600.0, None)]
    }
    assert held(session, {first.name.worker, second.name.worker}).keys() == {
        first.name.worker,
        second.name.worker,
    }
    assert held(session, set()) == {}


@pytest.mark.parametrize("skip_locked", [False, True])
def test_running_tasks_are_kept_alive(world: World, session: Any, skip_locked: bool) -> None:
    """The heartbeat of the given tasks moves to the given time if they run; no other task's does."""
    worker = world.worker()
    running, ended, other = world.items(3)
    for item in (running, ended, other):
        worker.grant(item)
    world.set_task_state(ended, "failed")
    before = [world.task(item).last_heartbeat_at for item in (ended, other)]
    ti_ids = [world.row(item).ti_id for item in (running, ended)]
    keep_alive(session, [], LATER, skip_locked=skip_locked)
    keep_alive(session, ti_ids, LATER, skip_locked=skip_locked)
    session.commit()
    assert world.task(running).last_heartbeat_at == LATER
    assert [world.task(item).last_heartbeat_at for item in (ended, other)] == before
    with world.metadata.session() as other_session:
        keep_alive(other_session, ti_ids[1:], LATER + timedelta(hours=1), skip_locked=skip_locked)
        other_session.commit()
    assert world.task(running).last_heartbeat_at == LATER


def test_locked_tasks_are_left_alone(world: World, session: Any) -> None:
    """With `skip_locked` a task that another transaction has locked is passed over; without, it is waited for."""
    worker = world.worker()
    items = world.items(2)
    for item in items:
        worker.grant(item)
    locked, free = (world.row(item).ti_id for item in items)
    session.execute(text("SELECT id FROM task_instance WHERE id = :id FOR UPDATE"), {"id": locked})
    with world.metadata.session() as other:
        other.execute(text("SET LOCAL lock_timeout = '300ms'"))
        keep_alive(other, [locked, free], LATER, skip_locked=True)
        other.commit()
        other.execute(text("SET LOCAL lock_timeout = '300ms'"))
        with pytest.raises(exc.OperationalError, match="lock timeout"):
            keep_alive(other, [locked, free], LATER)
    session.rollback()
    assert world.task(items[0]).last_heartbeat_at != LATER
    assert world.task(items[1]).last_heartbeat_at == LATER
