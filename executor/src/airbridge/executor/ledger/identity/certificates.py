"""Certificates of workers: one live generation per name, one live certificate per generation.

A renewal issues a child. The child's first use ends its parent and the parent's other children, so a response that was lost
(the child is never used) leaves the parent good. An enrolment begins a generation and ends all certificates of those before.

Use of an ended certificate therefore proves that two processes share one identity, apart from requests that were under way
when it ended: for those there is a grace. `judge` decides, without the database.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import bindparam, delete, select, update

from airbridge.executor.ledger import clock
from airbridge.executor.ledger._locking import for_update
from airbridge.executor.ledger.identity.models import CertificateRow
from airbridge.executor.ledger.models import WorkerRow

# Time after its expiry that a certificate's row is kept, for the investigation of a fork.
KEPT: Final = timedelta(days=1)


class Ending(StrEnum):
    """Reason for which a certificate ended."""

    #: Its child was used.
    RENEWED = "renewed"
    #: Another child of the same parent was used first; this one never was.
    SUPERSEDED = "superseded"
    #: The name enrolled anew.
    GENERATION = "generation"
    #: The name was stopped.
    FORKED = "forked"


class Standing(StrEnum):
    """Standing of the certificate of a request."""

    LIVE = "live"
    #: Live, and its first use is yet to be recorded.
    FIRST_USE = "first_use"
    #: Not in this database: never issued by this control plane.
    UNKNOWN = "unknown"
    #: Refused. Not evidence of a copy.
    ENDED = "ended"
    #: Evidence that a copy of the identity is in use.
    FORKED = "forked"


@dataclass(frozen=True, slots=True)
class Known:
    """A certificate and its name's current generation."""

    thumbprint: str
    generation: int
    current_generation: int
    rejoined: bool
    used_at: datetime | None
    ended_at: datetime | None
    ending: str | None
    address: str | None


def judge(known: Known | None, now: datetime, grace: timedelta) -> Standing:
    """Return what a request under this certificate means at `now`."""
    if known is None:
        return Standing.UNKNOWN
    late = known.ended_at is not None and now - known.ended_at > grace
    if known.generation != known.current_generation:
        # Only the host that held the old generation could prove the rejoin key, and it has no old process left.
        last = known.generation == known.current_generation - 1 and known.ending == Ending.GENERATION
        return Standing.FORKED if late and last and known.rejoined else Standing.ENDED
    if known.ended_at is None:
        return Standing.LIVE if known.used_at else Standing.FIRST_USE
    if known.ending == Ending.RENEWED:
        return Standing.FORKED if late else Standing.LIVE
    return Standing.FORKED if known.ending == Ending.SUPERSEDED else Standing.ENDED


_CERTIFICATE: Final = CertificateRow.__table__
_WORKER: Final = WorkerRow.__table__
# The rows that `known` reads, of the certificates that are given by `thumbprints`.
KNOWN: Final = (
    select(
        _CERTIFICATE.c.thumbprint,
        _CERTIFICATE.c.generation,
        _WORKER.c.generation.label("current_generation"),
        _WORKER.c.rejoined,
        _CERTIFICATE.c.used_at,
        _CERTIFICATE.c.ended_at,
        _CERTIFICATE.c.ending,
        _CERTIFICATE.c.address,
    )
    .select_from(_CERTIFICATE.join(_WORKER, _WORKER.c.id == _CERTIFICATE.c.worker_id))
    .where(_CERTIFICATE.c.thumbprint.in_(bindparam("thumbprints", expanding=True)))
)


def find(session: Any, thumbprints: Iterable[str]) -> dict[str, Known]:
    """Return what is known of certificates, in one statement."""
    rows = session.execute(KNOWN, {"thumbprints": sorted(thumbprints)})
    return {row.thumbprint: known(row) for row in rows}


def known(row: Any) -> Known:
    """Read a row of `KNOWN`."""
    return Known(
        thumbprint=row.thumbprint,
        generation=row.generation,
        current_generation=row.current_generation,
        rejoined=bool(row.rejoined),
        used_at=row.used_at,
        ended_at=row.ended_at,
        ending=row.ending,
        address=row.address,
    )


def lock_name(session: Any, worker_id: str) -> WorkerRow | None:
    """Lock a worker's row: changes to its chain follow one another."""
    query = for_update(session, select(WorkerRow).where(WorkerRow.id == worker_id))
    row: WorkerRow | None = session.scalars(query).one_or_none()
    return row


def issue(
    session: Any, worker: WorkerRow, thumbprint: str, expires_at: datetime, parent: str | None
) -> CertificateRow:
    """Record a certificate of the name's current generation."""
    now = clock.now(session)
    session.execute(
        delete(CertificateRow)
        .where(CertificateRow.worker_id == worker.id, CertificateRow.expires_at < now - KEPT)
        .execution_options(synchronize_session=False)
    )
    row = CertificateRow(
        thumbprint=thumbprint,
        worker_id=worker.id,
        generation=worker.generation,
        parent=parent,
        issued_at=now,
        expires_at=expires_at,
    )
    session.add(row)
    session.flush()
    return row


def note_first_use(session: Any, worker_id: str, thumbprint: str) -> None:
    """Record the first use of a certificate, which ends its parent and its parent's other children."""
    now = clock.now(session)
    row: CertificateRow = session.get(CertificateRow, thumbprint)
    row.used_at = now
    session.flush()
    if row.parent is None:
        return
    same = (CertificateRow.worker_id == worker_id, CertificateRow.ended_at.is_(None))
    _end(session, now, Ending.RENEWED, *same, CertificateRow.thumbprint == row.parent)
    siblings = (CertificateRow.parent == row.parent, CertificateRow.thumbprint != thumbprint)
    _end(session, now, Ending.SUPERSEDED, *same, *siblings)


def begin_generation(session: Any, worker: WorkerRow, *, rejoined: bool) -> None:
    """End every certificate of a name and begin its next generation."""
    end_all(session, worker.id, Ending.GENERATION)
    worker.generation += 1
    worker.rejoined = rejoined
    session.flush()


def end_all(session: Any, worker_id: str, ending: Ending) -> None:
    """End all certificates of a name that have not ended."""
    live = (CertificateRow.worker_id == worker_id, CertificateRow.ended_at.is_(None))
    _end(session, clock.now(session), ending, *live)


def note_address(session: Any, thumbprint: str, address: str, grace: timedelta) -> CertificateRow | None:
    """Record the host that used a certificate. Return its row if it has just been seen to be used from two hosts.

    A host that moves once, for good, is not reported; one that comes back to an earlier address is, after `grace`.
    """
    row: CertificateRow = session.get(CertificateRow, thumbprint, populate_existing=True)
    if address == row.address:
        return None
    now = clock.now(session)
    returned = address == row.other_address
    if row.address is not None:
        row.moved_at = row.moved_at or now
    row.other_address, row.address = row.address, address
    found = returned and row.flagged_at is None and now - row.moved_at > grace
    if found:
        row.flagged_at = now
    session.flush()
    return row if found else None


def _end(session: Any, now: datetime, ending: Ending, *conditions: Any) -> None:
    session.execute(
        update(CertificateRow)
        .where(*conditions)
        .values(ended_at=now, ending=str(ending))
        .execution_options(synchronize_session="fetch")
    )
