"""Join tokens and operators' access tokens. The ledger keeps hashes, never a secret."""

from __future__ import annotations

import hashlib
import secrets
from datetime import timedelta
from typing import Any, Literal

from sqlalchemy import or_, select, update

from airbridge.executor.ledger import clock
from airbridge.executor.ledger._locking import for_update
from airbridge.executor.ledger.identity.models import TokenRow

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
    parent_id: str | None = None,
    token_id: str | None = None,
) -> TokenRow:
    """Keep a new token. `uses` counts down at each `redeem_join`; None means as often as wanted until it expires.

    `parent_id` is the access token that it is made under: its revocation revokes this one. `token_id` is
    its id in place of a random one.
    """
    now = clock.now(session)
    row = TokenRow(
        id=token_id or secrets.token_hex(8),
        kind=kind,
        hash=hash_of(secret),
        owner=owner,
        scopes=scopes,
        uses_left=uses,
        created_at=now,
        expires_at=now + timedelta(seconds=ttl_seconds),
        parent_id=parent_id,
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


def is_access(session: Any, secret: str) -> bool:
    """Return whether an access token is good now, without noting its use."""
    found = session.execute(select(TokenRow.id).where(*_valid(session, "access", secret)))
    return found.first() is not None


def ended_access(session: Any, secret: str) -> str | None:
    """Return the id of an access token that is not good any more, for the audit of its use; None if there never was one."""
    query = select(TokenRow.id).where(TokenRow.hash == hash_of(secret), TokenRow.kind == "access")
    found: str | None = session.scalars(query).one_or_none()
    return found


def list_all(session: Any, kind: Kind | None = None) -> list[TokenRow]:
    """Return tokens, newest first."""
    query = select(TokenRow).order_by(TokenRow.created_at.desc(), TokenRow.id)
    return list(session.scalars(query if kind is None else query.where(TokenRow.kind == kind)))


def revoke(session: Any, token_id: str) -> list[TokenRow]:
    """Revoke a token and every token that was made under it; return those that were good until now, it first.

    A token under way of being made locks its parent (see `find_access`), so none is left out. Returns [] if there is no such
    token, or it was revoked before.
    """
    now = clock.now(session)
    revoked: list[TokenRow] = []
    # Level by level: a chain of tokens may be longer than Python's stack.
    wanted = [token_id]
    while wanted:
        query = select(TokenRow).where(TokenRow.id.in_(wanted)).order_by(TokenRow.id)
        rows = list(session.scalars(for_update(session, query)))
        good = [row for row in rows if row.revoked_at is None]
        for row in good:
            row.revoked_at = now
        session.flush()
        revoked += good
        children = select(TokenRow.id).where(TokenRow.parent_id.in_([row.id for row in rows]))
        wanted = list(session.scalars(children))
    return revoked


def get(session: Any, token_id: str) -> TokenRow | None:
    """Return one token."""
    row: TokenRow | None = session.get(TokenRow, token_id)
    return row


def family(session: Any, token_id: str) -> list[str]:
    """Return the ids of a token and of every token that was made under it, at any depth; [] if there is no such token."""
    found = select(TokenRow.id).where(TokenRow.id == token_id).cte("family", recursive=True)
    # Not UNION ALL: a cycle, which only a hand in the database can make, must end.
    found = found.union(select(TokenRow.id).where(TokenRow.parent_id == found.c.id))
    return list(session.scalars(select(found.c.id)))


def root_of(session: Any, token_id: str) -> str:
    """Return the id of the token without a parent that a token descends from; its own id if it has none."""
    seen = {token_id}
    while True:
        parent = session.execute(select(TokenRow.parent_id).where(TokenRow.id == token_id)).scalar()
        if parent is None or parent in seen:
            return token_id
        token_id = parent
        seen.add(parent)


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
