"""EdgeExecutor under Airflow's own scheduler, on both databases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import select
from tests.integration.executor.test_ledger import beat, enrol
from tests.support.airflow_home import Metadata
from tests.support.scheduler import VERSION, Hand, Scheduler, flat_dag, start_run, store_dag

from airbridge.core import near
from airbridge.executor import executor
from airbridge.executor.ledger import clock, items, leases
from airbridge.executor.ledger.items import NewItem
from airbridge.executor.ledger.models import Outcome, WorkerRow, WorkItemRow
from airbridge.executor.placement.workloads import Refused, Workloads
from airbridge.executor.scheduling.throttle import SHORT_SECONDS


def begin(metadata: Metadata, **arguments: object) -> str:
    dag = flat_dag(**arguments)  # type: ignore[arg-type]
    store_dag(metadata, dag)
    return start_run(metadata, dag)


def test_task_runs_from_queued_to_success(metadata: Metadata, scheduler: Scheduler, hand: Hand) -> None:
    """From queued, by way of the ledger, to success: the scheduler's slots are free again at the end."""
    begin(metadata, executor_config=near("s3://eu-data/x"), priority_weight=7, pool_slots=3)
    scheduler.loop(2)
    [row] = hand.rows()
    assert (row.state, row.region, row.pool, row.priority, row.slots) == (
        "placed",
        "eu-west-1",
        "default",
        7,
        3,
    )
    assert row.owner_job_id == scheduler.job.id
    assert row.workload["bundle"] == {"name": "dags-folder", "version": VERSION}
    assert row.workload["dag_rel_path"] == "flat.py"
    assert row.placement["why"] == "near s3://eu-data/x"
    assert row.trace["traceparent"].startswith("00-")
    assert scheduler.executor.slots_occupied == 1

    hand.claim([row])
    hand.finish([row])
    scheduler.loop(2)
    assert hand.task_states() == {"t0": "success"}
    assert scheduler.executor.slots_occupied == 0
    assert hand.rows()[0].acknowledged_at is not None


def test_refused_placement_fails_task(metadata: Metadata, scheduler: Scheduler, hand: Hand) -> None:
    """A task that cannot be placed fails without a retry, and the reason is in the ledger and the audit log."""
    begin(metadata, queue="eu-west-2", retries=3)
    scheduler.loop(3)
    assert hand.task_states() == {"t0": "failed"}
    [row] = hand.rows()
    assert (row.state, row.outcome) == ("settled", Outcome.UNPLACEABLE)
    assert "did you mean 'eu-west-1'?" in row.detail
    assert any(event == "airbridge unplaceable" and "eu-west-2" in extra for event, extra in hand.audit())
    assert scheduler.executor.slots_occupied == 0


def test_placement_refused_calls_the_failure_callback(
    metadata: Metadata, scheduler: Scheduler, hand: Hand
) -> None:
    """The dag-processor is requested to run the task's failure callback, as for any failure that the worker cannot report."""
    begin(metadata, queue="mars", on_failure_callback=lambda context: None)
    scheduler.loop(3)
    [request] = scheduler.executor.callback_sink.sent
    assert request.ti.task_id == "t0"
    assert "there is no region 'mars'" in request.msg


@pytest.mark.parametrize("versioned", [True, False])
def test_callback_has_code_of_run(
    metadata: Metadata, scheduler: Scheduler, hand: Hand, versioned: bool
) -> None:
    """A failure callback runs with the code that the task has, though its DAG came in with an earlier version of the bundle."""
    later = "sha256:" + "b" * 64
    dag = flat_dag(queue="mars", on_failure_callback=lambda context: None)
    dag.disable_bundle_versioning = not versioned
    store_dag(metadata, dag)
    store_dag(metadata, dag, version=later)
    start_run(metadata, dag)
    if versioned:
        store_dag(metadata, dag, version="sha256:" + "c" * 64)
    scheduler.loop(3)
    [request] = scheduler.executor.callback_sink.sent
    assert request.bundle_version == later


