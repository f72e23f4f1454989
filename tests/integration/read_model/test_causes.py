"""Each planted trouble is named by the sentence that `airbridge trace` prints, and by its code."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import update
from tests.integration.gateway import seeding
from tests.integration.gateway.world import CATALOGUE
from tests.integration.read_model.conftest import Seed
from tests.integration.read_model.test_lists import OLD

from airbridge.control_plane.read_model import document, tasks
from airbridge.control_plane.read_model.diagnosis import causes
from airbridge.control_plane.read_model.diagnosis.cause import Cause, Code
from airbridge.control_plane.read_model.history import timeline
from airbridge.control_plane.read_model.platform import Platform
from airbridge.core.compatibility import Matrix
from airbridge.core.regions import Team
from airbridge.executor.ledger import clock, events, items, leases
from airbridge.executor.ledger.models import Outcome, WorkItemRow
from airbridge.executor.ledger.sharing.held_back import UNSENT

MINUTE = timedelta(minutes=1)


@pytest.fixture(autouse=True)
def _scheduler(seed: Seed) -> None:
    seed.scheduler()


def explain(session: Any, platform: Platform, row: WorkItemRow) -> Cause:
    session.flush()
    task = tasks.of_instance(session, row.ti_id)
    assert task is not None
    line, cause = causes.of_task(session, platform, task)
    said = document.timeline(session, platform, task)
    # The second is derived a moment later: a second may have begun.
    assert without_ages(said["cause"]["sentence"]) == without_ages(cause.sentence)
    assert [step.at for step in line.steps] == sorted(step.at for step in line.steps)
    return cause


def without_ages(sentence: str) -> str:
    return re.sub(r"\d+ s\b", "N s", sentence)


def edge(session: Any, row: WorkItemRow | None, event: str, worker: str = "worker-1", **detail: Any) -> None:
    now = clock.now(session)
    events.add_once(
        session,
        [
            {
                "at": now,
                "began_at": None,
                "event": event,
                "actor": f"spiffe://{worker}",
                "region": "eu-west-1",
                "worker_id": worker,
                "item_id": row.id if row else None,
                "ti_id": row.ti_id if row else None,
                "epoch": row.epoch if row else None,
                "trace_id": None,
                "detail": detail,
                "source": "edge",
                "uid": str(uuid4()),
                "received_at": now,
                "skew_seconds": 0.0,
            }
        ],
    )


def set_state(session: Any, row: WorkItemRow, state: str) -> None:
    from airflow.models.taskinstance import TaskInstance

    session.execute(update(TaskInstance).where(TaskInstance.id == row.ti_id).values(state=state))


def age(row: WorkItemRow, by: timedelta) -> None:
    row.placed_at = row.placed_at - by


@pytest.mark.parametrize("event", ["xcom.read", "call.denied"])
def test_calls_push_out_no_other_event(session: Any, platform: Platform, seed: Seed, event: str) -> None:
    """A task that reads thousands of XComs, or is denied as many calls, is seen to run, and its claim stays in the timeline."""
    [row] = seed.task()
    seed.worker()
    now = clock.now(session)
    leases.claim(session, row, "worker-1", 60.0, 600.0, {}, at=now)
    events.record(session, "claim.granted", "spiffe://worker-1", row=row)
    session.flush()
    edge(session, row, "task.forked", warm=True)
    detail = (
        {"key": "k", "bytes": 1, "of_task": "t"}
        if event == "xcom.read"
        else {"method": "GET", "path": "x", "why": "y"}
    )
    calls = [events.values(event, "spiffe://worker-1", at=now, row=row, **detail) for _ in range(2_100)]
    events.add(session, calls)
    assert explain(session, platform, row).code is Code.RUNNING
    task = tasks.of_instance(session, row.ti_id)
    assert task is not None
    line = timeline.of(session, task)
    assert "claim.granted" in {step.event for step in line.steps}
    assert not line.complete


# --- The troubles, one by one


def test_no_worker(session: Any, platform: Platform, seed: Seed) -> None:
    """No worker has ever enrolled in the pool."""
    seed.gateway()
    [row] = seed.task()
    age(row, 4 * MINUTE)
    cause = explain(session, platform, row)
    assert Code.NO_WORKER == cause.code
    assert "queued 4 min: region eu-west-1 has 0 workers" == cause.sentence
    assert cause.trouble


def test_stopped_workers_are_no_partition(session: Any, platform: Platform, seed: Seed) -> None:
    """A worker that reported that it was stopping has stopped; it is not cut off."""
    seed.gateway()
    seed.worker(heard=10 * MINUTE, state="stopping")
    [row] = seed.task()
    assert (Code.NO_WORKER, True) == (
        (cause := explain(session, platform, row)).code,
        cause.sentence.endswith("0 workers; 1 worker stopped"),
    )


def test_workers_full(session: Any, platform: Platform, seed: Seed) -> None:
    """Every slot of the pool is taken; the sentence gives the number of items that wait before this one."""
    seed.gateway()
    seed.worker(slots=(8, 8))
    first, second = seed.task(count=2)
    age(first, MINUTE)
    cause = explain(session, platform, second)
    assert Code.WORKERS_FULL == cause.code
    assert "all 8 slots of 1 worker in eu-west-1 are taken; 1 item wait" in cause.sentence


def test_refused_by_the_matrix(session: Any, platform: Platform, seed: Seed) -> None:
    """The only workers run a version that the matrix refuses: how many, which version, and why."""
    seed.gateway()
    for number in range(3):
        seed.worker(f"worker-{number}", versions=OLD)
    [row] = seed.task()
    age(row, 4 * MINUTE)
    cause = explain(session, platform, row)
    assert Code.PARITY == cause.code
    assert cause.sentence.startswith(
        "queued 4 min: region eu-west-1 has 0 workers that the matrix allows; 3 are on 0.0.9, refused ("
    )


def test_drain_only_by_the_matrix(session: Any, platform: Platform, seed: Seed) -> None:
    """A matrix that lets old workers only finish what they hold is named as such."""
    entry = platform.parity.matrix.compatible[0].model_dump() | {"worker": "==0.0.9", "verdict": "drain"}
    matrix = Matrix.model_validate({"schema": 1, "compatible": [entry]})
    from airbridge.control_plane.parity import Parity

    old = Platform(CATALOGUE, Parity(matrix, platform.parity.control_plane))
    seed.gateway()
    seed.worker(versions=OLD)
    [row] = seed.task()
    cause = explain(session, old, row)
    assert (Code.PARITY, True) == (cause.code, "1 is on 0.0.9, drain only" in cause.sentence)


def test_refused_at_enrolment(session: Any, platform: Platform, seed: Seed) -> None:
    """A pool whose only worker was sent away for its version is not just empty; another pool's is no reason."""
    seed.gateway()
    [row] = seed.task()
    refused = {"region": "eu-west-1", "worker_id": "worker-7", "runs": "9.9.9", "why": "outside the matrix"}
    events.record(session, "enrol.refused", "spiffe://worker-7", pool="gpu", **refused)
    assert Code.NO_WORKER == explain(session, platform, row).code
    events.record(session, "enrol.refused", "spiffe://worker-7", pool="default", **refused)
    cause = explain(session, platform, row)
    assert Code.PARITY == cause.code
    assert (
        "0 workers; worker-7 on 9.9.9 was refused by the matrix 0 s ago (outside the matrix)"
        in cause.sentence
    )


