"""Exchanges at their edges: what is reported of an end, and how long a task may still call after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text
from tests.integration.gateway.test_failures import kept_xcom
from tests.integration.gateway.test_heartbeats import caller
from tests.integration.gateway.world import World, finished, record, xcom

from airbridge.control_plane._airflow import ExecutionApp
from airbridge.control_plane.gateway.validation.bodies import Bodies
from airbridge.control_plane.gateway.validation.triggers import TriggerClasses
from airbridge.control_plane.gateway.work.exchanges import EPILOGUE, Exchanges
from airbridge.core.protocol import RefusalReason
from airbridge.executor.ledger import items
from airbridge.executor.ledger.items import NewItem
from airbridge.executor.ledger.models import ItemState, Outcome, WorkItemRow

SECOND = timedelta(seconds=1)


def exchanges(world: World, on_ended: Callable[[str, str, str, float | None], None]) -> Exchanges:
    bodies = Bodies(TriggerClasses(frozenset()), world.clock)
    return Exchanges(app=ExecutionApp(), policy=world.policy, bodies=bodies, on_ended=on_ended)


def change(world: World, item_id: str, **changes: Any) -> None:
    with world.metadata.session() as session:
        row = session.get(WorkItemRow, item_id)
        for name, value in changes.items():
            setattr(row, name, value)
        session.commit()


def queue_again(world: World, item_id: str, **changes: Any) -> None:
    """Place another item for the same task, or for one that differs in these fields."""
    with world.metadata.session() as session:
        row = session.get(WorkItemRow, item_id)
        values = {each.name: getattr(row, each.name) for each in fields(NewItem)}
        items.place(session, [NewItem(**{**values, "id": str(uuid4()), "ti_id": str(uuid4()), **changes})], 1)
        session.commit()


def test_end_is_reported_with_its_duration(world: World) -> None:
    """Every final state that is committed is reported once, with the seconds since the claim; other writes are not."""
    [item] = world.items()
    worker = world.worker()
    grant = worker.grant(item)
    row = world.row(item)
    change(world, item, claimed_at=row.claimed_at - timedelta(minutes=5))
    ended: list[tuple[str, str, str, float | None]] = []
    reporting = exchanges(world, lambda *values: ended.append(values))
    assert [each.status for each in reporting.apply(caller(worker), [xcom(grant, 1, "a", "1")])] == [201]
    assert ended == []
    assert [each.status for each in reporting.apply(caller(worker), [finished(grant, 2)])] == [204]
    [(dag, task, state, seconds)] = ended
    assert (dag, task, state) == (row.dag_id, row.task_id, "success")
    assert seconds is not None
    assert 300 <= seconds < 360


def test_accepted_records_are_no_refusals(world: World) -> None:
    """The audit trail has a refused exchange with the number of records that were refused, and none of a good one."""
    [item] = world.items()
    worker = world.worker()
    grant = worker.grant(item)
    worker.exchange(xcom(grant, 1, "a", "1"), finished(grant, 2))
    assert world.audited("exchange.refused", item_id=item) == []
    change(world, item, settled_at=world.row(item).settled_at - EPILOGUE)
    worker.exchange(xcom(grant, 3, "b", "1"), xcom(grant, 4, "c", "1"))
    [refused] = world.audited("exchange.refused", item_id=item)
    assert refused.detail["records"] == 2


@pytest.mark.parametrize(("age", "allowed"), [(EPILOGUE - 60 * SECOND, True), (EPILOGUE, False)])
def test_epilogue_ends(world: World, age: timedelta, allowed: bool) -> None:
    """A task may call for some minutes after its final state, and no longer."""
    [item] = world.items()
    worker = world.worker()
    grant = worker.grant(item)
    worker.exchange(finished(grant, 1))
    row = world.row(item)
    change(world, item, placed_at=row.placed_at - age, settled_at=row.settled_at - age)
    [late] = worker.exchange(xcom(grant, 2, "late", "1")).results
    assert (late.status, late.refused) == ((201, None) if allowed else (409, RefusalReason.SETTLED))


@pytest.mark.parametrize(
    ("other", "allowed"),
    [
        ({}, False),
        ({"dag_id": "other"}, True),
        ({"run_id": "other"}, True),
        ({"task_id": "other"}, True),
        ({"map_index": 7}, True),
    ],
)
def test_next_attempt_ends_the_epilogue(world: World, other: dict[str, Any], allowed: bool) -> None:
    """Once the task is queued again, its former attempt may write no more; another task's item changes nothing."""
    [item] = world.items()
    worker = world.worker()
    grant = worker.grant(item)
    worker.exchange(finished(grant, 1))
    queue_again(world, item, **other)
    [late] = worker.exchange(xcom(grant, 2, "late", "1")).results
    assert (late.status, late.refused) == ((201, None) if allowed else (409, RefusalReason.SETTLED))


