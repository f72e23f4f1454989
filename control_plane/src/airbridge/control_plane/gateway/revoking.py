"""Revocations for operators: what is refused from the next request on, wherever its connection stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from airbridge.control_plane.gateway import operating, requests
from airbridge.control_plane.gateway.authentication import Operator
from airbridge.control_plane.gateway.lanes import Lane
from airbridge.executor.ledger import audit, revocations
from airbridge.executor.ledger.models import RevocationRow

SMALL_BODY = 16_384
Kind = Literal["worker", "certificate", "pool", "issuer"]


class What(operating.Body):
    """What to revoke. A pool reads ``region/pool``; a certificate is its SHA-256, an issuer its key id, in hex."""

    kind: Kind
    value: str = Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9./_-]+$")


class Revoke(What):
    """What to revoke, and why."""

    reason: str = Field(min_length=1, max_length=1000)


@dataclass(frozen=True, slots=True)
class Revoking:
    """Endpoint ``revocations``."""

    lane: Lane

    async def listing(self, request: Request) -> Response:
        """Return everything that is revoked, newest first."""

        def read(session: Any, operator: Operator) -> Any:
            operator.require("revocations:read")
            return {"revocations": [_shown(row) for row in revocations.list_all(session)]}

        return await operating.answer(self.lane, request, read)

    async def add(self, request: Request) -> Response:
        """Revoke something."""
        asked = requests.parse(await requests.read_body(request, SMALL_BODY), Revoke)

        def revoke(session: Any, operator: Operator) -> Any:
            operator.require("revocations:write", f"{asked.kind}/{asked.value}")
            row = revocations.add(session, asked.kind, asked.value, asked.reason, operator.actor)
            _note(session, operator, "revocation.added", asked, asked.reason)
            return _shown(row)

        return await operating.answer(self.lane, request, revoke)

    async def remove(self, request: Request) -> Response:
        """Take a revocation back."""
        asked = operating.query(request, What)

        def take_back(session: Any, operator: Operator) -> Any:
            operator.require("revocations:write", f"{asked.kind}/{asked.value}")
            if not revocations.remove(session, asked.kind, asked.value):
                raise operating.missing(f"{asked.kind} {asked.value!r} is not revoked")
            _note(session, operator, "revocation.removed", asked, None)
            return {"kind": asked.kind, "value": asked.value}

        return await operating.answer(self.lane, request, take_back)


def _note(session: Any, operator: Operator, event: str, what: What, reason: str | None) -> None:
    audit.record(
        session,
        event,
        "changed",
        operator.actor,
        address=operator.address,
        rule="scope revocations:write",
        region=what.value.partition("/")[0] if what.kind == "pool" else None,
        worker_id=what.value[:63] if what.kind == "worker" else None,
        token=operator.token_id,
        kind=what.kind,
        value=what.value,
        reason=reason,
    )


def _shown(row: RevocationRow) -> dict[str, Any]:
    return {
        "kind": row.kind,
        "value": row.value,
        "reason": row.reason,
        "actor": row.actor,
        "revoked_at": row.revoked_at.isoformat(),
    }
