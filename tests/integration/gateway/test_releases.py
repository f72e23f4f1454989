"""Releases: who may give work items back, and what becomes of their task instances."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.integration.gateway.test_heartbeats import caller
from tests.integration.gateway.world import World, lease

from airbridge.control_plane.exceptions import Refused
from airbridge.control_plane.gateway.work.release import release
from airbridge.control_plane.identity.scopes import Scopes
from airbridge.core.protocol import ReleaseRequest
from airbridge.executor.ledger.models import ItemState, Outcome


def test_release_needs_the_scope(world: World) -> None:
    """A token without `work:report` for this worker gives nothing back."""
    [item] = world.items()
    worker = world.worker()
    grant = worker.grant(item)
    asking = replace(caller(worker), scopes=Scopes.parse(["work:report worker=somebody-else"]))
    with pytest.raises(Refused):
        release(asking, ReleaseRequest(items=(lease(grant),), detail="drained"))
    assert world.row(item).state == ItemState.CLAIMED


def test_only_released_task_is_requeued(world: World) -> None:
    """The released task instance is queued without its host; the worker's other tasks run on."""
    items = world.items(2)
    worker = world.worker()
    first, second = (worker.grant(item) for item in items)
    worker.release(lease(first))
    tasks = [world.task(item) for item in items]
    assert [(task.state, task.hostname, task.pid) for task in tasks] == [
        ("queued", "", None),
        ("running", worker.name.worker, second.epoch),
    ]
    assert [world.row(item).state for item in items] == [ItemState.PLACED, ItemState.CLAIMED]


@pytest.mark.parametrize(
    "changes", [{"state": "failed"}, {"hostname": "elsewhere"}, {"pid": 7}, {"pid": None}]
)
def test_other_attempts_are_not_queued_again(world: World, changes: dict[str, Any]) -> None:
    """A task instance that this claim did not start, or that has ended, keeps its state: the item is settled."""
    from airflow.models.taskinstance import TaskInstance

    [item] = world.items()
    worker = world.worker()
    grant = worker.grant(item)
    with world.metadata.session() as session:
        task = session.get(TaskInstance, world.row(item).ti_id)
        for name, value in changes.items():
            setattr(task, name, value)
        session.commit()
    before = world.task(item).state
    worker.release(lease(grant))
    assert world.task(item).state == before
    row = world.row(item)
    assert (row.state, row.outcome) == (ItemState.SETTLED, Outcome.CANCELLED)
    assert row.detail == "released after Airflow had given it up"


def test_reason_is_bounded(world: World) -> None:
    """The worker's reason is kept, up to 500 characters, with the item and in its timeline."""
    [item] = world.items()
    worker = world.worker()
    grant = worker.grant(item)
    release(caller(worker), ReleaseRequest(items=(lease(grant),), detail="x" * 501))
    assert world.row(item).detail == "x" * 500
    [event] = [row for row in world.events("item.released") if str(row.item_id) == item]
    assert event.detail["why"] == "x" * 500
