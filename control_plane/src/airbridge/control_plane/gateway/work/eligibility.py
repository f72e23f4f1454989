"""Eligibility of a worker to claim work."""

from __future__ import annotations

from typing import Any

from airbridge.control_plane.gateway.auth.authentication import Caller, check_revocation
from airbridge.control_plane.parity import Parity
from airbridge.core.protocol import RefusalReason


def standing(session: Any, caller: Caller, parity: Parity) -> tuple[RefusalReason, str] | None:
    """Return the reason why the worker may not claim now, or None if it may. Raises `Refused` if it is revoked."""
    row = check_revocation(session, caller)
    if row is None:
        return RefusalReason.FORBIDDEN, "this worker is not enrolled"
    if row.wanted != "active":
        return RefusalReason.DRAINING, row.comment or "the control plane asked this worker to drain"
    judgement = parity.judge_json(row.versions)
    if not judgement.may_claim:
        return RefusalReason.PARITY, judgement.detail
    return None
