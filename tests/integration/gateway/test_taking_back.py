"""A worker that does not know of its grant: it died before it had written it down, or lost its journal."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from tests.integration.gateway.world import Worker, World, cancels, finished, lease, xcom

from airbridge.executor import _airflow
from airbridge.executor.keeper import Keeper
from airbridge.executor.ledger.models import Outcome, WorkItemRow
from airbridge.executor.protocol import Heartbeat, LeaseRef, RefusalReason
from airbridge.executor.settings import Settings

LATER = timedelta(minutes=1)


def beat(worker: Worker, *leases: LeaseRef, answered: timedelta | None = LATER, **more: Any) -> None:
    """A heartbeat of a worker that got its last answer this long after now."""
    at = None if answered is None else datetime.now(UTC) + answered
    worker.beat(*leases, answered_at=at, **more)


def set_policy(world: World, item_id: str, **changes: Any) -> None:
    with world.metadata.session() as session:
        row = session.get(WorkItemRow, item_id)
        row.disconnect = {**row.disconnect, **changes}
        session.commit()


def keep(world: World) -> None:
    """A turn of the keeper."""
    settings = Settings(regions_file=world.directory, secrets_dir=world.directory)
    keeper = Keeper(
        settings=settings, owner_job_id=1, new_session=_airflow.new_session, heartbeat_timeout=300.0
    )
    keeper.fence()


def test_a_grant_that_its_worker_never_noted_goes_back_to_the_queue(world: World) -> None:
    """A restarted worker's heartbeat proves that it knows nothing of the grant: another may have it at once."""
    [item_id] = world.items()
    first, second = world.worker(), world.worker()
    old = first.grant(item_id)
    beat(first)
    row, task = world.row(item_id), world.task(item_id)
    assert (row.state, row.worker_id, task.state) == ("placed", None, "queued")
    assert "ended before it took note of the grant" in row.detail

    new = second.grant(item_id)
    assert new.epoch == old.epoch + 1
    [late] = first.exchange(finished(old, 1)).results
    assert late.refused is RefusalReason.STALE_EPOCH
    [good] = second.exchange(finished(new, 1)).results
    assert (good.status, world.task(item_id).state) == (204, "success")


@pytest.mark.parametrize("answered", [None, timedelta(seconds=-30), timedelta(seconds=1)])
def test_a_heartbeat_that_may_be_older_than_the_grant_proves_nothing(
    world: World, answered: timedelta | None
) -> None:
    """Only a worker that was answered well after the grant can have been told of it."""
    [item_id] = world.items()
    worker = world.worker()
    worker.grant(item_id)
    beat(worker, answered=answered)
    assert world.row(item_id).state == "claimed"


def test_what_a_worker_still_asks_for_is_left_to_it(world: World) -> None:
    """The answer to its claim was lost; it will ask again, and get the same grant."""
    [item_id] = world.items()
    worker = world.worker()
    old = worker.grant(item_id)
    envelope = world.envelope(item_id, epoch=0)
    beat(worker, claiming=(UUID(item_id),))
    assert world.row(item_id).state == "claimed"
    assert worker.claim(envelope).grants == (old,)


def test_a_host_of_that_name_may_still_run_what_must_never_run_twice(world: World) -> None:
    """With a `stop_after` the item waits for `lost_after`, by when whoever runs it has stopped."""
    [item_id] = world.items()
    set_policy(world, item_id, stop_after=60.0)
    worker = world.worker()
    worker.grant(item_id)
    beat(worker)
    row = world.row(item_id)
    assert row.state == "claimed"
    assert row.lost_at > datetime.now(UTC) + timedelta(minutes=5)


@pytest.mark.parametrize("heard", ["heartbeat", "write"])
def test_a_lost_journal_fails_the_attempt_at_once(world: World, heard: str) -> None:
    """A worker that held a task and no longer knows of it will never report it: the attempt is fenced, for retry."""
    [item_id] = world.items()
    worker = world.worker()
    grant = worker.grant(item_id)
    if heard == "heartbeat":
        beat(worker, lease(grant))
    else:
        worker.exchange(xcom(grant, 1, "k", 1))
    beat(worker)
    keep(world)
    row = world.row(item_id)
    assert (row.state, row.outcome) == ("settled", Outcome.LOST)
    assert "no longer knows of it" in row.detail
    assert [event.detail["reason"] for event in world.events("lease.disowned") if event.item_id == item_id]
    [late] = worker.exchange(finished(grant, 2)).results
    assert late.refused is RefusalReason.LOST


def test_work_that_is_not_to_be_replaced_is_given_up_rather_than_queued_again(world: World) -> None:
    """Nobody heard of its start, and nobody can vouch that it did not start: it fails, and says why."""
    [item_id] = world.items()
    set_policy(world, item_id, replace=False)
    worker = world.worker()
    worker.grant(item_id)
    beat(worker)
    keep(world)
    row = world.row(item_id)
    assert (row.state, row.outcome) == ("settled", Outcome.LOST)
    assert row.detail.endswith("it is not retried (replace is false)")


def test_a_lease_that_is_listed_is_renewed_whatever_else_the_heartbeat_says(world: World) -> None:
    """A worker that lists what it holds loses nothing."""
    [item_id] = world.items()
    worker = world.worker()
    grant = worker.grant(item_id)
    beat(worker, lease(grant))
    beat(worker, lease(grant))
    assert world.row(item_id).state == "claimed"
    assert cancels(worker.beat(lease(grant))) == []


def test_an_older_worker_says_nothing_of_its_answers() -> None:
    """Without the new fields a heartbeat means what it meant: no proof, nothing taken back."""
    old = {
        "sent_at": datetime.now(UTC),
        "versions": {"airbridge": "0", "airflow": "3.0.4", "task_sdk": "1", "python": "3"},
    }
    read = Heartbeat.model_validate({**old, "slots_total": 1, "slots_used": 0})
    assert (read.answered_at, read.claiming) == (None, ())
