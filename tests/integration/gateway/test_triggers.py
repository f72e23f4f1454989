"""Triggers of deferred tasks at the gateway: placed at the deferral, granted, heard of by heartbeats, applied once."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, update
from tests.integration.gateway import seeding
from tests.integration.gateway.test_policy import CLAIM, connection
from tests.integration.gateway.world import VERSIONS, Worker, World, cancels, lease, record

from airbridge.control_plane.gateway.triggers import offers, placing
from airbridge.core.protocol import TRIGGER_EVENT, TRIGGERS, ClaimResponse, Disposition, Grant, RefusalReason
from airbridge.core.residency.xcoms import Form, ObjectName, StoredXCom
from airbridge.executor import _airflow
from airbridge.executor.ledger import leases
from airbridge.executor.ledger.models import ItemState, Outcome, WorkerRow, WorkItemRow

FILE_TRIGGER = "airflow.providers.standard.triggers.file.FileTrigger"
TIME_TRIGGER = "airflow.providers.standard.triggers.temporal.DateTimeTrigger"
READ = CLAIM + '[[rule]]\nname = "read"\ndags = ["*"]\nconnections.read = ["warehouse"]\n'


def encoded(**values: Any) -> dict[str, Any]:
    return {"__type": "dict", "__var": values}


def deferral(grant: Grant, seq: int = 1, classpath: str = TIME_TRIGGER, **changes: Any) -> Any:
    body = {
        "state": "deferred",
        "classpath": classpath,
        "trigger_kwargs": encoded(moment={"__type": "datetime", "__var": 1.0}),
        "next_method": "execute_complete",
        "next_kwargs": encoded(),
        **changes,
    }
    return record(grant, seq, "PATCH", "task-instances/{ti}/state", body)


def fired(grant: Grant, seq: int = 1, **event: Any) -> Any:
    return record(
        grant, seq, "POST", TRIGGER_EVENT, {"event": event or {"payload": encoded(payload="ready")}}
    )


@pytest.fixture(autouse=True)
def _triggerer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placing, "KNOWN_SECONDS", 0.0)
    with world.metadata.session() as session:
        _airflow.keep_edge_triggerer(session)
        session.commit()


def capable(world: World, pool: str) -> Worker:
    worker = Worker(world, "eu-west-1", pool, f"worker-{next(world.number)}")
    worker.versions = VERSIONS.model_copy(update={"capabilities": (TRIGGERS,)}).model_dump()
    worker.enrol(world.join_token("eu-west-1", pool))
    worker.beat()
    return worker


@pytest.fixture
def worker(world: World) -> Worker:
    """A worker of a pool in which no older one lives."""
    return capable(world, "gpu")


def deferred(world: World, worker: Worker, **changes: Any) -> tuple[str, WorkItemRow | None]:
    """Defer a task; return its item and the row of its trigger, if there is one."""
    [item] = world.items(region="eu-west-1", pool=worker.name.pool)
    grant = worker.grant(item)
    [result] = worker.exchange(deferral(grant, **changes)).results
    assert result.status == 204, result.body
    return item, trigger_row(world, item)


def trigger_row(world: World, item: str) -> WorkItemRow | None:
    with world.metadata.session() as session:
        query = select(WorkItemRow).where(
            WorkItemRow.ti_id == world.row(item).ti_id, WorkItemRow.kind == "trigger"
        )
        found: WorkItemRow | None = session.scalars(query.order_by(WorkItemRow.placed_at.desc())).first()
        return found


def placed(world: World, worker: Worker, **changes: Any) -> tuple[str, str]:
    item, row = deferred(world, worker, **changes)
    assert row is not None
    return item, row.id


def test_deferral_places_the_trigger(world: World, worker: Worker) -> None:
    """The deferral assigns Airflow's trigger to the job of edge triggers and writes a row without slots, for the same pool."""
    item, row = deferred(world, worker)
    assert row is not None
    task = world.task(item)
    assert (task.state, task.trigger_id) == ("deferred", row.trigger_id)
    assert (row.state, row.region, row.pool, row.slots) == (ItemState.PLACED, "eu-west-1", "gpu", 0)
    assert world.row(item).outcome == Outcome.SUCCESS
    with world.metadata.session() as session:
        from airflow.models.trigger import Trigger

        assert session.get(Trigger, row.trigger_id).triggerer_id == _airflow.edge_triggerer_id(session)
        # Airflow's own triggerer leaves it alone.
        Trigger.assign_unassigned(424242, 100, 30, session=session)
        assert Trigger.ids_for_triggerer(424242, session=session) == []


