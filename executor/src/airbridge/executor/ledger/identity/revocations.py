"""Revocations of workers, certificates, pools and issuing CAs. They hold from the next request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, get_args

from sqlalchemy import and_, bindparam, or_, select

from airbridge.executor.ledger import clock
from airbridge.executor.ledger.identity.models import RevocationRow

# The value of a ``pool`` is ``region/pool``, of a ``certificate`` its thumbprint, of an ``issuer`` its key
# id.
Kind = Literal["worker", "certificate", "pool", "issuer"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)


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


class Revocation(Protocol):
    """Revocation that applies to a peer."""

    @property
    def kind(self) -> str:
        """A `Kind`."""

    @property
    def value(self) -> str:
        """Value of that kind that is revoked."""

    @property
    def reason(self) -> str:
        """Reason that its actor gave."""


_REVOCATION: Final = RevocationRow.__table__
# Matches revocations of the values that are given for each kind.
OF_VALUES: Final = or_(
    *(
        and_(_REVOCATION.c.kind == kind, _REVOCATION.c.value.in_(bindparam(kind, expanding=True)))
        for kind in KINDS
    )
)
_REVOKED: Final = select(_REVOCATION).where(OF_VALUES)


def values_of(peers: Sequence[Named]) -> dict[str, list[str]]:
    """Return the values of `OF_VALUES` that match the revocations of any of the peers."""
    values: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for kind, value in sorted({name for peer in peers for name in peer.names}):
        values[kind].append(value)
    return values


def is_revoked(session: Any, **named: str | None) -> Revocation | None:
    """Return the revocation that applies to a peer with the attributes of a `Named`, if any."""
    return revoked(session, [Named(**named)])[0]


def revoked(session: Any, peers: Sequence[Named]) -> list[Revocation | None]:
    """Return the revocation that applies to each of the peers, if any; in one statement."""
    values = values_of(peers)
    if not any(values.values()):
        return [None] * len(peers)
    rows = {(row.kind, row.value): row for row in session.execute(_REVOKED, values)}
    return [next((rows[name] for name in peer.names if name in rows), None) for peer in peers]
