"""Who a task is, from the ledger's row: what a policy is asked with."""

from __future__ import annotations

from airbridge.control_plane.policy import TaskFacts
from airbridge.executor.ledger.models import WorkItemRow


def facts(row: WorkItemRow) -> TaskFacts:
    """Return who the task of a row is."""
    return TaskFacts(
        item_id=row.id,
        ti_id=row.ti_id,
        dag_id=row.dag_id,
        run_id=row.run_id,
        task_id=row.task_id,
        map_index=row.map_index,
        region=row.region,
        pool=row.pool,
        worker=row.worker_id or "",
        queue=row.queue,
    )