@pytest.mark.parametrize("worker_is_holder", [True, False])
def test_cancelled_task_may_read(world: World, worker_is_holder: bool) -> None:
    """Until its process has ended, a cancelled task reads and writes nothing; another worker, and a settled row, read nothing."""
    [item] = world.items()
    worker = world.worker()
    grant = worker.grant(item)
    change(world, item, outcome=Outcome.CANCELLED, detail="marked failed")
    caller_ = worker if worker_is_holder else world.worker()
    read = record(grant, 1, "GET", "variables/none")
    refused = RefusalReason.CANCELLED if worker_is_holder else RefusalReason.NOT_HOLDER
    [first, write, second] = caller_.exchange(read, xcom(grant, 1, "k", "1"), read).results
    found = (404, None) if worker_is_holder else (409, refused)
    assert [(each.status, each.refused) for each in (first, write, second)] == [found, (409, refused), found]
    change(world, item, state=ItemState.SETTLED, settled_at=world.row(item).claimed_at)
    [late] = caller_.exchange(read).results
    assert (late.status, late.refused) == (409, refused)


def map_task(world: World, item_id: str, map_index: int) -> None:
    """Make the queued task of an item one of a mapped task."""
    change(world, item_id, map_index=map_index)
    with world.metadata.session() as session:
        row = session.get(WorkItemRow, item_id)
        query = text("UPDATE task_instance SET map_index = :index WHERE id = :id")
        session.execute(query, {"index": map_index, "id": row.ti_id})
        session.commit()


def test_mapped_task_clears_its_xcoms(world: World) -> None:
    """What Airflow 3.0.4's task runner deletes at a new start, without a map index, is deleted, and the task succeeds."""
    [item] = world.items()
    map_task(world, item, 3)
    worker = world.worker()
    grant = worker.grant(item)
    pushed = xcom(grant, 1, "mark", "1").model_copy(update={"query": "map_index=3"})
    worker.exchange(pushed)
    assert kept_xcom(world, grant, "mark")
    answer = worker.exchange(xcom(grant, 2, "mark", None, "DELETE"), finished(grant, 3))
    assert [each.status for each in answer.results] == [200, 204]
    assert not kept_xcom(world, grant, "mark")
    assert world.task(item).state == "success"


def test_callback_reads_beside_next_attempt(world: World) -> None:
    """The callbacks of an attempt that failed read while the next one is queued, or runs, and write nothing more."""
    [item] = world.items(retries=1)
    worker = world.worker()
    grant = worker.grant(item)
    worker.exchange(finished(grant, 1, "up_for_retry"))
    queue_again(world, item)
    read, write = record(grant, 2, "GET", "variables/none"), xcom(grant, 2, "late", "1")
    answers = worker.exchange(read, write, read).results
    assert [(each.status, each.refused) for each in answers] == [
        (404, None),
        (409, RefusalReason.SETTLED),
        (404, None),
    ]


def test_statement_too_complex_is_answered_once(world: World) -> None:
    """PostgreSQL reports what exceeds its limits as a failure of its own: the write is refused, not sent again for ever."""
    worker = world.worker()
    grant = worker.grant(world.items()[0])
    skipped = record(grant, 1, "PATCH", "task-instances/{ti}/skip-downstream", {"tasks": ["t"] * 10_000})
    answer = worker.exchange(skipped, finished(grant, 2, "failed"))
    assert [each.status for each in answer.results] == [500, 204]
