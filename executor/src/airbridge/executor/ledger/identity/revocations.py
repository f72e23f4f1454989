"""Revocations of workers, certificates, pools and issuing CAs. They hold from the next request."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import and_, or_, select

from airbridge.executor.ledger import clock
from airbridge.executor.ledger.models import RevocationRow

# The value of a ``pool`` is ``region/pool``, of a ``certificate`` its thumbprint, of an ``issuer`` its key
# id.
Kind = Literal["worker", "certificate", "pool", "issuer"]


def add(session: Any, kind: Kind, value: str, reason: str, actor: str) -> RevocationRow:
    """Revoke; a second revocation of the same thing leaves the first as it is."""
    value = _canonical(kind, value)
    row: RevocationRow | None = session.get(RevocationRow, (kind, value))
    if row is None:
        row = RevocationRow(kind=kind, value=value, reason=reason, actor=actor, revoked_at=clock.now(session))
        session.add(row)
        session.flush()
    return row


def remove(session: Any, kind: Kind, value: str) -> bool:
    """Take a revocation back; False if there was none."""
    row = session.get(RevocationRow, (kind, _canonical(kind, value)))
    if row is None:
        return False
    session.delete(row)
    session.flush()
    return True


def _canonical(kind: Kind, value: str) -> str:
    """Return a value as requests are compared with it: fingerprints and key ids in lower case, as other tools may not print them."""
    return value.lower() if kind in {"certificate", "issuer"} else value


def list_all(session: Any) -> list[RevocationRow]:
    """Return all revocations, newest first."""
    return list(
        session.scalars(select(RevocationRow).order_by(RevocationRow.revoked_at.desc(), RevocationRow.value))
    )


@dataclass(frozen=True, slots=True)
class Named:
    """Everything by which a peer can be revoked."""

    worker: str | None = None
    region: str | None = None
    pool: str | None = None
    thumbprint: str | None = None
    issuer: str | None = None

    @property
    def names(self) -> list[tuple[Kind, str]]:
        """Order of precedence: a worker's own revocation stops it, its issuer's only makes it enrol again."""
        named: tuple[tuple[Kind, str | None], ...] = (
            ("worker", self.worker),
            ("pool", f"{self.region}/{self.pool}" if self.region and self.pool else None),
            ("issuer", self.issuer),
            ("certificate", self.thumbprint),
        )
        return [(kind, value) for kind, value in named if value]


def is_revoked(session: Any, **named: str | None) -> RevocationRow | None:
    """Return the revocation that applies to a peer with the attributes of a `Named`, if any."""
    return revoked(session, [Named(**named)])[0]


def revoked(session: Any, peers: Sequence[Named]) -> list[RevocationRow | None]:
    """Return the revocation that applies to each of the peers, if any; in one statement."""
    values: defaultdict[Kind, set[str]] = defaultdict(set)
    for peer in peers:
        for kind, value in peer.names:
            values[kind].add(value)
    if not values:
        return [None] * len(peers)
    conditions = [
        and_(RevocationRow.kind == kind, RevocationRow.value.in_(sorted(named)))
        for kind, named in values.items()
    ]
    rows = {
        (row.kind, row.value): row for row in session.scalars(select(RevocationRow).where(or_(*conditions)))
    }
    if not rows:
        return [None] * len(peers)
    return [next((rows[name] for name in peer.names if name in rows), None) for peer in peers]
