"""Workers without a record of their grant: they died before journalling it, or lost their journal."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from tests.integration.gateway.world import Worker, World, cancels, finished, lease, xcom

from airbridge.core.protocol import Heartbeat, LeaseRef, RefusalReason
from airbridge.executor import _airflow
from airbridge.executor.ledger.models import Outcome, WorkItemRow
from airbridge.executor.scheduling.reconciler import Reconciler
from airbridge.executor.settings import Settings

# More than a heartbeat interval after the grant: only then is the missing lease a proof.
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
    """A turn of the reconciler."""
    settings = Settings(regions_file=world.directory, secrets_dir=world.directory)
    reconciler = Reconciler(
        settings=settings, owner_job_id=1, new_session=_airflow.new_session, heartbeat_timeout=300.0
    )
    reconciler.fence()


def test_unjournalled_grant_is_queued_again(world: World) -> None:
    """A restarted worker's heartbeat proves that it has not journalled the grant: the item is free for another at once."""
    [item_id] = world.items()
    first, second = world.worker(), world.worker()
    old = first.grant(item_id)
    beat(first)
    row, task = world.row(item_id), world.task(item_id)
    assert (row.state, row.worker_id, task.state) == ("placed", None, "queued")
    assert "ended before it journalled the grant" in row.detail

    new = second.grant(item_id)
    assert new.epoch == old.epoch + 1
    [late] = first.exchange(finished(old, 1)).results
    assert late.refused is RefusalReason.STALE_EPOCH
    [good] = second.exchange(finished(new, 1)).results
    assert (good.status, world.task(item_id).state) == (204, "success")


@pytest.mark.parametrize("answered", [None, timedelta(seconds=-30), timedelta(seconds=1)])
def test_older_heartbeat_proves_nothing(world: World, answered: timedelta | None) -> None:
    """Only a worker that was answered well after the grant can have received it."""
    [item_id] = world.items()
    worker = world.worker()
    worker.grant(item_id)
    beat(worker, answered=answered)
    assert world.row(item_id).state == "claimed"


def test_claim_in_flight_keeps_grant(world: World) -> None:
    """A worker whose claim is still in flight has lost only the answer: it claims again, and gets the same grant."""
    [item_id] = world.items()
    worker = world.worker()
    old = worker.grant(item_id)
    envelope = world.envelope(item_id, epoch=0)
    beat(worker, claiming=(UUID(item_id),))
    assert world.row(item_id).state == "claimed"
    assert worker.claim(envelope).grants == (old,)


def test_former_holder_is_not_denied(world: World) -> None:
    """A release that is repeated, and a heartbeat that still lists the lease, are no denials; those of another worker are."""
    [item_id] = world.items()
    worker, other = world.worker(), world.worker()
    grant = worker.grant(item_id)
    for each in (worker, worker, other):
        each.release(lease(grant))
    for each in (worker, other):
        beat(each, lease(grant))
    other.grant(item_id)
    worker.release(lease(grant))
    found = [row for row in world.audited("lease.refused") if row.detail["item"] == item_id]
    assert [(row.actor, row.detail["request"]) for row in found] == [
        (other.name.uri, "release"),
        (other.name.uri, "heartbeat"),
    ]


def test_stop_after_waits_for_lost_after(world: World) -> None:
    """With a `stop_after` the item waits for `lost_after`, by when any worker that runs it has stopped."""
    [item_id] = world.items()
    set_policy(world, item_id, stop_after=60.0)
    worker = world.worker()
    worker.grant(item_id)
    beat(worker)
    row = world.row(item_id)
    assert row.state == "claimed"
    assert row.lost_at > datetime.now(UTC) + timedelta(minutes=5)


@pytest.mark.parametrize("heard", ["heartbeat", "write"])
def test_lost_journal_fails_attempt(world: World, heard: str) -> None:
    """A worker that held a task and has no record of it will never report it: the attempt is fenced, for retry."""
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
    assert "has no record of it" in row.detail
    assert [event.detail["reason"] for event in world.events("lease.disowned") if event.item_id == item_id]
    [late] = worker.exchange(finished(grant, 2)).results
    assert late.refused is RefusalReason.LOST


def test_irreplaceable_work_is_not_requeued(world: World) -> None:
    """Its start was not reported, yet it may have started, so it is not run again: it fails with the reason."""
    [item_id] = world.items()
    set_policy(world, item_id, replace=False)
    worker = world.worker()
    worker.grant(item_id)
    beat(worker)
    keep(world)
    row = world.row(item_id)
    assert (row.state, row.outcome) == ("settled", Outcome.LOST)
    assert row.detail.endswith("it is not retried (replace is false)")


def test_listed_lease_is_always_renewed(world: World) -> None:
    """A worker that lists what it holds loses nothing."""
    [item_id] = world.items()
    worker = world.worker()
    grant = worker.grant(item_id)
    beat(worker, lease(grant))
    beat(worker, lease(grant))
    assert world.row(item_id).state == "claimed"
    assert cancels(worker.beat(lease(grant))) == []


def test_older_worker_proves_nothing() -> None:
    """Without the new fields a heartbeat means what it meant: no proof, nothing taken back."""
    old = {
        "sent_at": datetime.now(UTC),
        "versions": {"airbridge": "0", "airflow": "3.0.4", "task_sdk": "1", "python": "3"},
    }
    read = Heartbeat.model_validate({**old, "slots_total": 1, "slots_used": 0})
    assert (read.answered_at, read.claiming) == (None, ())
