"""Where a try of a task ran, as the ledger knows it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from airbridge.control_plane.dashboard import addresses

# The ledger's models import Airflow, whose own import loads the log handler, and so this module: a circle
# for whoever imports the models first. They are imported where they are used.
if TYPE_CHECKING:
    from airbridge.executor.ledger.models import WorkItemRow


@dataclass(frozen=True)
class Note:
    """What the control plane has to say of a try, and when it happened."""

    at: datetime
    text: str


@dataclass(frozen=True)
class Whereabouts:
    """The regions and the last worker of a try. `edge` is whether EdgeExecutor had it at all."""

    regions: tuple[str, ...] = ()
    worker: str | None = None
    edge: bool = False
    notes: tuple[Note, ...] = ()
    opening: tuple[Note, ...] = ()
    """Where the task's timeline is, and where each work item of the try ran, if it did: what the log begins with."""


NOWHERE = Whereabouts()


def of_try(ti: Any) -> Whereabouts:
    """Where the try of `ti` (a TaskInstance or TaskInstanceHistory) ran; `NOWHERE` if not on an edge worker."""
    from airflow.utils.session import create_session

    with create_session(scoped=False) as session:
        return find(session, ti)


def find(session: Any, ti: Any) -> Whereabouts:
    """As `of_try`, on an open session: the ledger's items of the try, else what the host name says."""
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
        return Whereabouts(
            regions=tuple(dict.fromkeys(row.region for row in rows)),
            worker=next((row.worker_id for row in reversed(rows) if row.worker_id), None),
            edge=True,
            notes=tuple(note for row in rows if (note := _note(row)) is not None),
            # The timeline first: whoever follows a log counts the lines that were there.
            opening=(_timeline(rows[0]), *(_held(row) for row in rows if row.worker_id and row.claimed_at)),
        )
    return _by_hostname(session, ti)


def _by_hostname(session: Any, ti: Any) -> Whereabouts:
    """The gateway starts a task under its worker's id as host name: what is left when the ledger's items are purged."""
    from airbridge.executor.ledger.models import WorkerRow

    worker = session.get(WorkerRow, ti.hostname) if ti.hostname else None
    if worker is None:
        return NOWHERE
    return Whereabouts(regions=(worker.region,), worker=worker.id, edge=True)


def _held(row: WorkItemRow) -> Note:
    """Return where a work item ran, under which epoch and trace."""
    from airbridge.executor.ledger.events import trace_id

    trace = trace_id(row.trace)
    known = f"work item {row.id}, epoch {row.epoch}{f', trace {trace}' if trace else ''}"
    return Note(row.claimed_at, f"Runs on {row.worker_id} in {row.region} ({known})")


def _timeline(row: WorkItemRow) -> Note:
    """Return the address of a task's timeline, in a line of its own: Airflow's UI makes it a link, and cuts long lines off."""
    from airflow.configuration import conf

    page = addresses.timeline(row.dag_id, row.run_id, row.task_id, row.map_index)
    base = str(conf.get("api", "base_url", fallback="")).rstrip("/")
    return Note(row.placed_at, f"Timeline: {base}{page}")


def _note(row: WorkItemRow) -> Note | None:
    """Return what the task's own log cannot tell: it had no chance to, or never started."""
    from airbridge.executor.ledger.models import Outcome

    worth_a_note = {Outcome.FAILED, Outcome.LOST, Outcome.CANCELLED, Outcome.UNPLACEABLE}
    if row.outcome not in worth_a_note or not row.detail or row.settled_at is None:
        return None
    return Note(row.settled_at, f"{row.outcome}: {row.detail}")
