"""Workers: who has enrolled, and what they said last."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from sqlalchemy import select

from airbridge.executor.ledger import clock
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
    now = clock.now(session)
    row.last_heartbeat_at = now
    row.clock_skew_seconds = (said.sent_at - now).total_seconds()
    row.state = said.state
    row.versions = said.versions.model_dump(mode="json")
    row.slots_total = said.slots_total
    row.slots_used = said.slots_used
    row.journal_pending = said.journal_pending
    row.journal_bytes = said.journal_bytes
    row.trust_version = said.trust_version or None
    session.flush()
    return row


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
