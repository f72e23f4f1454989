"""Claims: what the audit trail has of them, and messages that are refused by what has become of their item."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import Any

from sqlalchemy import text
from tests.integration.gateway.seeding import BUNDLE
from tests.integration.gateway.world import World, finished, record

from airbridge.control_plane._airflow import ExecutionApp
from airbridge.core.protocol import Disposition, RefusalReason
from airbridge.executor.ledger.models import ItemState, WorkItemRow


def test_grants_are_audited(world: World) -> None:
    """Each grant is in the audit trail, with the worker, the item, its epoch and the scope that allowed it."""
    [item] = world.items()
    worker = world.worker()
    worker.grant(item)
    [row] = world.audited("claim.granted", item_id=item)
    assert (row.verdict, row.actor, row.worker_id, row.epoch) == (
        "granted",
        worker.name.uri,
        worker.name.worker,
        1,
    )
    assert row.rule == "scope work:claim queue=eu-west-1/default"
    assert str(row.ti_id) == world.row(item).ti_id


def test_refusals_are_audited(world: World) -> None:
    """Each refusal is in the audit trail and in the timeline, with its reason; a message that nobody signed names no item."""
    [item] = world.items()
    worker = world.worker()
    held = world.envelope(item)
    world.worker().grant(item)
    refusals = worker.claim(held, "forged").refusals
    assert {each.disposition for each in refusals} == {Disposition.DROP, Disposition.DEAD_LETTER}
    rows = world.audited("claim.refused", worker_id=worker.name.worker)
    assert {row.detail["reason"] for row in rows} == {str(each.reason) for each in refusals}
    assert {(row.verdict, row.actor) for row in rows} == {("denied", worker.name.uri)}
    assert {row.detail.get("item") for row in rows} == {item, None}
    [event] = [row for row in world.events("claim.refused") if str(row.item_id) == item]
    assert (event.worker_id, str(event.ti_id)) == (worker.name.worker, world.row(item).ti_id)


def test_moved_item_is_not_granted(world: World) -> None:
    """A message whose item now belongs to another pool is refused, even under the same epoch."""
    [item] = world.items()
    captured = world.envelope(item)
    with world.metadata.session() as session:
        session.get(WorkItemRow, item).pool = "gpu"
        session.commit()
    [refusal] = world.worker().claim(captured).refusals
    assert (refusal.reason, refusal.detail) == (RefusalReason.WRONG_REGION, "it was moved to gpu@eu-west-1")
    assert world.row(item).state == ItemState.PLACED


def deploy(session: Any, dag_id: str, tasks: int, version: str, **of_task: Any) -> None:
    """Serialise a DAG with `tasks` tasks, as the version of a newer bundle."""
    from airflow.models.serialized_dag import SerializedDagModel
    from airflow.providers.standard.operators.empty import EmptyOperator
    from airflow.sdk import DAG

    with DAG(dag_id, schedule=None) as dag:
        for number in range(tasks):
            EmptyOperator(task_id=f"task_{number}", **of_task)
    assert SerializedDagModel.write_dag(dag, BUNDLE.name, version, session=session)


def test_removed_task_runs_in_its_runs(world: World) -> None:
    """A task that a deployment removes runs in the runs that are under way, as they were created, with its declared assets."""
    from airflow.providers.standard.operators.empty import EmptyOperator
    from airflow.sdk import Asset

    asset = Asset(f"thing-{next(world.number)}")
    kept, removed = world.items(2, operator=partial(EmptyOperator, inlets=[asset]))
    row = world.row(removed)
    with world.metadata.session() as session:
        run = text("UPDATE dag_run SET bundle_version = 'before' WHERE dag_id = :dag")
        session.execute(run, {"dag": row.dag_id})
        deploy(session, row.dag_id, 1, "after")
        session.commit()
    worker = world.worker()
    worker.grant(kept)
    grant = worker.grant(removed)
    validated = record(grant, 1, "GET", "task-instances/{ti}/validate-inlets-and-outlets")
    answer = worker.exchange(validated, finished(grant, 1))
    assert [result.status for result in answer.results] == [200, 204]
    with world.metadata.session() as session:
        declared = ExecutionApp().declared_assets(session, row.dag_id, row.run_id, row.task_id)
    assert [each.name for each in declared] == [asset.name]


def test_cleared_run_has_the_assets_of_its_new_code(world: World) -> None:
    """Clearing a run moves it to the newest code, and the declared assets that its tasks may use are those of that code."""
    from airflow.providers.standard.operators.empty import EmptyOperator
    from airflow.sdk import Asset

    old, new = (Asset(f"thing-{next(world.number)}") for _ in range(2))
    [item] = world.items(operator=partial(EmptyOperator, inlets=[old]))
    row = world.row(item)
    with world.metadata.session() as session:
        session.execute(
            text("UPDATE dag_run SET bundle_version = 'before' WHERE dag_id = :dag"), {"dag": row.dag_id}
        )
        deploy(session, row.dag_id, 1, "after", inlets=[new])
        session.commit()
        declared = ExecutionApp().declared_assets(session, row.dag_id, row.run_id, row.task_id)
        assert [each.name for each in declared] == [old.name]
        session.execute(
            text("UPDATE dag_run SET bundle_version = 'after', queued_at = :now WHERE dag_id = :dag"),
            {"dag": row.dag_id, "now": datetime.now(UTC)},
        )
        session.commit()
        declared = ExecutionApp().declared_assets(session, row.dag_id, row.run_id, row.task_id)
    assert [each.name for each in declared] == [new.name]


def test_run_without_version_follows_its_dag(world: World) -> None:
    """A run of a bundle without versions has the newest DAG, as its code is the newest, and a task that it lacks cannot start."""
    _, removed = world.items(2)
    with world.metadata.session() as session:
        deploy(session, world.row(removed).dag_id, 1, "after")
        session.commit()
    worker = world.worker()
    [refusal] = worker.claim(world.envelope(removed)).refusals
    assert refusal.reason is RefusalReason.NOT_STARTABLE