def test_queue_unreachable(session: Any, platform: Platform, seed: Seed) -> None:
    """The outbox cannot send: the queue's error is quoted, for the item it tried and for those behind it."""
    seed.gateway()
    seed.worker()
    tried, behind = seed.task(count=2)
    tried.detail = f"{UNSENT}send_message_batch: connection refused"
    for row, state in ((tried, "placed"), (behind, "placed"), (tried, "sent"), (behind, "placed")):
        row.state = state  # without sent_at: the outbox tries it again just now
        cause = explain(session, platform, row)
        assert Code.QUEUE_UNREACHABLE == cause.code
        assert (
            "the queue of eu-west-1 did not take it: send_message_batch: connection refused" in cause.sentence
        )


def test_queue_unreachable_from_the_worker(session: Any, platform: Platform, seed: Seed) -> None:
    """It was sent, and the only worker cannot receive."""
    seed.gateway()
    seed.worker()
    [row] = seed.task()
    row.state, row.sent_at = "sent", clock.now(session)
    edge(session, None, "queue.failing", why="connection refused")
    cause = explain(session, platform, row)
    assert Code.QUEUE_UNREACHABLE == cause.code
    assert "worker-1 cannot receive from the queue of eu-west-1: connection refused" in cause.sentence
    edge(session, None, "queue.restored")
    assert Code.ON_QUEUE == explain(session, platform, row).code


