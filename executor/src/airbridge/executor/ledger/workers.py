"""Workers: who has enrolled, and what they said last."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Literal, Protocol

from sqlalchemy import bindparam, select

from airbridge.executor.ledger import clock
from airbridge.executor.ledger._locking import for_update
from airbridge.executor.ledger.models import WorkerRow
from airbridge.executor.protocol import Heartbeat, Versions, WorkerState

Wanted = Literal["active", "draining", "maintenance", "revoked"]
"""`maintenance` is a drain that was planned: it says why, and nobody needs to be woken for it."""


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
    row.versions = versions.model_dump(mode="json")
    row.certificate_thumbprint = thumbprint
    row.certificate_expires_at = certificate_expires_at
    session.flush()
    return row


def heartbeat(session: Any, worker_id: str, said: Heartbeat) -> WorkerRow | None:
    """Note what a worker says of itself; None if it never enrolled."""
    row: WorkerRow | None = session.get(WorkerRow, worker_id)
    if row is None:
        return None
    for name, value in _said(said, clock.now(session)).items():
        setattr(row, name, value)
    session.flush()
    return row


def _said(heartbeat: Heartbeat, now: datetime) -> dict[str, Any]:
    return {
        "last_heartbeat_at": now,
        "clock_skew_seconds": (heartbeat.sent_at - now).total_seconds(),
        "state": heartbeat.state,
        "versions": heartbeat.versions.model_dump(mode="json"),
        "slots_total": heartbeat.slots_total,
        "slots_used": heartbeat.slots_used,
        "journal_pending": heartbeat.journal_pending,
        "journal_bytes": heartbeat.journal_bytes,
        "trust_version": heartbeat.trust_version or None,
    }


class Order(Protocol):
    """What the operator wants of a worker, and why."""

    @property
    def wanted(self) -> str:
        """A `Wanted`."""

    @property
    def comment(self) -> str | None:
        """What the operator said about it."""


def orders(session: Any, worker_ids: Iterable[str]) -> dict[str, Order]:
    """Return what is wanted of each worker, and lock their rows; those that never enrolled or are locked are left out."""
    query = (
        select(WorkerRow.id, WorkerRow.wanted, WorkerRow.comment)
        .where(WorkerRow.id.in_(sorted(worker_ids)))
        .order_by(WorkerRow.id)
    )
    return {found.id: found for found in session.execute(for_update(session, query, skip_locked=True))}


def note(session: Any, said: Mapping[str, Heartbeat], now: datetime) -> None:
    """Note what each of many workers says of itself, as `heartbeat` does for one. Their rows exist."""
    if not said:
        return
    table = WorkerRow.__table__
    rows = [{"worker": worker, **_said(heartbeat, now)} for worker, heartbeat in said.items()]
    columns = {name: bindparam(name) for name in rows[0] if name != "worker"}
    session.execute(table.update().where(table.c.id == bindparam("worker")).values(columns), rows)


def get(session: Any, worker_id: str) -> WorkerRow | None:
    """Return one worker."""
    row: WorkerRow | None = session.get(WorkerRow, worker_id)
    return row


def list_all(session: Any) -> list[WorkerRow]:
    """Return all workers by region, pool and id."""
    return list(session.scalars(select(WorkerRow).order_by(WorkerRow.region, WorkerRow.pool, WorkerRow.id)))


def set_wanted(session: Any, worker_id: str, wanted: Wanted, comment: str | None = None) -> WorkerRow | None:
    """Say what the operator wants of a worker; None if there is no such worker."""
    row: WorkerRow | None = session.get(WorkerRow, worker_id)
    if row is None:
        return None
    row.wanted = wanted
    row.comment = comment
    session.flush()
    return row
