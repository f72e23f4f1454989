"""Where a worker stands with the control plane: may it claim, and if not, why."""

from __future__ import annotations

from typing import Any

from airbridge.control_plane.gateway.authentication import Caller, check_revocation
from airbridge.control_plane.parity import Parity
from airbridge.executor.ledger import workers
from airbridge.executor.protocol import RefusalReason, Versions


def standing(session: Any, caller: Caller, parity: Parity) -> tuple[RefusalReason, str] | None:
    """Return why this worker may not claim now, or None if it may. Raises `Refused` if it is revoked."""
    check_revocation(session, caller)
    row = workers.get(session, caller.name.worker)
    if row is None:
        return RefusalReason.FORBIDDEN, "this worker is not enrolled"
    if row.wanted != "active":
        return RefusalReason.DRAINING, row.comment or "the control plane asked this worker to drain"
    judgement = parity.judge(Versions.model_validate(row.versions))
    if not judgement.may_claim:
        return RefusalReason.PARITY, judgement.detail
    return None