def test_reported_queue_error(session: Any, platform: Platform, seed: Seed) -> None:
    """The worker's own report is enough: an event may be lost, and pages and causes read the same column."""
    seed.gateway()
    seed.worker(queue_error="Unable to locate credentials")
    [row] = seed.task()
    row.state, row.sent_at = "sent", clock.now(session)
    cause = explain(session, platform, row)
    assert Code.QUEUE_UNREACHABLE == cause.code
    expected = "worker-1 cannot receive from the queue of eu-west-1: Unable to locate credentials"
    assert expected in cause.sentence
    seed.worker("worker-2")
    assert Code.ON_QUEUE == explain(session, platform, row).code


def test_stale_worker_may_not_claim(session: Any, platform: Platform, seed: Seed) -> None:
    """A worker that has missed two heartbeats is not said to take the item."""
    seed.gateway()
    seed.worker(heard=timedelta(seconds=25))
    [row] = seed.task()
    row.state, row.sent_at = "sent", clock.now(session)
    cause = explain(session, platform, row)
    assert Code.PARTITION == cause.code
    assert "has 0 connected workers; 1 worker stale, worker-1 last heartbeat" in cause.sentence


def test_stale_holder(session: Any, platform: Platform, seed: Seed) -> None:
    """An item whose holder has missed two heartbeats is not said to run, though the lease still lasts."""
    seed.gateway()
    row = _claimed(session, seed, heard=timedelta(seconds=25))
    cause = explain(session, platform, row)
    assert Code.PARTITION == cause.code
    assert "held by worker-1 in eu-west-1, no heartbeat for 25 s: disconnected or dead" in cause.sentence
    assert "its lease runs out in" in cause.sentence


def test_reason_stands_once(session: Any, seed: Seed) -> None:
    """A long reason that a step of the task gives is not repeated where its item ends."""
    row = _claimed(session, seed)
    why = "the task's process ended with exit code 137 " + "x" * 300
    edge(session, row, "task.failed", why=why)
    leases.settle(session, row, Outcome.FAILED, why)
    session.flush()
    task = tasks.of_instance(session, row.ti_id)
    assert task is not None
    steps = timeline.of(session, task).steps
    assert ["ended: failed"] == [step.what for step in steps if step.event == "item.settled"]
    assert 1 == sum(why in step.what for step in steps)


def test_gateway_down(session: Any, platform: Platform, seed: Seed) -> None:
    """No gateway has been seen for a while: workers cannot claim, whatever they look like."""
    seed.gateway(seen=3 * MINUTE)
    seed.worker(heard=3 * MINUTE)
    [row] = seed.task()
    cause = explain(session, platform, row)
    assert (Code.GATEWAY_DOWN, True) == (cause.code, "no gateway has run for 3 min" in cause.sentence)


def test_gateway_down_while_it_runs(session: Any, platform: Platform, seed: Seed) -> None:
    """A running task whose lease ran out because no gateway is there is not called cut off."""
    seed.gateway(seen=3 * MINUTE)
    row = _claimed(session, seed)
    row.renewed_at -= 3 * MINUTE
    row.lease_until -= 3 * MINUTE
    cause = explain(session, platform, row)
    assert (Code.GATEWAY_DOWN, True) == (cause.code, "the worker continues" in cause.sentence)


def test_partitioned_worker(session: Any, platform: Platform, seed: Seed) -> None:
    """The worker that holds the item sends no heartbeat; the sentence has the time since, and when the attempt is fenced off."""
    seed.gateway()
    row = _claimed(session, seed, heard=3 * MINUTE)
    row.renewed_at -= 3 * MINUTE
    row.lease_until -= 3 * MINUTE
    cause = explain(session, platform, row)
    assert Code.PARTITION == cause.code
    assert "held by worker-1 in eu-west-1, no heartbeat for 3 min: disconnected or dead" in cause.sentence
    assert "it is fenced off in" in cause.sentence


def test_partition_of_a_region(session: Any, platform: Platform, seed: Seed) -> None:
    """All workers of the region went silent without a word."""
    seed.gateway()
    seed.worker(heard=5 * MINUTE)
    [row] = seed.task()
    cause = explain(session, platform, row)
    assert Code.PARTITION == cause.code
    assert "has 0 connected workers; 1 worker silent, worker-1 last heartbeat" in cause.sentence