def test_event_resumes_the_task_once(world: World, worker: Worker) -> None:
    """An event resumes the task with its payload; sent again it gets the same answer, and a later one is refused."""
    item, trigger = placed(world, worker)
    grant = worker.grant(trigger)
    assert grant.trigger is not None
    assert (grant.trigger.classpath, grant.slots) == (TIME_TRIGGER, 0)
    [first] = worker.exchange(fired(grant)).results
    [again] = worker.exchange(fired(grant)).results
    assert (first.status, again.status) == (204, 204)
    task = world.task(item)
    assert (task.state, task.trigger_id, task.next_kwargs["event"]) == ("scheduled", None, "ready")
    row = world.row(trigger)
    assert (row.state, row.outcome, row.detail) == (ItemState.SETTLED, Outcome.SUCCESS, "fired")
    [late] = worker.exchange(fired(grant, 2)).results
    assert (late.status, world.task(item).state) == (409, "scheduled")
    [event] = [each for each in world.events("trigger.fired") if each.item_id == trigger]
    assert event.detail["outcome"] == "fired"


@pytest.mark.parametrize("state", ["success", "failed", "skipped"])
def test_end_event_ends_the_task(world: World, worker: Worker, state: str) -> None:
    """A `BaseTaskEndEvent` ends the task in its state, with its XComs, and nothing resumes."""
    item, trigger = placed(world, worker)
    [result] = worker.exchange(
        fired(worker.grant(trigger), payload=encoded(), state=state, xcoms={"rows": 3})
    ).results
    assert result.status == 204
    task = world.task(item)
    assert (task.state, task.trigger_id) == (state, None)
    with world.metadata.session() as session:
        from airflow.models.xcom import XComModel

        found = session.scalars(select(XComModel.value).where(XComModel.dag_id == task.dag_id)).all()
    assert [json.loads(value) if isinstance(value, str) else value for value in found] == [3]


def xcoms_of(world: World, item: str) -> dict[str, Any]:
    from airflow.models.xcom import XComModel

    with world.metadata.session() as session:
        found = select(XComModel.key, XComModel.value).where(XComModel.dag_id == world.task(item).dag_id)
        return dict(session.execute(found).all())


def test_xcoms_of_event_are_counted(world: World, worker: Worker) -> None:
    """XComs of an end event are in the timeline and in the usage of the trigger's item, as those that a task pushes."""
    _, trigger = placed(world, worker)
    event = {"payload": encoded(), "state": "success", "xcoms": {"rows": [1, 2], "note": "ü"}}
    worker.exchange(fired(worker.grant(trigger), **event))
    found = {each.detail["key"]: each for each in world.events("xcom.written") if each.item_id == trigger}
    sizes = {key: (each.detail["bytes"], each.moved_bytes) for key, each in found.items()}
    assert sizes == {"rows": (5, 5), "note": (8, 8)}


