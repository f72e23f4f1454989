"""Location of a task's try: region and worker, from the ledger."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from airbridge.control_plane.dashboard import addresses
from airbridge.core.protocol import ItemKind

# The ledger's models import Airflow, whose import loads the log handler and so this module: a circular import
# if the models are imported first. They are imported inside the functions.
if TYPE_CHECKING:
    from airbridge.executor.ledger.models import WorkItemRow


@dataclass(frozen=True)
class Note:
    """Message of the control plane for a try's log, with its time."""

    at: datetime
    text: str


@dataclass(frozen=True)
class TaskLocation:
    """Regions and last worker of a try. `edge` is False if EdgeExecutor did not run it."""

    regions: tuple[str, ...] = ()
    worker: str | None = None
    edge: bool = False
    notes: tuple[Note, ...] = ()
    #: First lines of the log: the timeline's URL, and the location of each work item that ran.
    header: tuple[Note, ...] = ()


NOWHERE = TaskLocation()


def of_try(ti: Any) -> TaskLocation:
    """Return the location of `ti` (a TaskInstance or TaskInstanceHistory); `NOWHERE` if it was not on an edge worker."""
    from airflow.utils.session import create_session

    with create_session(scoped=False) as session:
        return find(session, ti)


def find(session: Any, ti: Any) -> TaskLocation:
    """Return the location on an open session, from the ledger's items of the try, else from its host name."""
    from sqlalchemy import select

    from airbridge.executor.ledger.models import WorkItemRow

    rows = session.scalars(
        select(WorkItemRow)
        .where(
            WorkItemRow.dag_id == ti.dag_id,
            WorkItemRow.run_id == ti.run_id,
            WorkItemRow.task_id == ti.task_id,
            WorkItemRow.map_index == ti.map_index,
            WorkItemRow.try_number == ti.try_number,
        )
        .order_by(WorkItemRow.placed_at)
    ).all()
    if rows:
        return TaskLocation(
            regions=tuple(dict.fromkeys(row.region for row in rows)),
            worker=next((row.worker_id for row in reversed(rows) if row.worker_id), None),
            edge=True,
            notes=tuple(note for row in rows if (note := _note(row)) is not None),
            # The timeline stays first: Airflow's UI resumes a log by line count, so lines may only be added after it.
            header=(_timeline(rows[0]), *(_ran_on(row) for row in rows if row.worker_id and row.claimed_at)),
        )
    return _by_hostname(session, ti)


def _by_hostname(session: Any, ti: Any) -> TaskLocation:
    """Return the location by host name, which is the worker's id, after the ledger's items were purged."""
    from airbridge.executor.ledger.models import WorkerRow

    worker = session.get(WorkerRow, ti.hostname) if ti.hostname else None
    if worker is None:
        return NOWHERE
    return TaskLocation(regions=(worker.region,), worker=worker.id, edge=True)


def _ran_on(row: WorkItemRow) -> Note:
    """Return a note with the worker, region, epoch and trace of a work item."""
    from airbridge.executor.ledger.events import trace_id

    trace = trace_id(row.trace)
    known = f"work item {row.id}, epoch {row.epoch}{f', trace {trace}' if trace else ''}"
    what = "Runs" if row.kind == ItemKind.TASK else "Its trigger runs"
    return Note(row.claimed_at, f"{what} on {row.worker_id} in {row.region} ({known})")


def _timeline(row: WorkItemRow) -> Note:
    """Return a note with the timeline's URL. A line of its own: Airflow's UI makes it a link, but truncates long lines."""
    from airflow.configuration import conf

    page = addresses.timeline(row.dag_id, row.run_id, row.task_id, row.map_index)
    base = str(conf.get("api", "base_url", fallback="")).rstrip("/")
    return Note(row.placed_at, f"Timeline: {base}{page}")


def _note(row: WorkItemRow) -> Note | None:
    """Return a note about an end that the task's own log does not contain, because it was killed or never started."""
    from airbridge.executor.ledger.models import Outcome

    worth_a_note = {Outcome.FAILED, Outcome.LOST, Outcome.CANCELLED, Outcome.UNPLACEABLE}
    if row.outcome not in worth_a_note or not row.detail or row.settled_at is None:
        return None
    if row.detail in {"failed", "up_for_retry"}:
        return None  # the task reported it itself: its log has the reason
    return Note(row.settled_at, f"{row.outcome}: {row.detail}")