def test_policy_denial(session: Any, platform: Platform, seed: Seed) -> None:
    """A call that was denied is a note while the task runs, and the cause once it has failed."""
    seed.gateway()
    row = _claimed(session, seed)
    events.record(
        session,
        "call.denied",
        "spiffe://w",
        row=row,
        method="GET",
        path="connections/db",
        why="no rule allows it",
    )
    edge(session, row, "task.forked")
    running = explain(session, platform, row)
    assert (Code.RUNNING, [Code.POLICY_DENIAL]) == (running.code, [note.code for note in running.notes])
    leases.settle(session, row, Outcome.SUCCESS, "failed")
    set_state(session, row, "failed")
    cause = explain(session, platform, row)
    assert Code.POLICY_DENIAL == cause.code
    assert "failed after a call was denied: GET connections/db (no rule allows it)" in cause.sentence


def test_policy_denies_the_claim(session: Any, platform: Platform, seed: Seed) -> None:
    """Work that no rule lets the pool's workers take is not just on the queue; a refusal of another kind is none of that."""
    seed.gateway()
    seed.worker()
    [row] = seed.task()
    row.state, row.sent_at = "sent", clock.now(session)
    for reason, expected in (("stale_epoch", Code.ON_QUEUE), ("forbidden", Code.POLICY_DENIAL)):
        events.record(
            session,
            "claim.refused",
            "spiffe://w",
            row=row,
            worker_id="worker-1",
            reason=reason,
            why="policy: no",
        )
        cause = explain(session, platform, row)
        assert expected == cause.code
    assert "worker-1 may not claim it: policy: no" in cause.sentence


def test_missing_bundle_before_worker_reason(session: Any, platform: Platform, seed: Seed) -> None:
    """The failure is reported at once, its reason with the next heartbeat: until then the cause is the event before it."""
    seed.gateway()
    row = _claimed(session, seed)
    edge(session, row, "bundle.failing", bundle="dags sha256:aaaa", why="it is not there")
    leases.settle(session, row, Outcome.SUCCESS, "failed")
    set_state(session, row, "failed")
    cause = explain(session, platform, row)
    assert Code.MISSING_BUNDLE == cause.code
    assert (
        "failed: DAG code dags sha256:aaaa cannot be fetched by worker-1: it is not there" in cause.sentence
    )


def test_missing_bundle(session: Any, platform: Platform, seed: Seed) -> None:
    """The worker that claimed it cannot find its code; when it gives up, the task's end still names that."""
    seed.gateway()
    row = _claimed(session, seed)
    edge(session, row, "bundle.failing", bundle="dags sha256:aaaa", why="it is not in the region's bucket")
    cause = explain(session, platform, row)
    assert Code.MISSING_BUNDLE == cause.code
    assert (
        "DAG code dags sha256:aaaa cannot be fetched by worker-1: it is not in the region's bucket"
        in cause.sentence
    )
    edge(session, row, "task.failed", why="DAG code dags sha256:aaaa: not found")
    leases.settle(session, row, Outcome.FAILED, "failed")
    assert Code.MISSING_BUNDLE == explain(session, platform, row).code


def test_certificate_about_to_end(session: Any, platform: Platform, seed: Seed) -> None:
    """A worker that has not renewed in time is named beside the state of the task that it is to run, or runs."""
    seed.gateway()
    row = _claimed(session, seed, certificate=4 * MINUTE)
    edge(session, row, "task.forked")
    cause = explain(session, platform, row)
    assert [Code.CERTIFICATE] == [note.code for note in cause.notes]
    assert cause.notes[0].sentence.startswith("the certificate of worker-1 expires in 3 min")


def test_certificate_ended(session: Any, platform: Platform, seed: Seed) -> None:
    """An expired certificate is the cause for which no worker takes the task."""
    seed.gateway()
    seed.worker(heard=5 * MINUTE, certificate=-4 * MINUTE)
    [row] = seed.task()
    cause = explain(session, platform, row)
    assert Code.CERTIFICATE == cause.code
    assert "the certificate of worker-1 expired 4 min ago and has not been renewed" in cause.sentence


def test_region_unknown(session: Any, platform: Platform, seed: Seed) -> None:
    """A queue that names no region is refused at placement, with the regions there are."""
    [ti] = seeding.queued_tasks(session)
    item = seeding._new_item(ti, "us-east-1", "default")
    refused = "queue 'mars' names no region; the regions are us-east-1, eu-west-1"
    row = items.refuse(session, replace(item, queue="mars"), 1, refused)
    cause = explain(session, platform, row)
    assert (Code.UNKNOWN_REGION, True) == (cause.code, refused in cause.sentence)


