"""Enrolled workers and the content of their last heartbeat."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final, Literal, Protocol

from sqlalchemy import bindparam, delete, exists, func, or_, select, text, update

from airbridge.core import json_text
from airbridge.core.protocol import Heartbeat, Versions, WorkerState
from airbridge.executor.ledger import clock
from airbridge.executor.ledger._locking import LockingQuery, for_update
from airbridge.executor.ledger.identity.models import CertificateRow
from airbridge.executor.ledger.models import ItemState, WorkerRow, WorkItemRow

# `maintenance` is a planned drain with a reason, and raises no alarm.
Wanted = Literal["active", "draining", "maintenance", "revoked"]


def enrol(
    session: Any,
    *,
    worker_id: str,
    region: str,
    pool: str,
    versions: Versions,
    thumbprint: str,
    certificate_expires_at: datetime,
) -> WorkerRow:
    """Write a worker's enrolment, or its renewal: what the operator wants of it stays as it is."""
    now = clock.now(session)
    row: WorkerRow | None = session.get(WorkerRow, worker_id)
    if row is None:
        row = WorkerRow(id=worker_id, state=WorkerState.ACTIVE, wanted="active", enrolled_at=now)
        session.add(row)
    row.region = region
    row.pool = pool
    row.versions = json_text.storable(versions.model_dump(mode="json"))
    row.certificate_thumbprint = thumbprint
    row.certificate_expires_at = certificate_expires_at
    session.flush()
    return row


def heartbeat(session: Any, worker_id: str, reported: Heartbeat) -> WorkerRow | None:
    """Record a worker's heartbeat; None if it never enrolled."""
    row: WorkerRow | None = session.get(WorkerRow, worker_id)
    if row is None:
        return None
    for name, value in _columns(reported, clock.now(session)).items():
        setattr(row, name, value)
    session.flush()
    return row


def _columns(heartbeat: Heartbeat, now: datetime) -> dict[str, Any]:
    return {
        "last_heartbeat_at": now,
        "clock_skew_seconds": (heartbeat.sent_at - now).total_seconds(),
        "state": heartbeat.state,
        "versions": json_text.storable(heartbeat.versions.model_dump(mode="json")),
        "slots_total": heartbeat.slots_total,
        "slots_used": heartbeat.slots_used,
        "journal_pending": heartbeat.journal_pending,
        "journal_bytes": heartbeat.journal_bytes,
        "trust_version": json_text.storable_text(heartbeat.trust_version) or None,
        "queue_error": json_text.storable_text(heartbeat.queue_error) or None,
    }


def clock_skew(session: Any, worker_id: str) -> float:
    """Return how many seconds a worker's clock was ahead at its last heartbeat; negative if it was behind."""
    of_worker = select(WorkerRow.clock_skew_seconds).where(WorkerRow.id == worker_id)
    return float(session.execute(of_worker).scalar_one_or_none() or 0.0)


class Order(Protocol):
    """State that the operator ordered for a worker, with the reason."""

    @property
    def wanted(self) -> str:
        """A `Wanted`."""

    @property
    def comment(self) -> str | None:
        """Comment of the operator."""


_WORKER: Final = WorkerRow.__table__
_ORDERS: Final = LockingQuery(
    select(_WORKER.c.id, _WORKER.c.wanted, _WORKER.c.comment)
    .where(_WORKER.c.id.in_(bindparam("ids", expanding=True)))
    .order_by(_WORKER.c.id),
    skip_locked=True,
)


def orders(session: Any, worker_ids: Iterable[str]) -> tuple[dict[str, Order], datetime]:
    """Return what is wanted of each worker, and lock their rows; those that never enrolled or are locked are left out.

    The time is one at which all of the rows were locked.
    """
    found, now = _ORDERS.rows_at(session, {"ids": sorted(worker_ids)})
    return {row.id: row for row in found}, now