def test_foreign_bundle_is_refused(metadata: Metadata, scheduler: Scheduler, hand: Hand) -> None:
    """DAG code without a digest cannot reach a worker, and the message names the bundle class to configure."""
    dag = flat_dag()
    store_dag(metadata, dag, version=None)
    start_run(metadata, dag)
    scheduler.loop(3)
    assert hand.task_states() == {"t0": "failed"}
    assert "DAG bundle 'dags-folder' has no version" in hand.rows()[0].detail
    assert "airbridge.executor.bundles.bundle.AirBridgeBundle" in hand.rows()[0].detail


def test_unversioned_run_gets_current_bundle(metadata: Metadata, scheduler: Scheduler, hand: Hand) -> None:
    """A DAG that opts out of versioning runs the code that is current when it is queued."""
    dag = flat_dag()
    dag.disable_bundle_versioning = True
    store_dag(metadata, dag)
    start_run(metadata, dag)
    scheduler.loop(2)
    assert hand.rows()[0].workload["bundle"]["version"] == VERSION


def test_a_lost_attempt_is_retried(metadata: Metadata, scheduler: Scheduler, hand: Hand) -> None:
    """A fenced attempt fails in Airflow, with the reason, and the next try gets a work item of its own."""
    begin(metadata, retries=1, retry_delay=timedelta(0))
    scheduler.loop(2)
    hand.claim(hand.rows(), lost_after=-1)
    assert scheduler.executor.reconciler.fence() == 1
    scheduler.loop(1)
    assert any("worker worker-1 in us-east-1 sent no heartbeat" in extra for _, extra in hand.audit())
    scheduler.loop(3)
    old, new = hand.rows()
    assert (old.outcome, old.try_number) == (Outcome.LOST, 1)
    assert (new.state, new.try_number) == ("placed", 2)
    assert old.ti_id != new.ti_id
    assert old.acknowledged_at is not None


def test_lost_attempt_without_replace_fails(metadata: Metadata, scheduler: Scheduler, hand: Hand) -> None:
    """With replace=False no retry is left, however many the task has."""
    begin(metadata, retries=5, executor_config=near(replace=False))
    scheduler.loop(2)
    hand.claim(hand.rows(), lost_after=-1)
    scheduler.executor.reconciler.fence()
    scheduler.loop(4)
    assert hand.task_states() == {"t0": "failed"}
    assert len(hand.rows()) == 1
    assert "it is not retried (replace is false)" in hand.rows()[0].detail


def test_failure_is_reported_until_handled(metadata: Metadata, scheduler: Scheduler, hand: Hand) -> None:
    """An event that the scheduler skipped (the task was locked) is not lost: the row stays unacknowledged."""
    begin(metadata, retries=0)
    scheduler.loop(2)
    hand.claim(hand.rows(), lost_after=-1)
    scheduler.executor.reconciler.fence()
    scheduler.executor.sync()
    assert len(scheduler.executor.get_event_buffer()) == 1
    assert hand.rows()[0].acknowledged_at is None

    scheduler.executor.sync()
    assert scheduler.executor.get_event_buffer() == {}, "not told again at once"
    # Outcomes are reported again only after a while: let it have passed.
    scheduler.executor._reported_at.clear()
    scheduler.loop(2)
    assert hand.task_states() == {"t0": "failed"}
    assert hand.rows()[0].acknowledged_at is not None


def test_live_worker_is_not_fenced(metadata: Metadata, scheduler: Scheduler, hand: Hand) -> None:
    """Only leases past lost_after are lost."""
    begin(metadata)
    scheduler.loop(2)
    hand.claim(hand.rows())
    assert scheduler.executor.reconciler.fence() == 0
    assert hand.rows()[0].state == "claimed"


def test_resumed_task_gets_new_item(metadata: Metadata, scheduler: Scheduler, hand: Hand) -> None:
    """Deferral ends one work item; the same task instance, queued again, gets another and is not failed for it."""
    begin(metadata)
    scheduler.loop(2)
    hand.claim(hand.rows())
    hand.finish(hand.rows(), state="deferred")
    hand.set_task("t0", state="scheduled")  # the trigger fired before the scheduler saw the deferral
    scheduler.loop(3)
    first, second = hand.rows()
    # A retry gets a new task instance id, a resumed task keeps its own.
    assert first.ti_id == second.ti_id
    assert (first.state, second.state) == ("settled", "placed")
    hand.claim([second])
    hand.finish([second])
    scheduler.loop(1)
    assert hand.task_states() == {"t0": "success"}
    assert scheduler.executor.slots_occupied == 0


