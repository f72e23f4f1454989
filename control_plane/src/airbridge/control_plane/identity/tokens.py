"""Join tokens and operators' access tokens: random text shown once, kept as a hash, revocable.

A join token reads ``abj_...`` and lets a worker enrol in one region and pool; an access token reads
``abo_...`` and carries scopes for the operators' API. Both have an owner and an end.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from airbridge.control_plane.exceptions import Refused
from airbridge.control_plane.identity.scopes import Scopes
from airbridge.executor.ledger import audit, events, tokens
from airbridge.executor.ledger.models import TokenRow
from airbridge.executor.protocol import RefusalReason

JOIN_PREFIX: Final = "abj_"
ACCESS_PREFIX: Final = "abo_"
SECRET_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Issued:
    """A new token. `text` is the secret itself: it is shown to its owner once and kept nowhere."""

    text: str
    row: TokenRow

    def __repr__(self) -> str:
        return f"Issued(id={self.row.id!r}, kind={self.row.kind!r})"


def create_join(
    session: Any,
    *,
    region: str,
    pool: str,
    owner: str,
    ttl: timedelta,
    uses: int | None = 1,
    actor: str | None = None,
    address: str | None = None,
) -> Issued:
    """Make a join token for one region and pool. `uses` of None means any number until it expires."""
    _check_lifetime(ttl)
    if uses is not None and uses < 1:
        raise Refused(400, RefusalReason.MALFORMED, f"uses is {uses}; it must be 1 or more, or unset")
    text = JOIN_PREFIX + secrets.token_urlsafe(SECRET_BYTES)
    row = tokens.create(
        session,
        kind="join",
        secret=text,
        owner=owner,
        scopes={"region": region, "pool": pool},
        ttl_seconds=ttl.total_seconds(),
        uses=uses,
    )
    events.record(session, "token.created", owner, token=row.id, kind="join", scopes=row.scopes, uses=uses)
    _note(session, "token.created", row, actor or owner, address, uses=uses)
    return Issued(text, row)


def create_access(
    session: Any,
    *,
    scopes: Sequence[str],
    owner: str,
    actor: str,
    ttl: timedelta,
    address: str | None = None,
) -> Issued:
    """Make an operators' access token. Raises `InvalidScope` for a scope that cannot be read."""
    _check_lifetime(ttl)
    Scopes.parse(scopes)
    text = ACCESS_PREFIX + secrets.token_urlsafe(SECRET_BYTES)
    row = tokens.create(
        session,
        kind="access",
        secret=text,
        owner=owner,
        scopes=list(scopes),
        ttl_seconds=ttl.total_seconds(),
    )
    events.record(
        session, "token.created", actor, token=row.id, kind="access", owner=owner, scopes=row.scopes
    )
    _note(session, "token.created", row, actor, address)
    return Issued(text, row)


def revoke(session: Any, token_id: str, actor: str, address: str | None = None) -> TokenRow | None:
    """Make a token useless from now on; None if there is no such token."""
    row = tokens.revoke(session, token_id)
    if row is not None:
        events.record(session, "token.revoked", actor, token=token_id, kind=row.kind, owner=row.owner)
        _note(session, "token.revoked", row, actor, address)
    return row


def _note(session: Any, event: str, row: TokenRow, actor: str, address: str | None, **more: Any) -> None:
    scopes = row.scopes
    audit.record(
        session,
        event,
        "changed",
        actor,
        address=address,
        rule="scope tokens:create" if event == "token.created" else "scope tokens:revoke",
        region=scopes.get("region") if isinstance(scopes, dict) else None,
        token=row.id,
        kind=row.kind,
        owner=row.owner,
        scopes=scopes,
        expires_at=row.expires_at.isoformat(),
        **more,
    )


def _check_lifetime(ttl: timedelta) -> None:
    if ttl <= timedelta(0):
        raise Refused(400, RefusalReason.MALFORMED, f"the TTL is {ttl}; it must be longer than nothing")