def test_region_that_left_the_catalogue(session: Any, platform: Platform, seed: Seed) -> None:
    """Work that waits for a region which was removed from the catalogue has that as its cause."""
    [row] = seed.task(region="ap-south-1")
    cause = explain(session, platform, row)
    assert Code.UNKNOWN_REGION == cause.code
    assert "region ap-south-1 is not in the catalogue; it has us-east-1, eu-west-1" in cause.sentence


def test_fenced_attempt(session: Any, platform: Platform, seed: Seed) -> None:
    """The cause of a lost attempt has the time for which its worker was silent, and that its later reports were refused."""
    seed.gateway()
    row = _claimed(session, seed)
    leases.settle(session, row, Outcome.LOST, "lost: worker worker-1 sent no heartbeat for 900 s")
    events.record(session, "exchange.refused", "spiffe://w", row=row, reason="lost", records=2)
    cause = explain(session, platform, row)
    assert Code.FENCED == cause.code
    assert "fenced off: lost: worker worker-1 sent no heartbeat for 900 s" in cause.sentence
    assert "what its worker reported later was refused" in cause.sentence


def test_poison_message(session: Any, platform: Platform, seed: Seed) -> None:
    """A message that workers reject is named, with the reason and what becomes of it."""
    seed.gateway()
    seed.worker()
    [row] = seed.task()
    now = clock.now(session)
    row.state, row.sent_at, row.expires_at = "sent", now - MINUTE, now + 5 * MINUTE
    edge(session, row, "message.rejected", reason="bad_signature", why="signature does not match key 'k'")
    cause = explain(session, platform, row)
    assert Code.POISON == cause.code
    assert "worker-1 rejected its message (bad_signature: signature does not match key 'k')" in cause.sentence
    assert "a new message is sent in" in cause.sentence


@pytest.mark.parametrize(
    ("seen", "silence"),
    [(5 * MINUTE, "the scheduler has sent no heartbeat for 5 min"), (None, "no scheduler is running")],
)
def test_scheduler_down_while_items_wait(
    session: Any, platform: Platform, seed: Seed, seen: timedelta | None, silence: str
) -> None:
    """Without a scheduler nothing is sent, whatever the workers could take, and nothing moves to a fallback; what is on the queue is claimed."""
    from airflow.jobs.job import Job

    seed.gateway()
    seed.worker()
    [row] = seed.task()
    row.placement = {**row.placement, "fallback": [{"region": "us-east-1", "pool": "default"}]}
    row.fallback_at = clock.now(session) + 2 * MINUTE
    seed.scheduler(seen or timedelta(0))
    if seen is None:
        session.execute(update(Job).values(state="success"))
    for state in ("placed", "sent"):
        row.state = state  # without sent_at: its message was about to be sent
        cause = explain(session, platform, row)
        assert (Code.SCHEDULER_DOWN, True) == (cause.code, cause.trouble)
        assert cause.sentence.endswith(f": {silence}: nothing is sent to the queue of eu-west-1")
    now = clock.now(session)
    row.sent_at, row.expires_at = now - MINUTE, now + MINUTE
    assert Code.ON_QUEUE == explain(session, platform, row).code
    row.expires_at = now - MINUTE
    assert Code.SCHEDULER_DOWN == explain(session, platform, row).code


def with_quota(platform: Platform, slots: int, **changes: Any) -> Platform:
    teams = (Team(name="finance", bundles=("dags",), quota={"eu-west-1": slots}),)
    changed = platform.catalogue.model_copy(update={"teams": teams, **changes})
    return replace(platform, catalogue=changed)


def test_quota_reached(session: Any, platform: Platform, seed: Seed) -> None:
    """A team whose work takes all slots of its quota waits for that work, however many slots are free; other teams do not."""
    limited = with_quota(platform, 2)
    seed.gateway()
    seed.worker(slots=(1, 8))
    running, sent, waiting, other = seed.task(count=4)
    for row in (running, sent, waiting):
        row.team = "finance"
    leases.claim(session, running, "worker-1", 60.0, 600.0, {})
    assert Code.WAITING_CAPACITY == explain(session, limited, waiting).code
    sent.state, sent.sent_at = "sent", clock.now(session)
    cause = explain(session, limited, waiting)
    assert (Code.QUOTA_REACHED, False) == (cause.code, cause.trouble)
    assert cause.sentence.endswith(": quota of team finance in eu-west-1: 2 of 2 slots taken, and 1 wait")
    assert Code.WAITING_CAPACITY == explain(session, limited, other).code
    assert Code.ON_QUEUE == explain(session, limited, sent).code
    assert Code.WAITING_CAPACITY == explain(session, platform, waiting).code


