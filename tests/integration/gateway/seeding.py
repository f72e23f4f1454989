"""DAGs, runs and queued task instances in the metadata database, as the scheduler leaves them for an executor."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from airbridge.core.protocol import BundleRef, WorkItem
from airbridge.executor.ledger import clock, items
from airbridge.executor.ledger.items import NewItem
from airbridge.executor.ledger.models import WorkItemRow

BUNDLE = BundleRef(name="dags", version="sha256:" + "a" * 64)
DISCONNECT = {"lost_after": 600.0, "stop_after": None, "replace": True}


def queued_tasks(session: Any, count: int = 1, *, retries: int = 0, operator: Any = None) -> list[Any]:
    """Create a DAG of its own with a running run; return its `count` queued task instances."""
    from airflow.models import dag as models
    from airflow.models.dagbundle import DagBundleModel
    from airflow.models.serialized_dag import SerializedDagModel
    from airflow.providers.standard.operators.empty import EmptyOperator
    from airflow.sdk import DAG
    from airflow.serialization.serialized_objects import SerializedDAG
    from airflow.utils.state import DagRunState
    from airflow.utils.types import DagRunTriggeredByType, DagRunType

    now = datetime.now(UTC)
    with DAG(f"dag-{uuid4().hex[:12]}", schedule=None, start_date=datetime(2025, 1, 1, tzinfo=UTC)) as dag:
        for number in range(count):
            (operator or EmptyOperator)(task_id=f"task_{number}", retries=retries)
    serialised = SerializedDAG.deserialize_dag(SerializedDAG.serialize_dag(dag))
    # Flushed in this order: each row refers to the one before.
    session.merge(DagBundleModel(name=BUNDLE.name))
    session.flush()
    models.DAG.bulk_write_to_db(BUNDLE.name, None, [serialised], session=session)
    session.flush()
    session.query(models.DagModel).filter_by(dag_id=dag.dag_id).update({"relative_fileloc": "dag.py"})
    SerializedDagModel.write_dag(dag, bundle_name=BUNDLE.name, session=session)
    session.flush()
    run = serialised.create_dagrun(
        run_id=f"manual__{now.isoformat()}",
        run_type=DagRunType.MANUAL,
        state=DagRunState.RUNNING,
        run_after=now,
        logical_date=now,
        data_interval=(now, now),
        triggered_by=DagRunTriggeredByType.TEST,
        session=session,
    )
    run.start_date = now
    tasks = sorted(run.get_task_instances(session=session), key=lambda ti: ti.task_id)
    for ti in tasks:
        ti.state = "queued"
        ti.queued_dttm = now
        ti.try_number = 1
        ti.max_tries = retries
    session.commit()
    return tasks


def scheduler(session: Any, seen: timedelta = timedelta(0)) -> None:
    """A running scheduler whose last heartbeat was that long ago; an earlier one is replaced."""
    from airflow.jobs.job import Job
    from sqlalchemy import delete, insert

    of_scheduler = Job.job_type == "SchedulerJob"
    session.execute(delete(Job).where(of_scheduler).execution_options(synchronize_session=False))
    values = {"job_type": "SchedulerJob", "state": "running", "hostname": "scheduler", "unixname": "airflow"}
    now = clock.now(session)
    session.execute(insert(Job).values(**values, start_date=now - seen, latest_heartbeat=now - seen))


def placed_items(
    session: Any, tasks: Sequence[Any], *, region: str, pool: str = "default"
) -> list[WorkItemRow]:
    """Place the task instances in the ledger, as the executor does."""
    rows = items.place(session, [_new_item(ti, region, pool) for ti in tasks], owner_job_id=1)
    session.commit()
    return rows


def work_item(
    session: Any, row: WorkItemRow, *, ttl: timedelta = timedelta(minutes=10), **changes: Any
) -> WorkItem:
    """Return the message for a row, as the outbox makes it."""
    now = clock.now(session)
    item = WorkItem(
        item_id=UUID(row.id),
        ti_id=UUID(row.ti_id),
        epoch=row.epoch,
        region=row.region,
        pool=row.pool,
        slots=max(1, row.slots),
        kind=row.kind,
        bundle=BUNDLE,
        dag_rel_path="dag.py",
        issued_at=now,
        expires_at=now + ttl,
    )
    return item.model_copy(update=changes)


def _new_item(ti: Any, region: str, pool: str) -> NewItem:
    described = {
        "id": str(ti.id),
        "task_id": ti.task_id,
        "dag_id": ti.dag_id,
        "run_id": ti.run_id,
        "try_number": ti.try_number,
        "map_index": ti.map_index,
        "pool_slots": 1,
        "queue": region,
        "priority_weight": 1,
    }
    return NewItem(
        ti_id=str(ti.id),
        dag_id=ti.dag_id,
        run_id=ti.run_id,
        task_id=ti.task_id,
        map_index=ti.map_index,
        try_number=ti.try_number,
        queue=region,
        region=region,
        pool=pool,
        slots=1,
        priority=1,
        workload={
            "ti": described,
            "dag_rel_path": "dag.py",
            "bundle": BUNDLE.model_dump(),
            "log_path": f"dag_id={ti.dag_id}/{ti.task_id}.log",
        },
        placement={"why": "test", "fallback": [], "tried": []},
        disconnect=DISCONNECT,
    )
