"""Causes of deferred and rescheduled tasks: between two of their work items, and while a worker has their trigger."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import update
from tests.integration.read_model.conftest import Seed
from tests.integration.read_model.test_causes import (
    MINUTE,
    _claimed,
    age,
    edge,
    explain,
    set_state,
    with_quota,
    without_ages,
)

from airbridge.control_plane.read_model import document, tasks
from airbridge.control_plane.read_model.diagnosis.cause import Code
from airbridge.control_plane.read_model.platform import Platform
from airbridge.core.regions import Limit
from airbridge.executor.ledger import clock, events, items, leases
from airbridge.executor.ledger.models import Outcome, WorkItemRow


@pytest.fixture(autouse=True)
def _scheduler(seed: Seed) -> None:
    seed.scheduler()


def deferred(session: Any, seed: Seed, state: str = "deferred", **worker: Any) -> WorkItemRow:
    """A task that ran, deferred and then came to that state; return its item."""
    row = _claimed(session, seed, **worker)
    age(row, MINUTE)
    leases.settle(session, row, Outcome.SUCCESS, "deferred")
    set_state(session, row, state)
    return row


def trigger(session: Any, seed: Seed, state: str = "deferred", **worker: Any) -> WorkItemRow:
    """Place the trigger of a deferred task; return its item."""
    row = items.place_trigger(session, deferred(session, seed, state, **worker), 4711)
    session.flush()
    return row


def test_trigger_on_a_worker(session: Any, platform: Platform, seed: Seed) -> None:
    """A task whose trigger a worker has held for hours is deferred, and not about to start."""
    seed.gateway()
    row = trigger(session, seed)
    leases.claim(session, row, "worker-1", 60.0, 600.0, {})
    events.record(session, "claim.granted", "spiffe://worker-1", row=row)
    age(row, 180 * MINUTE)
    # Just after its task's item, which is older.
    session.execute(
        update(WorkItemRow)
        .where(WorkItemRow.id != row.id)
        .values(placed_at=row.placed_at - MINUTE)
        .execution_options(synchronize_session=False)
    )
    session.flush()
    edge(session, row, "message.claimed")
    cause = explain(session, platform, row)
    assert (Code.DEFERRED, False) == (cause.code, cause.trouble)
    assert "deferred for 3 h: its trigger runs on worker-1 in eu-west-1" == cause.sentence
    task = tasks.of_instance(session, row.ti_id)
    assert task is not None
    said = document.timeline(session, platform, task)
    assert ["task", "trigger"] == [item["kind"] for item in said["items"]]
    of_trigger = [step["event"] for step in said["steps"] if step["of_trigger"]]
    assert sorted(of_trigger) == ["claim.granted", "message.claimed", "trigger.placed"]


def test_trigger_without_its_code(session: Any, platform: Platform, seed: Seed) -> None:
    """A trigger whose code its worker cannot fetch has that as its cause."""
    seed.gateway()
    row = trigger(session, seed)
    leases.claim(session, row, "worker-1", 60.0, 600.0, {})
    session.flush()
    edge(session, row, "bundle.failing", bundle="dags sha256:aaaa", why="it is not there")
    cause = explain(session, platform, row)
    assert Code.MISSING_BUNDLE == cause.code
    assert "its trigger does not start: DAG code dags sha256:aaaa cannot be fetched" in cause.sentence


@pytest.mark.parametrize(
    ("sent", "code", "where"),
    [
        (True, Code.ON_QUEUE, "on the queue of eu-west-1, sent N s ago"),
        (False, Code.WAITING_CAPACITY, "to be sent to the queue of eu-west-1"),
    ],
)
def test_trigger_needs_no_slot(
    session: Any, platform: Platform, seed: Seed, sent: bool, code: Code, where: str
) -> None:
    """Neither full workers nor limits nor quotas hold a trigger back."""
    limit = Limit(name="erp", max_running=1, pools=("eu-west-1",))
    limited = with_quota(platform, 1, limits=(limit,))
    seed.gateway()
    row = trigger(session, seed, slots=(8, 8))
    [running] = seed.task()
    running.team = row.team = "finance"
    leases.claim(session, running, "worker-1", 60.0, 600.0, {})
    if sent:
        row.state, row.sent_at = "sent", clock.now(session)
    cause = explain(session, limited, row)
    assert (code, False) == (cause.code, cause.trouble)
    expected = f"deferred N s ago; its trigger waits: {where}; 1 worker may claim it"
    assert without_ages(cause.sentence) == expected


def test_trigger_of_a_silent_worker(session: Any, platform: Platform, seed: Seed) -> None:
    """A trigger whose worker is silent is sent again, and not fenced off."""
    seed.gateway()
    row = trigger(session, seed, heard=3 * MINUTE)
    leases.claim(session, row, "worker-1", 60.0, 600.0, {})
    row.renewed_at -= 3 * MINUTE
    row.lease_until -= 3 * MINUTE
    cause = explain(session, platform, row)
    assert Code.PARTITION == cause.code
    assert cause.sentence.startswith("deferred, its trigger held by worker-1 in eu-west-1, no heartbeat for")
    assert ", it is sent again in" in cause.sentence


def test_trigger_at_home(session: Any, platform: Platform, seed: Seed) -> None:
    """A deferred task without a trigger on a worker waits for Airflow's triggerer."""
    row = deferred(session, seed)
    cause = explain(session, platform, row)
    assert (Code.DEFERRED, False) == (cause.code, cause.trouble)
    assert "deferred for N s: its trigger is with Airflow's triggerer" == without_ages(cause.sentence)