# Columns of a heartbeat, with their types in PostgreSQL.
_NOTED: Final = {
    "last_heartbeat_at": "timestamptz",
    "clock_skew_seconds": "float8",
    "state": "text",
    "versions": "text",
    "slots_total": "int",
    "slots_used": "int",
    "journal_pending": "int",
    "journal_bytes": "bigint",
    "trust_version": "text",
    "queue_error": "text",
}
_NOTE: Final = (
    update(_WORKER)
    .where(_WORKER.c.id == bindparam("worker"))
    .values({name: bindparam(name) for name in _NOTED})
)
# The driver sends an update of many rows as one statement for each. A JSON text makes them one, the same for any number.
_NOTE_ALL: Final = text(
    "UPDATE airbridge_worker SET "  # noqa: S608 - of constants
    + ", ".join(
        f"{name} = {'CAST(noted.versions AS json)' if name == 'versions' else f'noted.{name}'}"
        for name in _NOTED
    )
    + " FROM json_to_recordset(CAST(:noted AS json)) AS noted (worker text, "
    + ", ".join(f"{name} {kind}" for name, kind in _NOTED.items())
    + ") WHERE airbridge_worker.id = noted.worker"
)


def note(session: Any, reported: Mapping[str, Heartbeat], now: datetime) -> None:
    """Record the heartbeats of many workers, as `heartbeat` does for one. Their rows exist."""
    if not reported:
        return
    rows = [{"worker": worker, **_columns(heartbeat, now)} for worker, heartbeat in reported.items()]
    if len(rows) == 1 or session.get_bind().dialect.name != "postgresql":
        session.execute(_NOTE, rows)
        return
    for row in rows:
        row["last_heartbeat_at"] = now.isoformat()
        # A text, so that PostgreSQL reads no escape in it: it refuses U+0000 even where JSON has it.
        row["versions"] = json.dumps(row["versions"])
    session.execute(_NOTE_ALL, {"noted": json.dumps(rows)})


def get(session: Any, worker_id: str) -> WorkerRow | None:
    """Return one worker."""
    row: WorkerRow | None = session.get(WorkerRow, worker_id)
    return row


def list_all(session: Any) -> list[WorkerRow]:
    """Return all workers by region, pool and id."""
    return list(session.scalars(select(WorkerRow).order_by(WorkerRow.region, WorkerRow.pool, WorkerRow.id)))


def expire(session: Any, before: datetime) -> list[WorkerRow]:
    """Delete workers that have been silent since `before`, with their certificates; return their rows, in the order of their names.

    Kept are workers that hold work, whose certificates can still be used, or that are under maintenance, which an operator ends.
    """
    found = list(session.scalars(for_update(session, _expired(before, clock.now(session)), skip_locked=True)))
    for row in found:
        session.execute(
            delete(CertificateRow)
            .where(CertificateRow.worker_id == row.id)
            .execution_options(synchronize_session=False)
        )
        session.delete(row)
    session.flush()
    return found


def _expired(before: datetime, now: datetime) -> Any:
    row, held, certified = WorkerRow, WorkItemRow, CertificateRow
    holds = exists().where(held.worker_id == row.id, held.state == ItemState.CLAIMED)
    usable = exists().where(
        certified.worker_id == row.id, certified.expires_at > now, certified.ended_at.is_(None)
    )
    return (
        select(row)
        .where(
            func.coalesce(row.last_heartbeat_at, row.enrolled_at) < before,
            or_(row.certificate_expires_at.is_(None), row.certificate_expires_at < now),
            row.wanted != "maintenance",
            ~holds,
            ~usable,
        )
        .order_by(row.id)
    )


def set_wanted(session: Any, worker_id: str, wanted: Wanted, comment: str | None = None) -> WorkerRow | None:
    """Set the state that the operator orders for a worker; None if there is no such worker."""
    row: WorkerRow | None = session.get(WorkerRow, worker_id)
    if row is None:
        return None
    row.wanted = wanted
    row.comment = comment
    session.flush()
    return row