def test_marked_task_is_cancelled(metadata: Metadata, scheduler: Scheduler, hand: Hand) -> None:
    """Marking a running task orders its worker to stop it; its row is settled once that is confirmed, or the lease is over."""
    begin(metadata, tasks=2)
    scheduler.loop(2)
    hand.claim(hand.rows())
    hand.set_task("t0", state="failed")
    assert scheduler.executor.reconciler.cancel() == 1
    outcomes = {row.task_id: (row.state, row.outcome) for row in hand.rows()}
    assert outcomes == {"t0": ("claimed", Outcome.CANCELLED), "t1": ("claimed", None)}
    assert scheduler.executor.reconciler.cancel() == 0, "the order is given"
    end_leases(metadata)
    assert scheduler.executor.reconciler.cancel() == 1
    scheduler.loop(1)
    assert hand.task_states() == {"t0": "failed", "t1": "running"}
    assert scheduler.executor.slots_occupied == 1


def end_leases(metadata: Metadata) -> None:
    """Let every lease run out: its worker cannot be reached."""
    with metadata.session() as session:
        for row in session.scalars(select(WorkItemRow)):
            row.lease_until = clock.now(session)
        session.commit()


def test_retry_waits_for_first_attempt(metadata: Metadata, scheduler: Scheduler, hand: Hand) -> None:
    """An attempt is not sent while a worker still holds the one before it."""
    begin(metadata, retries=2)
    scheduler.loop(2)
    hand.claim(hand.rows())
    with metadata.session() as session:
        [first] = session.scalars(select(WorkItemRow))
        values = {each.name: getattr(first, each.name) for each in fields(items.NewItem)}
        other = {"id": str(uuid4()), "ti_id": str(uuid4()), "try_number": 2}
        [second] = items.place(session, [items.NewItem(**values | other)], None)
        assert items.running_before(session, [first, second], clock.now(session)) == {second.id}
        session.commit()
    scheduler.executor.turn_outbox(first.region)
    assert [row.state for row in hand.rows()] == ["claimed", "placed"]
    end_leases(metadata)
    with metadata.session() as session:
        assert items.running_before(session, [session.merge(second)], clock.now(session)) == set()


def test_waiting_task_is_cancelled(metadata: Metadata, scheduler: Scheduler, hand: Hand) -> None:
    """A task marked while its message waits is never granted."""
    begin(metadata)
    scheduler.loop(2)
    hand.set_task("t0", state="success")
    assert scheduler.executor.reconciler.cancel() == 1
    assert hand.rows()[0].outcome == Outcome.CANCELLED


def test_wanted_tasks_are_not_cancelled(metadata: Metadata, scheduler: Scheduler, hand: Hand) -> None:
    """Queued and running tasks keep their items."""
    begin(metadata, tasks=2)
    scheduler.loop(2)
    hand.claim(hand.rows()[:1])
    assert scheduler.executor.reconciler.cancel() == 0


def test_cleared_task_runs_again(metadata: Metadata, scheduler: Scheduler, hand: Hand) -> None:
    """Clearing orders the worker to stop; once the attempt has ended the task is queued anew with its retries back."""
    from airflow.models.taskinstance import TaskInstance, clear_task_instances
    from sqlalchemy import select

    begin(metadata, retries=2)
    scheduler.loop(2)
    hand.claim(hand.rows())
    with metadata.session() as session:
        clear_task_instances(session.scalars(select(TaskInstance)).unique().all(), session)
        session.commit()
    scheduler.executor.reconciler.turn()
    assert hand.task_states() == {"t0": "restarting"}
    assert [row.state for row in hand.rows()] == ["claimed"]
    end_leases(metadata)
    scheduler.executor.reconciler.cancel()
    assert scheduler.executor.reconciler.restart() == 1
    scheduler.executor.reconciler.turn()
    assert hand.task_states() == {"t0": None}
    # Clearing raises max_tries by the tries used, one here.
    assert hand.tasks()["t0"].max_tries == 3
    scheduler.loop(3)
    old, new = hand.rows()
    assert (old.outcome, new.state, new.try_number) == (Outcome.CANCELLED, "placed", 2)