@pytest.mark.parametrize("last", ["deferred", "up_for_reschedule", "trigger", "open trigger"])
def test_task_that_goes_on(session: Any, platform: Platform, seed: Seed, last: str) -> None:
    """A resumed or rescheduled task has not ended: what it waits for is the scheduler's."""
    if "trigger" in last:
        row = trigger(session, seed, "scheduled")
        leases.claim(session, row, "worker-1", 60.0, 600.0, {})
        if last == "trigger":
            leases.settle(session, row, Outcome.SUCCESS, "fired")
    else:
        row = deferred(session, seed, "scheduled")
        row.detail = last
    scheduled = explain(session, platform, row)
    assert (Code.NOT_QUEUED, False) == (scheduled.code, scheduled.trouble)
    set_state(session, row, "queued")
    assert "its executor has not placed it yet" in explain(session, platform, row).sentence
    seed.scheduler(5 * MINUTE)
    cause = explain(session, platform, row)
    assert (Code.SCHEDULER_DOWN, True) == (cause.code, cause.trouble)


def test_rescheduled_task(session: Any, platform: Platform, seed: Seed) -> None:
    """A sensor between two runs waits for its time, and not for dependencies."""
    row = deferred(session, seed, "up_for_reschedule")
    row.detail = "up_for_reschedule"
    cause = explain(session, platform, row)
    assert (Code.NOT_QUEUED, False) == (cause.code, cause.trouble)
    assert "up_for_reschedule after try 1: Airflow queues it again once its next run is due" == cause.sentence


@pytest.mark.parametrize(
    ("outcome", "detail", "state", "code", "sentence"),
    [
        (Outcome.SUCCESS, "fired: success", "success", Code.ENDED, "ended by its trigger on worker-1 in eu-west-1"),
        (Outcome.SUCCESS, "fired: failed", "failed", Code.FAILED, "failed by its trigger on worker-1 in eu-west-1"),
        (Outcome.CANCELLED, "not wanted", "success", Code.CANCELLED, "cancelled: not wanted"),
        (Outcome.LOST, "not wanted", "success", Code.CANCELLED, "cancelled: not wanted"),
        (None, None, "success", Code.ENDED, "ended"),
    ],
)  # fmt: skip
def test_trigger_of_an_ended_task(
    session: Any,
    platform: Platform,
    seed: Seed,
    outcome: Outcome | None,
    detail: str | None,
    state: str,
    code: Code,
    sentence: str,
) -> None:
    """A task that its trigger ended, or that Airflow ended while it was deferred, has that as its cause; its trigger may still be held."""
    row = trigger(session, seed, state)
    leases.claim(session, row, "worker-1", 60.0, 600.0, {})
    after = f": Airflow has it as {state} after try 1"
    if outcome is not None:
        leases.settle(session, row, outcome, detail)
        after = f"; Airflow has it as {state}"
    cause = explain(session, platform, row)
    assert (code, f"{sentence}{after}") == (cause.code, cause.sentence)


@pytest.mark.parametrize(
    ("detail", "state", "code", "sentence"),
    [
        ("deferred", "success", Code.ENDED, "ended after it was deferred on worker-1 in eu-west-1"),
        ("deferred", "failed", Code.FAILED, "failed after it was deferred on worker-1 in eu-west-1"),
        ("up_for_reschedule", "failed", Code.FAILED, "failed after it was rescheduled on worker-1 in eu-west-1"),
    ],
)  # fmt: skip
def test_task_that_ended_between_runs(
    session: Any, platform: Platform, seed: Seed, detail: str, state: str, code: Code, sentence: str
) -> None:
    """A task that Airflow ended while it waited did not end on its worker."""
    row = deferred(session, seed, state)
    row.detail = detail
    cause = explain(session, platform, row)
    assert (code, f"{sentence}; Airflow has it as {state}") == (cause.code, cause.sentence)
