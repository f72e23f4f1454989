"""Join tokens and operators' access tokens. The ledger keeps hashes, never a secret."""

from __future__ import annotations

import hashlib
import secrets
from datetime import timedelta
from typing import Any, Literal

from sqlalchemy import or_, select, update

from airbridge.executor.ledger import clock
from airbridge.executor.ledger.models import TokenRow

Kind = Literal["join", "access"]


def hash_of(secret: str) -> str:
    """Return what the ledger keeps of a secret. Secrets are random and long, so a plain SHA-256 is enough."""
    return hashlib.sha256(secret.encode()).hexdigest()


def create(
    session: Any,
    *,
    kind: Kind,
    secret: str,
    owner: str,
    scopes: dict[str, str] | list[str],
    ttl_seconds: float,
    uses: int | None = None,
) -> TokenRow:
    """Keep a new token. `uses` counts down at each `redeem_join`; None means as often as wanted until it expires."""
    now = clock.now(session)
    row = TokenRow(
        id=secrets.token_hex(8),
        kind=kind,
        hash=hash_of(secret),
        owner=owner,
        scopes=scopes,
        uses_left=uses,
        created_at=now,
        expires_at=now + timedelta(seconds=ttl_seconds),
    )
    session.add(row)
    session.flush()
    return row


def redeem_join(session: Any, secret: str) -> TokenRow | None:
    """Use a join token once; None if there is no such token, or it is expired, revoked or used up."""
    used = session.execute(
        update(TokenRow)
        .where(*_valid(session, "join", secret), or_(TokenRow.uses_left.is_(None), TokenRow.uses_left > 0))
        .values(uses_left=TokenRow.uses_left - 1, last_used_at=clock.now(session))
        .execution_options(synchronize_session=False)
    )
    return _by_hash(session, secret) if used.rowcount else None


def find_access(session: Any, secret: str) -> TokenRow | None:
    """Return an access token that is good now and note its use; None otherwise."""
    used = session.execute(
        update(TokenRow)
        .where(*_valid(session, "access", secret))
        .values(last_used_at=clock.now(session))
        .execution_options(synchronize_session=False)
    )
    return _by_hash(session, secret) if used.rowcount else None


def list_all(session: Any, kind: Kind | None = None) -> list[TokenRow]:
    """Return tokens, newest first."""
    query = select(TokenRow).order_by(TokenRow.created_at.desc(), TokenRow.id)
    return list(session.scalars(query if kind is None else query.where(TokenRow.kind == kind)))


def revoke(session: Any, token_id: str) -> TokenRow | None:
    """Make a token useless from now on; None if there is no such token."""
    row: TokenRow | None = session.get(TokenRow, token_id)
    if row is None:
        return None
    if row.revoked_at is None:
        row.revoked_at = clock.now(session)
        session.flush()
    return row


def _valid(session: Any, kind: Kind, secret: str) -> tuple[Any, ...]:
    return (
        TokenRow.hash == hash_of(secret),
        TokenRow.kind == kind,
        TokenRow.revoked_at.is_(None),
        TokenRow.expires_at > clock.now(session),
    )


def _by_hash(session: Any, secret: str) -> TokenRow:
    query = select(TokenRow).where(TokenRow.hash == hash_of(secret))
    row: TokenRow = session.scalars(query.execution_options(populate_existing=True)).one()
    return row