@pytest.mark.parametrize("what", ["large", "reference", "within"])
def test_xcoms_of_event_keep_to_region(world: World, worker: Worker, what: str) -> None:
    """An end event is held to the rules of its pool's XComs: none above the bound, no reference. Its task fails with the reason."""
    item, trigger = placed(world, worker)
    grant = worker.grant(trigger)
    # Of the task's own attempt: not even that is the trigger's to hand on.
    name = ObjectName.of(grant.ti["dag_id"], grant.ti["run_id"], item, "ab" * 32)
    reference = StoredXCom("eu-west-1", name, 100_000, Form.JSON).encode()
    value, why = {
        "large": ("x" * 2000, "keeps those of more than 1024 in the region"),
        "reference": (reference, "an object that this attempt of the task did not write"),
        "within": ([reference], "stands alone"),
    }[what]
    [result] = worker.exchange(
        fired(grant, payload=encoded(), state="success", xcoms={"small": 1, "rows": value})
    ).results
    assert (result.status, why in (result.body or "")) == (403, True), result.body
    assert "XCom 'rows' of a trigger's event" in (result.body or "")
    task = world.task(item)
    assert (task.state, task.next_method) == ("scheduled", "__fail__")
    assert why in task.next_kwargs["traceback"][0]
    assert (xcoms_of(world, item), world.row(trigger).outcome) == ({}, Outcome.FAILED)
    assert world.audited("call.denied", item_id=trigger)[-1].rule == "residency of region eu-west-1"


def test_failure_fails_the_task(world: World, worker: Worker) -> None:
    """A trigger that ended without an event resumes its task to fail, as Airflow's triggerer does."""
    item, trigger = placed(world, worker)
    grant = worker.grant(trigger)
    body = {"failure": ["Traceback", "ValueError: no"]}
    [result] = worker.exchange(record(grant, 1, "POST", TRIGGER_EVENT, body)).results
    task = world.task(item)
    assert (result.status, task.state, task.next_method) == (204, "scheduled", "__fail__")
    assert task.next_kwargs["traceback"] == ["Traceback", "ValueError: no"]


def test_malformed_event_fails_the_task(world: World, worker: Worker) -> None:
    """An event that Airflow would decode into more than a plain value is refused, and the task does not wait for ever."""
    item, trigger = placed(world, worker)
    hostile = {"__type": "dict", "__var": {"payload": {"__type": "airflow_exc_ser", "__var": {}}}}
    [result] = worker.exchange(fired(worker.grant(trigger), payload=hostile)).results
    assert (result.status, world.task(item).next_method) == (403, "__fail__")
    assert world.row(trigger).outcome == Outcome.FAILED


def test_trigger_reads_under_its_tasks_policy(world: World, worker: Worker) -> None:
    """A trigger reads what its task may read, and writes nothing."""
    connection(world, "warehouse")
    with world.under(CLAIM):
        grant = worker.grant(placed(world, worker)[1])
        [denied] = worker.exchange(record(grant, 1, "GET", "connections/warehouse")).results
        assert denied.status == 403
    with world.under(READ):
        [allowed] = worker.exchange(record(grant, 1, "GET", "connections/warehouse")).results
        assert allowed.status == 200
    [written] = worker.exchange(record(grant, 1, "PUT", "variables/colour", {"val": "red"})).results
    assert written.status == 403
    assert world.row(str(grant.item_id)).state == ItemState.CLAIMED


@pytest.mark.parametrize("place", ["edge", "home"])
def test_trigger_of_regional_connection(world: World, worker: Worker, place: str) -> None:
    """A deferral that names a connection of the region is accepted where the trigger runs on a worker, which reads it there."""
    kept = READ + '[[residency]]\nname = "kept"\nconnections = ["warehouse"]\nwhere = "region"\n'
    kwargs = encoded(moment={"__type": "datetime", "__var": 1.0}, conn_id="warehouse")
    [item] = world.items(region="eu-west-1", pool="gpu")
    with world.metadata.session() as session:
        row = session.get(WorkItemRow, item)
        row.workload = {**row.workload, "trigger": place}
        session.commit()
    with world.under(kept):
        grant = worker.grant(item)
        [result] = worker.exchange(deferral(grant, trigger_kwargs=kwargs)).results
        if place == "home":
            assert (result.status, "residency rule 'kept'" in (result.body or "")) == (403, True)
            return
        assert result.status == 204, result.body
        trigger = trigger_row(world, item)
        assert trigger is not None
        granted = worker.grant(trigger.id)
        [regional] = worker.exchange(
            record(granted, 1, "GET", "regional-secrets/connections/warehouse")
        ).results
        assert json.loads(regional.body or "") == {"places": ["region"]}


