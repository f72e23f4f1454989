"""Claim, exchange, heartbeat and release: one task from queue to result, over mutual TLS, in a real Airflow database."""

from __future__ import annotations

from uuid import UUID

import pytest
from sqlalchemy import text
from tests.integration.gateway.world import World, cancels, finished, lease, record, xcom, xcom_path

from airbridge.core.protocol import Disposition, LeaseRef, RefusalReason
from airbridge.executor.bundles import versions
from airbridge.executor.ledger.models import ItemState, Outcome


def test_task_from_claim_to_result(world: World) -> None:
    """A claim starts the task instance; its records land in Airflow in one exchange and settle the row."""
    [item] = world.items()
    worker = world.worker()
    grant = worker.grant(item)
    ti = world.task(item)
    assert ("running", worker.name.worker, "airbridge", 1) == (ti.state, ti.hostname, ti.unixname, ti.pid)
    assert grant.ti_context["dag_run"]["run_id"] == ti.run_id

    answer = worker.exchange(
        record(grant, 1, "PUT", "task-instances/{ti}/rtif", {"env": "x"}),
        xcom(grant, 2, "return_value", "41"),
        record(grant, 3, "GET", xcom_path(grant, "return_value")),
        finished(grant, 3),
    )
    assert [result.status for result in answer.results] == [201, 201, 200, 204]
    assert answer.results[2].body == '{"key":"return_value","value":"41"}'
    row = world.row(item)
    assert (world.task(item).state, row.state, row.outcome) == ("success", ItemState.SETTLED, Outcome.SUCCESS)


def test_repeated_claim_gets_same_grant(world: World) -> None:
    """The same worker, claiming the same message again, gets the same grant and starts nothing twice."""
    [item] = world.items()
    worker = world.worker()
    envelope = world.envelope(item)
    first = worker.claim(envelope).grants
    assert first == worker.claim(envelope).grants
    assert world.row(item).epoch == 1


def test_repeated_exchange_gets_same_answers(world: World) -> None:
    """Records applied already are answered from memory, also after the row is settled: nothing happens twice."""
    [item] = world.items()
    worker = world.worker()
    grant = worker.grant(item)
    records = (xcom(grant, 1, "a", "1"), xcom(grant, 2, "a", method="DELETE", value=None), finished(grant, 3))
    first = worker.exchange(*records)
    assert [result.status for result in first.results] == [201, 200, 204]
    assert first == worker.exchange(*records)
    assert first.results[:1] == worker.exchange(records[0]).results


def test_task_clears_other_run(world: World) -> None:
    """The clearing of a run has no body, and its tasks may run again."""
    [other, item] = [*world.items(), *world.items()]
    worker = world.worker()
    ended = worker.grant(other)
    worker.exchange(finished(ended, 1))
    grant = worker.grant(item)
    path = f"dag-runs/{ended.ti['dag_id']}/{ended.ti['run_id']}/clear"
    assert [result.status for result in worker.exchange(record(grant, 1, "POST", path)).results] == [204]
    with world.metadata.session() as session:
        query = text("SELECT state FROM task_instance WHERE dag_id = :dag")
        assert session.execute(query, {"dag": ended.ti["dag_id"]}).scalars().all() == [None]


def test_callbacks_work_after_final_state(world: World) -> None:
    """A task's extra links and callbacks run after it reported its state; its second state is refused."""
    [item] = world.items()
    worker = world.worker()
    grant = worker.grant(item)
    answer = worker.exchange(finished(grant, 1), xcom(grant, 2, "link", "u"), finished(grant, 3, "failed"))
    assert [result.status for result in answer.results] == [204, 201, 409]
    assert [result.status for result in worker.exchange(xcom(grant, 4, "link2", "u")).results] == [201]
    assert world.task(item).state == "success"