def test_leased_tasks_outlive_heartbeat_timeout(metadata: Metadata, scheduler: Scheduler, hand: Hand) -> None:
    """A task whose worker is cut off stays alive in Airflow until lost_after, and no longer."""
    from airflow.utils import timezone

    begin(metadata, tasks=2)
    scheduler.loop(2)
    kept, lost = hand.rows()
    hand.claim([kept])
    hand.claim([lost], lost_after=-1)
    long_ago = timezone.utcnow() - timedelta(hours=1)
    for row in (kept, lost):
        hand.set_task(row.task_id, last_heartbeat_at=long_ago)
    assert scheduler.executor.reconciler.freshen() == 1
    assert scheduler.executor.reconciler.freshen() == 0, "fresh ones are left alone"
    scheduler.runner._find_and_purge_task_instances_without_heartbeats()
    assert hand.tasks()[kept.task_id].last_heartbeat_at > long_ago
    assert hand.tasks()[lost.task_id].last_heartbeat_at == long_ago


def test_parallelism_bounds_what_is_placed(metadata: Metadata, scheduler: Scheduler, hand: Hand) -> None:
    """No more tasks are placed than the executor has slots; a slot freed is used in the next loop."""
    scheduler.executor.parallelism = 2
    begin(metadata, tasks=5)
    scheduler.loop(4)
    assert len(hand.rows()) == 2
    hand.claim(hand.rows())
    hand.finish(hand.rows()[:1])
    scheduler.loop(3)
    assert len(hand.rows()) == 3


class RestingListener:
    """Notes how long the scheduler would have rested."""

    def __init__(self) -> None:
        self.rests: list[float] = []

    def rest(self, seconds: float, least: float) -> None:
        self.rests.append(seconds)


def test_scheduler_pauses_on_full_queues(metadata: Metadata, scheduler: Scheduler, hand: Hand) -> None:
    """The scheduler does not pause before its region's queue is full, pauses briefly after a loop with work
    for a pool with capacity, and not once the backlog is gone.
    """
    listener = RestingListener()
    executor = scheduler.executor
    executor.throttle_with(listener)
    with metadata.session() as session:
        enrol(session, "worker-1", region="us-east-1")
        beat(session, "worker-1", slots_total=2)
        session.commit()
    begin(metadata, tasks=30)
    scheduler.loop(2)
    assert len(hand.rows("placed")) == 30
    assert listener.rests == []
    executor.turn_outbox("us-east-1")
    scheduler.loop()
    assert len(listener.rests) == 1

    begin(metadata, dag_id="elsewhere", queue="eu-west-1")
    scheduler.loop()
    assert len(hand.rows("placed")) == 21
    assert listener.rests[1] <= SHORT_SECONDS

    while rows := hand.rows("sent"):
        hand.claim(rows)
        hand.finish(rows)
        executor.turn_outbox("us-east-1")
    scheduler.loop()
    assert len(listener.rests) == 2
    assert [row.region for row in hand.rows("placed")] == ["eu-west-1"]


def test_restarted_scheduler_adopts_items(
    metadata: Metadata, new_scheduler: Callable[[], Scheduler], hand: Hand
) -> None:
    """Placed, claimed and finished work of a dead scheduler goes on under the next: nothing is placed twice or lost."""
    first = new_scheduler()
    begin(metadata, tasks=4, retries=0)
    first.loop(2)
    by_task = {row.task_id: row for row in hand.rows()}
    hand.claim([by_task["t1"], by_task["t2"], by_task["t3"]])
    hand.claim([by_task["t3"]], lost_after=-1)
    hand.finish([by_task["t2"]])
    first.executor.reconciler.fence()
    first.die()

    second = new_scheduler()
    second.adopt()
    assert {row.owner_job_id for row in hand.rows() if row.task_id != "t2"} == {second.job.id}
    assert second.executor.slots_occupied == 3
    second.loop(3)
    assert hand.task_states() == {"t0": "queued", "t1": "running", "t2": "success", "t3": "failed"}
    hand.claim([by_task["t0"]])
    hand.finish([by_task["t0"], by_task["t1"]])
    second.loop(2)
    assert set(hand.task_states().values()) == {"success", "failed"}
    assert len(hand.rows()) == 4
    assert second.executor.slots_occupied == 0