def test_class_of_any_kind_runs_at_the_edge(world: World, worker: Worker) -> None:
    """A trigger that may not run in the control plane, because it touches files, runs on a worker."""
    _, row = deferred(world, worker, classpath=FILE_TRIGGER, trigger_kwargs=encoded(filepath="/etc/hosts"))
    assert row is not None
    assert worker.grant(row.id).trigger is not None


@pytest.mark.parametrize("why", ["old worker", "task's choice", "no job"])
def test_trigger_stays_at_home(world: World, why: str) -> None:
    """Triggers stay with Airflow's triggerer where a live worker is too old, the task chooses so, or no scheduler keeps the job."""
    from airflow.jobs.job import Job

    worker = capable(world, "gpu")
    [item] = world.items(region="eu-west-1", pool="gpu")
    with world.metadata.session() as session:
        row = session.get(WorkItemRow, item)
        if why == "task's choice":
            row.workload = {**row.workload, "trigger": "home"}
        elif why == "no job":
            session.execute(update(Job).values(end_date=datetime.now(UTC)))
        session.commit()
    if why == "old worker":
        old = world.worker("eu-west-1", "gpu")
        old.beat()
    grant = worker.grant(item)
    [result] = worker.exchange(deferral(grant)).results
    assert (result.status, trigger_row(world, item)) == (204, None)
    if why == "old worker":
        silence(world, old)


def silence(world: World, worker: Worker) -> None:
    with world.metadata.session() as session:
        named = WorkerRow.id == worker.name.worker
        session.execute(update(WorkerRow).where(named).values(last_heartbeat_at=None))
        session.commit()


def test_old_worker_is_refused_a_trigger(world: World, worker: Worker) -> None:
    """A worker that cannot run triggers leaves the message to others."""
    _, trigger = placed(world, worker)
    old = world.worker("eu-west-1", "gpu")
    [refusal] = old.claim(world.envelope(trigger)).refusals
    assert (refusal.reason, refusal.disposition) == (RefusalReason.PARITY, Disposition.RETURN)


def test_repeated_claim_gets_the_kwargs_again(world: World, worker: Worker) -> None:
    """A claim whose answer was lost is answered again; the kwargs are in no row of the ledger."""
    _, trigger = placed(world, worker)
    message = world.envelope(trigger)
    [first], [again] = worker.claim(message).grants, worker.claim(message).grants
    assert first == again
    assert "encoded_kwargs" not in json.dumps(world.row(trigger).started)


@pytest.mark.parametrize("state", ["failed", None, "scheduled"])
def test_heartbeat_cancels_what_is_no_longer_deferred(
    world: World, worker: Worker, state: str | None
) -> None:
    """A trigger whose task was cleared, failed or timed out is cancelled by the next heartbeat, and settled once it is listed no more."""
    item, trigger = placed(world, worker)
    grant = worker.grant(trigger)
    assert cancels(worker.beat(lease(grant))) == []
    world.set_task_state(item, state)  # type: ignore[arg-type] # a cleared task has none
    [command] = cancels(worker.beat(lease(grant)))
    assert (command.item_id, command.reason) == (grant.item_id, RefusalReason.CANCELLED)
    worker.beat(answered_at=datetime.now(UTC) + timedelta(seconds=1))
    assert world.row(trigger).outcome == Outcome.CANCELLED


def test_unclaimed_trigger_of_a_cleared_task_is_refused(world: World, worker: Worker) -> None:
    """A trigger that nobody holds and nobody waits for is not granted, and its row is closed."""
    item, trigger = placed(world, worker)
    world.set_task_state(item, "failed")
    [refusal] = worker.claim(world.envelope(trigger)).refusals
    assert (refusal.reason, world.row(trigger).outcome) == (RefusalReason.CANCELLED, Outcome.CANCELLED)