@pytest.mark.parametrize(
    ("body", "state", "outcome"),
    [
        ({"state": "failed", "end_date": "2026-01-01T00:00:00Z"}, "failed", Outcome.FAILED),
        ({"state": "skipped", "end_date": "2026-01-01T00:00:00Z"}, "skipped", Outcome.SUCCESS),
        ({"state": "up_for_retry", "end_date": "2026-01-01T00:00:00Z"}, None, Outcome.FAILED),
        (
            {
                "state": "up_for_reschedule",
                "end_date": "2026-01-01T00:00:00Z",
                "reschedule_date": "2026-01-01T00:05:00Z",
            },
            "up_for_reschedule",
            Outcome.SUCCESS,
        ),
        (
            {
                "state": "deferred",
                "classpath": "airflow.triggers.testing.SuccessTrigger",
                "next_method": "resume",
                "trigger_kwargs": {"__type": "dict", "__var": {"x": 1}},
            },
            "deferred",
            Outcome.SUCCESS,
        ),
    ],
)
def test_every_final_state_settles_row(
    world: World, body: dict[str, object], state: str | None, outcome: Outcome
) -> None:
    """Every final state that a task reports settles its work item, with the outcome for the executor."""
    [item] = world.items(retries=1)
    worker = world.worker()
    grant = worker.grant(item)
    [result] = worker.exchange(record(grant, 1, "PATCH", "task-instances/{ti}/state", body)).results
    assert result.status == 204, result.body
    row = world.row(item)
    assert (ItemState.SETTLED, outcome, body["state"]) == (row.state, row.outcome, row.detail)
    if state is not None:
        assert state == world.task(item).state


def test_missing_resources_get_airflow_404(world: World) -> None:
    """A missing connection, variable or XCom is answered as Airflow answers it, for the SDK to understand."""
    [item] = world.items()
    worker = world.worker()
    grant = worker.grant(item)
    answer = worker.exchange(
        record(grant, 1, "GET", "connections/nowhere"),
        record(grant, 1, "GET", "variables/a/b"),
        record(grant, 1, "GET", "variables/nothing"),
        record(grant, 1, "GET", xcom_path(grant, "none")),
        record(grant, 1, "PUT", "variables/seen", {"val": "v", "description": None}),
        record(grant, 2, "GET", "variables/seen"),
    )
    assert [result.status for result in answer.results] == [404, 404, 404, 404, 201, 200]
    assert {"application/json"} == {result.headers["content-type"] for result in answer.results}


def test_task_marked_in_airflow_is_cancelled(world: World) -> None:
    """A state that comes too late is Airflow's own 409, and the row is settled as cancelled."""
    [item] = world.items()
    worker = world.worker()
    grant = worker.grant(item)
    world.set_task_state(item, "failed")
    [result] = worker.exchange(finished(grant, 1)).results
    assert result.status == 409
    row = world.row(item)
    assert (row.state, row.outcome, row.detail) == (
        ItemState.SETTLED,
        Outcome.CANCELLED,
        "Airflow has it as failed",
    )


def test_heartbeat_renews_and_cancels(world: World) -> None:
    """One heartbeat renews every lease and the tasks' own heartbeats; what Airflow gave up is to be stopped."""
    kept, dropped = world.items(2)
    worker = world.worker()
    grants = {item: worker.grant(item) for item in (kept, dropped)}
    before = world.task(kept).last_heartbeat_at
    world.set_task_state(dropped, "restarting")
    answer = worker.beat(*map(lease, grants.values()))
    [cancel] = cancels(answer)
    assert (UUID(dropped), RefusalReason.CANCELLED) == (cancel.item_id, cancel.reason)
    assert world.task(kept).last_heartbeat_at > before
    # The worker has stopped the task and no longer names its lease: the executor gets the outcome.
    worker.beat(lease(grants[kept]))
    assert (world.row(kept).state, world.row(dropped).outcome) == (ItemState.CLAIMED, Outcome.CANCELLED)


def test_foreign_leases_are_not_renewed(world: World) -> None:
    """Another's lease, an old epoch and an unknown item each come back as a cancel with their reason."""
    [item] = world.items()
    grant = world.worker().grant(item)
    other = world.worker()
    unknown = LeaseRef(item_id=UUID(int=7), epoch=1)
    stale = LeaseRef(item_id=grant.item_id, epoch=9)
    found = cancels(other.beat(lease(grant), unknown, stale))
    reasons = {(cancel.item_id, cancel.epoch): cancel.reason for cancel in found}
    assert {
        (grant.item_id, 1): RefusalReason.NOT_HOLDER,
        (unknown.item_id, 1): RefusalReason.UNKNOWN_ITEM,
        (stale.item_id, 9): RefusalReason.STALE_EPOCH,
    } == reasons


