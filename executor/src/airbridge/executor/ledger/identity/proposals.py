"""Proposals of operators: actions that take effect when a second operator approves them."""

from __future__ import annotations

import secrets
from datetime import timedelta
from typing import Any, Literal

from sqlalchemy import func, select

from airbridge.executor.ledger import clock
from airbridge.executor.ledger._locking import for_update
from airbridge.executor.ledger.identity.models import ProposalRow

Status = Literal["proposed", "approved", "refused", "expired"]


def create(
    session: Any,
    *,
    action: str,
    payload: dict[str, Any],
    owner: str,
    token_id: str,
    address: str | None,
    ttl_seconds: float,
) -> ProposalRow:
    """Keep a new proposal."""
    now = clock.now(session)
    row = ProposalRow(
        id=secrets.token_hex(8),
        action=action,
        payload=payload,
        status="proposed",
        owner=owner,
        token_id=token_id,
        address=address,
        created_at=now,
        expires_at=now + timedelta(seconds=ttl_seconds),
    )
    session.add(row)
    session.flush()
    return row


def get(session: Any, proposal_id: str) -> ProposalRow | None:
    """Return one proposal."""
    row: ProposalRow | None = session.get(ProposalRow, proposal_id)
    return row


def lock(session: Any, proposal_id: str) -> ProposalRow | None:
    """Return one proposal; until the transaction ends no other one can decide it."""
    query = for_update(session, select(ProposalRow).where(ProposalRow.id == proposal_id))
    row: ProposalRow | None = session.scalars(query).one_or_none()
    return row


def list_all(session: Any, status: Status | None, limit: int) -> list[ProposalRow]:
    """Return proposals, newest first."""
    query = select(ProposalRow).order_by(ProposalRow.created_at.desc(), ProposalRow.id).limit(limit)
    return list(session.scalars(query if status is None else query.where(ProposalRow.status == status)))


def person(owner: str) -> str:
    """Return the person of an owner: owners below one (``ann/ci``), and in upper or lower case, are the same."""
    return owner.partition("/")[0].casefold()


def count_open(session: Any, owner: str) -> int:
    """Return how many open proposals an owner's person has."""
    query = select(ProposalRow.owner, func.count(ProposalRow.id)).where(ProposalRow.status == "proposed")
    # Compared here: databases fold the case of ASCII letters alone, or of those of their locale.
    counts = session.execute(query.group_by(ProposalRow.owner))
    return sum(count for of, count in counts if person(of) == person(owner))


def decide(session: Any, row: ProposalRow, status: Status, actor: str, token_id: str) -> None:
    """Approve or refuse a locked proposal."""
    row.status = status
    row.decided_at = clock.now(session)
    row.decided_by = actor
    row.decided_token_id = token_id
    session.flush()


def expire(session: Any) -> list[ProposalRow]:
    """Set the status of open proposals whose time is over, and return them. Those that are being decided now are left out."""
    query = select(ProposalRow).where(
        ProposalRow.status == "proposed", ProposalRow.expires_at <= clock.now(session)
    )
    rows = list(session.scalars(for_update(session, query, skip_locked=True)))
    for row in rows:
        row.status = "expired"
    session.flush()
    return rows


def last_approved(session: Any, action: str) -> ProposalRow | None:
    """Return the proposal of this action that was approved last."""
    query = (
        select(ProposalRow)
        .where(ProposalRow.action == action, ProposalRow.status == "approved")
        .order_by(ProposalRow.decided_at.desc(), ProposalRow.id)
        .limit(1)
    )
    row: ProposalRow | None = session.scalars(query).one_or_none()
    return row