def test_lost_trigger_goes_to_another_worker(world: World, worker: Worker) -> None:
    """A silent worker's trigger is granted to another under a new epoch; the first one's event is refused."""
    item, trigger = placed(world, worker)
    lost = worker.grant(trigger)
    with world.metadata.session() as session:
        row = leases.lock(session, [trigger])[trigger]
        leases.release_lost(session, row, "lost")
        session.commit()
    [late] = worker.exchange(fired(lost)).results
    assert (late.status, world.task(item).state) == (409, "deferred")
    other = capable(world, "gpu")
    grant = other.grant(trigger)
    assert grant.epoch == lost.epoch + 1
    [stale] = worker.exchange(fired(lost)).results
    assert (stale.refused, world.task(item).state) == (RefusalReason.STALE_EPOCH, "deferred")
    [result] = other.exchange(fired(grant)).results
    assert (result.status, world.task(item).state) == (204, "scheduled")


def test_released_trigger_waits_for_the_next_worker(world: World, worker: Worker) -> None:
    """A draining worker gives its triggers back; the task goes on waiting."""
    item, trigger = placed(world, worker)
    worker.release(lease(worker.grant(trigger)))
    assert (world.row(trigger).state, world.task(item).state) == (ItemState.PLACED, "deferred")
    assert capable(world, "gpu").grant(trigger).epoch == 2


def test_fresh_lease_is_not_written_again(world: World, worker: Worker) -> None:
    """Heartbeats renew a trigger's lease in the ledger only when it is due: thousands of rows would be written each time."""
    _, trigger = placed(world, worker)
    grant = worker.grant(trigger)
    before = world.row(trigger).renewed_at
    worker.beat(lease(grant))
    assert world.row(trigger).renewed_at == before
    with world.metadata.session() as session:
        session.get(WorkItemRow, trigger).renewed_at = before - timedelta(seconds=61)
        session.commit()
    worker.beat(lease(grant))
    row = world.row(trigger)
    assert row.renewed_at > before
    assert row.lost_at - row.renewed_at == timedelta(seconds=660)


def test_second_deferral_gets_a_trigger_of_its_own(world: World, worker: Worker) -> None:
    """A task that defers again while the row of a trigger that timed out is still held gets its new trigger."""
    item, trigger = placed(world, worker)
    worker.grant(trigger)
    from airflow.models.taskinstance import TaskInstance

    with world.metadata.session() as session:
        ti = session.get(TaskInstance, world.row(item).ti_id)
        ti.state, ti.trigger_id = "queued", None
        session.commit()
        [again] = seeding.placed_items(session, [ti], region="eu-west-1", pool="gpu")
        again_id = again.id
    grant = worker.grant(again_id)
    [result] = worker.exchange(deferral(grant)).results
    row = trigger_row(world, item)
    assert result.status == 204
    assert row is not None
    assert row.id != trigger


def test_full_worker_is_offered_waiting_triggers(
    world: World, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker without a free slot, which receives nothing, learns of waiting triggers by its heartbeat and claims them without a message."""
    monkeypatch.setattr(offers, "KNOWN_SECONDS", 0.0)
    _, trigger = placed(world, worker)
    with world.metadata.session() as session:
        row = session.get(WorkItemRow, trigger)
        row.state, row.sent_at = ItemState.SENT, row.placed_at - timedelta(seconds=60)
        session.commit()
    assert worker.beat().offers == ()
    full = worker.beat(slots_used=8).offers
    assert [str(each.item_id) for each in full] == [trigger]
    response = worker.post("claim", {"offered": [each.model_dump(mode="json") for each in full]})
    [grant] = ClaimResponse.model_validate_json(response.content).grants
    assert (str(grant.item_id), grant.trigger is not None) == (trigger, True)
    assert worker.beat(lease(grant), slots_used=8).offers == ()


def test_offers_are_triggers_of_the_workers_pool(world: World, worker: Worker) -> None:
    """No task, and nothing of another pool, is granted without its message."""
    [task] = world.items(region="eu-west-1", pool="gpu")
    _, trigger = placed(world, worker)
    other = capable(world, "default")
    for who, item in ((worker, task), (other, trigger)):
        answer = who.post("claim", {"offered": [{"item_id": item, "epoch": 0}]})
        assert ClaimResponse.model_validate_json(answer.content).grants == ()
