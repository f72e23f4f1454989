"""JSON documents of rows, as the operator API answers with them."""

from __future__ import annotations

from typing import Any

from airbridge.executor.ledger.identity.models import ProposalRow, RevocationRow, TokenRow
from airbridge.executor.ledger.models import WorkerRow


def worker(row: WorkerRow) -> dict[str, Any]:
    """Return a worker."""
    return {
        "id": row.id,
        "region": row.region,
        "pool": row.pool,
        "state": row.state,
        "wanted": row.wanted,
        "comment": row.comment,
        "versions": row.versions,
        "slots_total": row.slots_total,
        "slots_used": row.slots_used,
        "journal_pending": row.journal_pending,
        "clock_skew_seconds": row.clock_skew_seconds,
        "certificate_expires_at": time(row.certificate_expires_at),
        "enrolled_at": time(row.enrolled_at),
        "last_heartbeat_at": time(row.last_heartbeat_at),
        "trust_version": row.trust_version,
    }


def token(row: TokenRow) -> dict[str, Any]:
    """Return a token, without its secret, which is not stored."""
    return {
        "id": row.id,
        "kind": row.kind,
        "owner": row.owner,
        "parent": row.parent_id,
        "scopes": row.scopes,
        "uses_left": row.uses_left,
        "created_at": time(row.created_at),
        "expires_at": time(row.expires_at),
        "last_used_at": time(row.last_used_at),
        "revoked_at": time(row.revoked_at),
    }


def revocation(row: RevocationRow) -> dict[str, Any]:
    """Return a revocation."""
    return {
        "kind": row.kind,
        "value": row.value,
        "reason": row.reason,
        "actor": row.actor,
        "revoked_at": row.revoked_at.isoformat(),
    }


def proposal(row: ProposalRow) -> dict[str, Any]:
    """Return a proposal with the whole request, which the second operator reviews."""
    return {
        "id": row.id,
        "action": row.action,
        "payload": row.payload,
        "status": row.status,
        "owner": row.owner,
        "token": row.token_id,
        "created_at": time(row.created_at),
        "expires_at": time(row.expires_at),
        "decided_at": time(row.decided_at),
        "decided_by": row.decided_by,
        "done_at": time(row.done_at),
    }


def time(value: Any) -> str | None:
    """Return a time in ISO 8601."""
    return value.isoformat() if value is not None else None
