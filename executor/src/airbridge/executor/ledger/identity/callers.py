"""Callers, as every request of a worker is judged by: the certificate, its worker, and the revocations, in one statement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Text, cast, select

from airbridge.executor.ledger.identity import certificates, revocations
from airbridge.executor.ledger.identity.certificates import Known
from airbridge.executor.ledger.identity.models import RevocationRow
from airbridge.executor.ledger.identity.revocations import Named
from airbridge.executor.ledger.models import WorkerRow


@dataclass(frozen=True, slots=True)
class CallerRecord:
    """Certificate of a caller, and what is wanted of its worker."""

    known: Known
    wanted: str
    comment: str | None
    #: JSON of the `Versions` that it reported last.
    versions: str


@dataclass(frozen=True, slots=True)
class CallerRecords:
    """Records of the callers whose certificates are there, by thumbprint."""

    by_thumbprint: dict[str, CallerRecord]
    #: Whether a revocation may name any of the callers: `revocations.revoked` tells which.
    may_be_revoked: bool


_WORKER: Final = WorkerRow.__table__

_ANY_REVOKED: Final = select(RevocationRow.__table__.c.kind).where(revocations.OF_VALUES).exists()
_CALLERS: Final = certificates.KNOWN.add_columns(
    _WORKER.c.wanted,
    _WORKER.c.comment,
    cast(_WORKER.c.versions, Text).label("versions"),
    _ANY_REVOKED.label("any_revoked"),
)


def find(session: Any, peers: Sequence[Named]) -> CallerRecords:
    """Return the records of peers, in one statement."""
    thumbprints = sorted({peer.thumbprint for peer in peers if peer.thumbprint})
    found = session.execute(_CALLERS, {**revocations.values_of(peers), "thumbprints": thumbprints}).all()
    return CallerRecords(
        {
            row.thumbprint: CallerRecord(certificates.known(row), row.wanted, row.comment, row.versions)
            for row in found
        },
        # Without a row there is no answer either.
        may_be_revoked=not found or bool(found[0].any_revoked),
    )
