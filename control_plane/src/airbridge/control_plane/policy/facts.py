"""Facts about a task for policy decisions, from the ledger's row."""

from __future__ import annotations

from airbridge.control_plane.policy.decisions import TaskFacts
from airbridge.executor.ledger.models import WorkItemRow


def facts(row: WorkItemRow) -> TaskFacts:
    """Return the facts of a row's task."""
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
        bundle=row.workload["bundle"]["name"],
    )
