"""Join tokens and operators' access tokens: random secrets, shown once, stored as a hash, revocable.

A join token reads ``abj_...`` and lets a worker enrol in one region and pool; an access token reads
``abo_...`` and carries scopes for the operators' API. Both have an owner and an expiry.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from airbridge.control_plane.exceptions import Refused
from airbridge.control_plane.identity.scopes import Scopes
from airbridge.core.protocol import RefusalReason
from airbridge.executor.ledger import audit, clock, events
from airbridge.executor.ledger.identity import tokens
from airbridge.executor.ledger.identity.models import TokenRow

JOIN_PREFIX: Final = "abj_"
ACCESS_PREFIX: Final = "abo_"
SECRET_BYTES: Final = 32
MAX_OWNER: Final = 250
CREATED_BY_SCOPE: Final = "scope tokens:create"


#: Lifetime of a token for which none was requested.
DEFAULT_TTL: Final = timedelta(hours=1)
# Part of a requested lifetime that has to be granted: one's own token, of which some time has passed, may make one of its length.
_GRANTED: Final = 0.9


@dataclass(frozen=True, slots=True)
class Parent:
    """Access token that another is made under. A child lives within its parent's scope, owner and lifetime."""

    id: str
    owner: str
    expires_at: datetime

    def owner_of(self, asked: str | None) -> str:
        """Return the owner of a child: the parent's or one below it (``ann/ci``), whatever the request names."""
        if not asked or asked == self.owner or asked.startswith(f"{self.owner}/"):
            return asked or self.owner
        return f"{self.owner}/{asked}"


@dataclass(frozen=True, slots=True)
class Issued:
    """New token. `text` is the secret: it is shown once and not stored."""

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
    ttl: timedelta | None,
    uses: int | None = 1,
    worker: str | None = None,
    actor: str | None = None,
    address: str | None = None,
    parent: Parent | None = None,
) -> Issued:
    """Make a join token for one region and pool, or one worker there. `uses` of None means any number until it expires.

    Without `ttl` it is good for `DEFAULT_TTL`. It ends with its parent at the latest: see `check_within`.
    """
    _check_lifetime(ttl)
    if uses is not None and uses < 1:
        raise Refused(400, RefusalReason.MALFORMED, f"uses is {uses}; it must be 1 or more, or unset")
    text = JOIN_PREFIX + secrets.token_urlsafe(SECRET_BYTES)
    row = tokens.create(
        session,
        kind="join",
        secret=text,
        owner=owner,
        scopes={"region": region, "pool": pool, **({"worker": worker} if worker else {})},
        ttl_seconds=_within(session, ttl, parent),
        uses=uses,
        parent_id=parent.id if parent else None,
    )
    events.record(session, "token.created", owner, token=row.id, kind="join", scopes=row.scopes, uses=uses)
    _record(session, "token.created", row, actor or owner, address, rule=CREATED_BY_SCOPE, uses=uses)
    return Issued(text, row)


def create_access(
    session: Any,
    *,
    scopes: Sequence[str],
    owner: str,
    actor: str,
    ttl: timedelta | None,
    address: str | None = None,
    parent: Parent | None = None,
    token_id: str | None = None,
    rule: str = CREATED_BY_SCOPE,
) -> Issued:
    """Make an operators' access token. Raises `InvalidScope` for a scope that cannot be read, `Refused` for an owner too long.
    Its lifetime is as `create_join` has it.

    The caller checks that the scopes are within the parent's: it has parsed them.
    """
    owner = parent.owner_of(owner) if parent else owner
    if len(owner) > MAX_OWNER:
        raise Refused(
            400, RefusalReason.MALFORMED, f"owner {owner[:64]!r}... has more than {MAX_OWNER} characters"
        )
    _check_lifetime(ttl)
    Scopes.parse(scopes)
    text = ACCESS_PREFIX + secrets.token_urlsafe(SECRET_BYTES)
    row = tokens.create(
        session,
        kind="access",
        secret=text,
        owner=owner,
        scopes=list(scopes),
        ttl_seconds=_within(session, ttl, parent),
        parent_id=parent.id if parent else None,
        token_id=token_id,
    )
    events.record(
        session, "token.created", actor, token=row.id, kind="access", owner=owner, scopes=row.scopes
    )
    _record(session, "token.created", row, actor, address, rule=rule)
    return Issued(text, row)


def revoke(
    session: Any, token_id: str, actor: str, address: str | None = None, by: str | None = None
) -> TokenRow | None:
    """Revoke a token and all that were made under it; None if there is no such token. `by` is the revoker's own token."""
    for row in tokens.revoke(session, token_id):
        events.record(session, "token.revoked", actor, token=row.id, kind=row.kind, owner=row.owner)
        _record(session, "token.revoked", row, actor, address, rule="scope tokens:revoke", by_token=by)
    return tokens.get(session, token_id)


def _record(
    session: Any, event: str, row: TokenRow, actor: str, address: str | None, *, rule: str, **more: Any
) -> None:
    scopes = row.scopes
    audit.record(
        session,
        event,
        "changed",
        actor,
        address=address,
        rule=rule,
        region=scopes.get("region") if isinstance(scopes, dict) else None,
        token=row.id,
        kind=row.kind,
        owner=row.owner,
        scopes=scopes,
        parent=row.parent_id,
        expires_at=row.expires_at.isoformat(),
        **more,
    )


def check_within(session: Any, ttl: timedelta | None, parent: Parent) -> None:
    """Raise `Refused` for a lifetime that would end much later than the parent's, with which the token ends."""
    left = parent.expires_at - clock.now(session)
    if ttl is not None and left < _GRANTED * ttl:
        raise Refused(
            400,
            RefusalReason.MALFORMED,
            f"a token ends with the one that it is made with, which ends at {parent.expires_at.isoformat(timespec='seconds')}: "
            f"a TTL of {ttl} is too long. Request less, or make it with a token that lives longer ('airbridge token root')",
        )


def _within(session: Any, ttl: timedelta | None, parent: Parent | None) -> float:
    """Return a lifetime in seconds that ends with the parent's at the latest."""
    wanted = ttl or DEFAULT_TTL
    if parent is None:
        return wanted.total_seconds()
    left = parent.expires_at - clock.now(session)
    return max(0.0, min(wanted, left).total_seconds())


def _check_lifetime(ttl: timedelta | None) -> None:
    if ttl is not None and ttl <= timedelta(0):
        raise Refused(400, RefusalReason.MALFORMED, f"the TTL is {ttl}; it must be positive")
