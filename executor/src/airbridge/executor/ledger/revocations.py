"""What is refused from now on: a worker, a certificate, a pool or an issuing CA."""

from __future__ import annotations

from typing import Any, Literal

from sqlalchemy import and_, or_, select

from airbridge.executor.ledger import clock
from airbridge.executor.ledger.models import RevocationRow

Kind = Literal["worker", "certificate", "pool", "issuer"]
"""The value of a ``pool`` is ``region/pool``, of a ``certificate`` its thumbprint, of an ``issuer`` its key id."""


def add(session: Any, kind: Kind, value: str, reason: str, actor: str) -> RevocationRow:
    """Revoke; a second revocation of the same thing leaves the first as it is."""
    row: RevocationRow | None = session.get(RevocationRow, (kind, value))
    if row is None:
        row = RevocationRow(kind=kind, value=value, reason=reason, actor=actor, revoked_at=clock.now(session))
        session.add(row)
        session.flush()
    return row


def remove(session: Any, kind: Kind, value: str) -> bool:
    """Take a revocation back; False if there was none."""
    row = session.get(RevocationRow, (kind, value))
    if row is None:
        return False
    session.delete(row)
    session.flush()
    return True


def list_all(session: Any) -> list[RevocationRow]:
    """Return all revocations, newest first."""
    return list(
        session.scalars(select(RevocationRow).order_by(RevocationRow.revoked_at.desc(), RevocationRow.value))
    )


def is_revoked(
    session: Any,
    *,
    worker: str | None = None,
    region: str | None = None,
    pool: str | None = None,
    thumbprint: str | None = None,
    issuer: str | None = None,
) -> RevocationRow | None:
    """Return the revocation that applies to such a peer, if any."""
    named: tuple[tuple[Kind, str | None], ...] = (
        ("worker", worker),
        ("certificate", thumbprint),
        ("pool", f"{region}/{pool}" if region and pool else None),
        ("issuer", issuer),
    )
    conditions = [
        and_(RevocationRow.kind == kind, RevocationRow.value == value) for kind, value in named if value
    ]
    if not conditions:
        return None
    query = select(RevocationRow).where(or_(*conditions)).order_by(RevocationRow.kind.desc())
    # A worker's own revocation before its issuer's: the one tells it to stop, the other to enrol again.
    found: RevocationRow | None = session.scalars(query.limit(1)).one_or_none()
    return found