def test_unplaced_tasks_are_queued_again(
    metadata: Metadata, new_scheduler: Callable[[], Scheduler], hand: Hand
) -> None:
    """A scheduler that died between queueing and placing leaves no task behind."""
    from airflow.utils.session import create_session

    first = new_scheduler()
    begin(metadata)
    with create_session() as session:
        first.runner._do_scheduling(session)
    with create_session() as session:
        first.runner._do_scheduling(session)
    assert hand.task_states() == {"t0": "queued"}
    first.die()

    second = new_scheduler()
    second.adopt()
    assert hand.task_states() == {"t0": None}
    second.loop(3)
    assert [row.state for row in hand.rows()] == ["placed"]


def test_orphaned_deferred_task_is_queued_again(
    metadata: Metadata, new_scheduler: Callable[[], Scheduler], hand: Hand
) -> None:
    """An outcome that was not reported yet is not taken for work in progress."""
    first = new_scheduler()
    begin(metadata)
    first.loop(2)
    hand.claim(hand.rows())
    hand.finish(hand.rows(), state="queued")  # deferred, resumed and queued, but not placed again
    first.die()
    second = new_scheduler()
    second.adopt()
    assert hand.task_states() == {"t0": None}
    second.loop(3)
    assert [row.state for row in hand.rows()] == ["settled", "placed"]


def test_stuck_task_is_queued_again(metadata: Metadata, scheduler: Scheduler, hand: Hand) -> None:
    """Airflow's own timeout for queued tasks takes the item back and places a new one."""
    begin(metadata)
    scheduler.loop(2)
    scheduler.runner._task_queued_timeout = -60.0
    scheduler.runner._handle_tasks_stuck_in_queued()
    assert hand.rows()[0].outcome == Outcome.CANCELLED
    assert scheduler.executor.slots_occupied == 0
    scheduler.loop(2)
    assert [row.state for row in hand.rows()] == ["settled", "placed"]


def test_database_error_keeps_workloads(metadata: Metadata, scheduler: Scheduler, hand: Hand) -> None:
    """A database error leaves workloads queued for the next heartbeat and never stops the scheduler."""
    from sqlalchemy import text

    begin(metadata)
    with metadata.engine.begin() as connection:
        connection.execute(text("ALTER TABLE airbridge_work_item RENAME TO away"))
    scheduler.loop(3)
    assert len(scheduler.executor.queued_tasks) == 1
    with metadata.engine.begin() as connection:
        connection.execute(text("ALTER TABLE away RENAME TO airbridge_work_item"))
    scheduler.loop(1)
    assert [row.state for row in hand.rows()] == ["placed"]
    assert len(scheduler.executor.queued_tasks) == 0


def test_resumed_by_another_scheduler(
    metadata: Metadata, new_scheduler: Callable[[], Scheduler], hand: Hand
) -> None:
    """A task that another scheduler has queued again is no longer the first one's: it would refuse to queue it later."""
    one, two = new_scheduler(), new_scheduler()
    begin(metadata)
    one.loop(2)
    hand.claim(hand.rows())
    hand.finish(hand.rows(), state="deferred")
    hand.set_task("t0", state="scheduled")
    two.loop(2)
    assert [row.owner_job_id for row in hand.rows()] == [one.job.id, two.job.id]
    one.executor.sync()
    assert one.executor.slots_occupied == 0
    assert two.executor.slots_occupied == 1