def test_released_item_can_be_claimed(world: World) -> None:
    """A release puts the task instance back to queued; the next grant has a higher epoch, and fences the first."""
    [item] = world.items()
    first, second = world.worker(), world.worker()
    old = first.grant(item)
    first.release(lease(old))
    assert (world.task(item).state, world.row(item).state) == ("queued", ItemState.PLACED)
    new = second.grant(item)
    assert (new.epoch, world.task(item).pid) == (2, 2)
    [result] = first.exchange(finished(old, 1)).results
    assert (result.status, result.refused) == (409, RefusalReason.STALE_EPOCH)
    assert world.task(item).state == "running"


def test_release_of_unwanted_item_settles_it(world: World) -> None:
    """A task that was cleared while it was held does not go back to the queue."""
    [item] = world.items()
    worker = world.worker()
    grant = worker.grant(item)
    world.set_task_state(item, "restarting")
    worker.release(lease(grant))
    row = world.row(item)
    assert (row.state, row.outcome) == (ItemState.SETTLED, Outcome.CANCELLED)
    assert world.task(item).state == "restarting"


def test_batch_is_granted_per_item(world: World) -> None:
    """One request: what can be granted is, what cannot is refused with its reason, and each is answered."""
    good, gone, taken = world.items(3)
    world.set_task_state(gone, "success")
    world.worker().grant(taken)
    stale = world.envelope(taken, epoch=0)
    worker = world.worker()
    answer = worker.claim(world.envelope(good), world.envelope(gone), stale, "no envelope")
    assert [UUID(good)] == [grant.item_id for grant in answer.grants]
    assert {
        (1, RefusalReason.NOT_STARTABLE, Disposition.DROP),
        (2, RefusalReason.ALREADY_CLAIMED, Disposition.DROP),
        (3, RefusalReason.MALFORMED, Disposition.DEAD_LETTER),
    } == {(refusal.index, refusal.reason, refusal.disposition) for refusal in answer.refusals}
    assert world.row(gone).outcome == Outcome.CANCELLED


def test_drained_worker_gets_no_grants(world: World) -> None:
    """An operator's drain refuses claims at once, reaches the worker by heartbeat, and is taken back by resume."""
    [item] = world.items()
    worker = world.worker()
    name = worker.name.worker
    with world.operator(world.access_token("workers:drain region=eu-*")) as operator:
        assert (
            operator.post(f"/operator/v1/workers/{name}/drain", json={"comment": "upgrade"}).status_code
            == 200
        )
        [refusal] = worker.claim(world.envelope(item)).refusals
        assert (refusal.reason, refusal.disposition) == (RefusalReason.DRAINING, Disposition.RETURN)
        assert "drain" in {command.kind for command in worker.beat().commands}
        assert operator.post(f"/operator/v1/workers/{name}/resume").status_code == 200
    answer = worker.beat(state="draining")
    assert "resume" in {command.kind for command in answer.commands}
    assert worker.claim(world.envelope(item)).grants


def test_incompatible_worker_gets_no_work(world: World) -> None:
    """A worker outside the matrix gets an order to drain and no work; the item goes back."""
    [item] = world.items()
    worker = world.worker()
    worker.beat()
    body = {"airbridge": "9.9.9", "airflow": "3.0.4", "task_sdk": "1.0.4", "python": "3.11.7"}
    answer = worker.post(
        "heartbeat", {"sent_at": "2026-01-01T00:00:00Z", "versions": body, "slots_total": 1, "slots_used": 0}
    )
    assert '"kind":"drain"' in answer.text
    [refusal] = worker.claim(world.envelope(item)).refusals
    assert (refusal.reason, refusal.disposition) == (RefusalReason.PARITY, Disposition.RETURN)
    assert "9.9.9" in refusal.detail


def test_grant_carries_signature(world: World) -> None:
    """A grant has the signature of its bundle's version, or none if the version is unsigned."""
    worker = world.worker()
    first, second = world.items(2)
    bundle = world.row(first).workload["bundle"]
    assert worker.grant(first).bundle_signature is None
    with world.metadata.session() as session:
        versions.sign(session, bundle["name"], bundle["version"], "ci", "signature")
        session.commit()
    assert worker.grant(second).bundle_signature == "signature"