def test_quota_of_a_large_task(session: Any, platform: Platform, seed: Seed) -> None:
    """A task that fits into its team's quota waits for one before it that does not; without running work of the team, for no quota."""
    limited = with_quota(platform, 4)
    seed.gateway()
    seed.worker()
    running, large, small = seed.task(count=3)
    for row in (running, large, small):
        row.team = "finance"
    running.slots, large.slots = 3, 2
    age(large, MINUTE)
    leases.claim(session, running, "worker-1", 60.0, 600.0, {})
    cause = explain(session, limited, small)
    assert Code.QUOTA_REACHED == cause.code
    assert "3 of 4 slots taken, its next task needs 2, and 2 wait" in cause.sentence
    leases.settle(session, running, Outcome.SUCCESS, "success")
    assert Code.WAITING_CAPACITY == explain(session, limited, small).code


# --- And when there is none


@pytest.mark.parametrize(
    ("prepare", "code"),
    [
        (lambda row: setattr(row, "state", "sent"), Code.ON_QUEUE),
        (lambda row: None, Code.WAITING_CAPACITY),
    ],
)
def test_work_that_will_soon_be_taken(
    session: Any, platform: Platform, seed: Seed, prepare: Callable[[WorkItemRow], None], code: Code
) -> None:
    """With a gateway and a free slot, it is on its way: no trouble."""
    seed.gateway()
    seed.worker()
    [row] = seed.task()
    prepare(row)
    cause = explain(session, platform, row)
    assert (code, False) == (cause.code, cause.trouble)
    assert "1 worker with 8 free slots may claim it" in cause.sentence


def test_a_fallback_is_announced(session: Any, platform: Platform, seed: Seed) -> None:
    """The cause of work with a fallback names the next pool, and when the work moves."""
    seed.gateway()
    [row] = seed.task()
    row.placement = {**row.placement, "fallback": [{"region": "us-east-1", "pool": "default"}]}
    row.fallback_at = clock.now(session) + 2 * MINUTE
    assert "; it moves to default@us-east-1 in" in explain(session, platform, row).sentence


def test_task_not_queued_by_airflow(session: Any, platform: Platform, seed: Seed) -> None:
    """Without a work item it is Airflow's own turn, or its scheduler is not there."""
    [ti] = seeding.queued_tasks(session)
    task = tasks.of_instance(session, str(ti.id))
    assert task is not None
    assert Code.NOT_QUEUED == causes.of_task(session, platform, task)[1].code
    seed.scheduler(5 * MINUTE)
    cause = causes.of_task(session, platform, task)[1]
    assert (Code.SCHEDULER_DOWN, "queued: the scheduler has sent no heartbeat for 5 min") == (
        cause.code,
        cause.sentence,
    )


def test_a_task_that_ended(session: Any, platform: Platform, seed: Seed) -> None:
    """The cause of a successful task names its worker and region."""
    row = _claimed(session, seed)
    leases.settle(session, row, Outcome.SUCCESS, "success")
    set_state(session, row, "success")
    cause = explain(session, platform, row)
    assert (Code.ENDED, "ended on worker-1 in eu-west-1 as success; Airflow has it as success") == (
        cause.code,
        cause.sentence,
    )


def test_edge_times_are_skew_corrected(session: Any, platform: Platform, seed: Seed) -> None:
    """An event of a worker whose clock is five minutes ahead stands where it happened, with its own reading beside it."""
    row = _claimed(session, seed)
    now = clock.now(session)
    edge(session, row, "task.forked")
    session.execute(
        update(events.EventRow)
        .where(events.EventRow.event == "task.forked")
        .values(at=now + 5 * MINUTE, skew_seconds=300.0)
    )
    task = tasks.of_instance(session, row.ti_id)
    assert task is not None
    line, _ = causes.of_task(session, platform, task)
    [step] = [step for step in line.steps if step.event == "task.forked"]
    assert abs((step.at - now).total_seconds()) < 1
    assert now + 5 * MINUTE == step.edge_at
    assert {"worker-1": 300.0} == line.skews


def _claimed(session: Any, seed: Seed, **worker: Any) -> WorkItemRow:
    seed.worker(**worker)
    [row] = seed.task()
    leases.claim(session, row, "worker-1", 60.0, 600.0, {})
    set_state(session, row, "running")
    return row