def test_taken_over_tasks_free_their_slots(
    metadata: Metadata,
    new_scheduler: Callable[[], Scheduler],
    hand: Hand,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A scheduler that was taken for dead, and goes on, has no slots occupied by the tasks that another one adopted."""
    monkeypatch.setattr(executor, "OWNED_SECONDS", 0.0)
    one, two = new_scheduler(), new_scheduler()
    begin(metadata, tasks=3)
    one.loop(2)
    rows = {row.task_id: row for row in hand.rows()}
    hand.claim([rows["t1"], rows["t2"]])
    one.executor.sync()
    assert one.executor.slots_occupied == 3
    one.mark_dead()
    two.adopt()
    one.executor.sync()
    assert one.executor.slots_occupied == 0
    two.executor.sync()
    assert two.executor.slots_occupied == 3
    hand.claim([rows["t0"]])
    hand.finish(list(rows.values()))
    one.executor.sync()
    two.loop(2)
    assert set(hand.task_states().values()) == {"success"}
    assert two.executor.slots_occupied == 0


def test_adoption_is_tried_until_it_succeeds(
    metadata: Metadata, new_scheduler: Callable[[], Scheduler], hand: Hand
) -> None:
    """A row that another transaction holds, each time, is adopted once it is free."""
    if metadata.engine.dialect.name != "postgresql":
        pytest.skip("only Postgres locks rows")
    first = new_scheduler()
    begin(metadata)
    first.loop(2)
    first.die()
    second = new_scheduler()
    with metadata.session() as holder:
        leases.lock(holder, [row.id for row in hand.rows()])
        second.adopt()
        for _ in range(2):
            second.executor.sync()
        assert [row.owner_job_id for row in hand.rows()] == [first.job.id]
        holder.rollback()
    second.executor.sync()
    assert [row.owner_job_id for row in hand.rows()] == [second.job.id]


def test_silent_workers_count_as_set(metadata: Metadata, scheduler: Scheduler, hand: Hand) -> None:
    """Of two regions that hold the data the one whose worker has been silent for `worker_alive_seconds` counts as empty."""
    executor = scheduler.executor
    executor._components = replace(executor._started, worker_alive_seconds=20.0)
    with metadata.session() as session:
        for worker, region, slots in (("w-us", "us-east-1", 8), ("w-eu", "eu-west-1", 1)):
            enrol(session, worker, region=region)
            beat(session, worker, slots_total=slots)
        silent = session.get(WorkerRow, "w-us")
        silent.last_heartbeat_at = clock.now(session) - timedelta(seconds=30)
        session.commit()
    begin(metadata, executor_config=near("s3://shared/both"))
    scheduler.loop(2)
    assert [row.region for row in hand.rows()] == ["eu-west-1"]


def test_any_inlet_is_placed(metadata: Metadata, scheduler: Scheduler, hand: Hand) -> None:
    """A task whose inlet is no asset is placed as one without inlets."""
    begin(metadata, inlets=["orders"])
    scheduler.loop(2)
    assert [row.state for row in hand.rows()] == ["placed"]


class FaultyWorkloads:
    """Reads one task's workload as `fault` has it, and all others as they are."""

    def __init__(self, inner: Workloads, task_id: str, fault: Callable[[NewItem], NewItem]) -> None:
        self._inner, self._task_id, self._fault = inner, task_id, fault

    def read(self, *given: Any) -> tuple[list[NewItem], list[Refused]]:
        placed, refused = self._inner.read(*given)
        return [self._fault(item) if item.task_id == self._task_id else item for item in placed], refused

    def refusal(self, workload: Any, reason: str) -> Refused:
        return self._inner.refusal(workload, reason)


class FaultyRefusals(FaultyWorkloads):
    """Reads the refusal of the task in the same way."""

    def refusal(self, workload: Any, reason: str) -> Refused:
        refused = super().refusal(workload, reason)
        return Refused(self._fault(refused.item), refused.reason)


def too_many_slots(item: NewItem) -> NewItem:
    """More than any database's integer holds."""
    return replace(item, slots=2**70)


def unreadable(item: NewItem) -> NewItem:
    raise AttributeError("'str' object has no attribute 'get'")


def read_with(scheduler: Scheduler, workloads: Any) -> None:
    executor = scheduler.executor
    executor._components = replace(executor._started, workloads=workloads)


@pytest.mark.parametrize("fault", [too_many_slots, unreadable])
def test_faulty_task_keeps_no_other_back(
    metadata: Metadata, scheduler: Scheduler, hand: Hand, fault: Callable[[NewItem], NewItem]
) -> None:
    """A task that cannot be read or written is refused with the reason; all others of its batch are placed."""
    read_with(scheduler, FaultyWorkloads(scheduler.executor._started.workloads, "t3", fault))
    begin(metadata, tasks=9, retries=2)
    scheduler.loop(2)
    assert len(hand.rows("placed")) == 8
    [refused] = hand.rows("settled")
    assert (refused.task_id, refused.outcome) == ("t3", Outcome.UNPLACEABLE)
    assert "it cannot be placed: " in refused.detail
    scheduler.loop(2)
    assert hand.task_states()["t3"] == "failed"
    assert scheduler.executor.slots_occupied == 8


class FaultyAssets:
    """Finds no assets: it fails as a wrong reader of DAGs does."""

    def reader(self, session: Any) -> Callable[[str, str], tuple[str, ...]]:
        def find(_dag_id: str, task_id: str) -> tuple[str, ...]:
            if task_id == "t1":
                raise AttributeError("'str' object has no attribute 'get'")
            return ()

        return find


def test_task_that_cannot_be_read_is_refused(metadata: Metadata, scheduler: Scheduler, hand: Hand) -> None:
    """An error of reading one task is its refusal: the batch is placed in one transaction."""
    scheduler.executor._assets = FaultyAssets()
    begin(metadata, tasks=3)
    scheduler.loop(2)
    assert len(hand.rows("placed")) == 2
    [refused] = hand.rows("settled")
    assert "it cannot be placed: AttributeError: 'str' object has no attribute 'get'" in refused.detail


def test_task_without_any_row_fails(metadata: Metadata, scheduler: Scheduler, hand: Hand) -> None:
    """A task that the ledger does not take at all, as refused neither, fails all the same."""
    workloads = FaultyRefusals(scheduler.executor._started.workloads, "t0", too_many_slots)
    read_with(scheduler, workloads)
    begin(metadata, tasks=2)
    scheduler.loop(3)
    assert [row.task_id for row in hand.rows()] == ["t1"]
    assert hand.task_states() == {"t0": "failed", "t1": "queued"}
    assert scheduler.executor.slots_occupied == 1


def test_faulty_report_keeps_no_other_back(
    metadata: Metadata, scheduler: Scheduler, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outcome that cannot be reported is tried again, and those beside it are reported."""
    begin(metadata, tasks=3)
    scheduler.loop(2)
    hand.claim(hand.rows())
    hand.finish(hand.rows())
    report = scheduler.executor._report

    def fails_once(row: WorkItemRow, *given: Any) -> bool:
        if row.task_id == "t1":
            raise KeyError("t1")
        return report(row, *given)

    with monkeypatch.context() as patched:
        patched.setattr(scheduler.executor, "_report", fails_once)
        scheduler.executor.sync()
    assert [row.task_id for row in hand.rows() if row.acknowledged_at is None] == ["t1"]
    scheduler.loop()
    assert scheduler.executor.slots_occupied == 0


def test_two_schedulers_place_everything_once(
    metadata: Metadata, new_scheduler: Callable[[], Scheduler], hand: Hand
) -> None:
    """Two schedulers share a DAG run: every task is placed once, and its outcome goes to the scheduler that queued it."""
    one, two = new_scheduler(), new_scheduler()
    begin(metadata, tasks=20)
    for _ in range(4):
        one.loop()
        two.loop()
    rows = hand.rows()
    assert len(rows) == len({row.ti_id for row in rows}) == 20
    hand.claim(rows)
    hand.finish(rows)
    for _ in range(2):
        one.loop()
        two.loop()
    assert set(hand.task_states().values()) == {"success"}
    assert one.executor.slots_occupied == two.executor.slots_occupied == 0
