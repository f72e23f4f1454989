"""Revocation API for operators. A revocation takes effect at the next request, on every gateway and connection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from airbridge.control_plane.gateway.api import documents, operator_endpoint
from airbridge.control_plane.gateway.api.actions import RevocationTarget, Revoke
from airbridge.control_plane.gateway.api.body_reader import BodyLimit, BodyReader
from airbridge.control_plane.gateway.approvals import Approvals
from airbridge.control_plane.gateway.auth.authentication import Operator
from airbridge.control_plane.gateway.net.thread_pools import ThreadPool
from airbridge.executor.ledger.identity import revocations

SMALL_BODY = BodyLimit(16_384)


class NewRevocation(Revoke):
    """Request to revoke."""

    #: Where it needs two persons: do it at once, by scope ``break_glass:use``, with an alarm.
    break_glass: bool = False


@dataclass(frozen=True, slots=True)
class RevocationsApi:
    """Endpoint ``revocations``."""

    threads: ThreadPool
    bodies: BodyReader
    approvals: Approvals

    async def listing(self, request: Request) -> Response:
        """Return all revocations, newest first."""

        def read(session: Any, operator: Operator) -> Any:
            operator.require("revocations:read")
            return {"revocations": [documents.revocation(row) for row in revocations.list_all(session)]}

        return await operator_endpoint.answer(self.threads, request, read)

    async def add(self, request: Request) -> Response:
        """Add a revocation."""
        requested = await self.bodies.parse(request, NewRevocation, SMALL_BODY)
        asked = requested.model_dump(exclude={"break_glass"})

        def revoke(session: Any, operator: Operator) -> Any:
            return self.approvals.perform(
                session, operator, "revocation.add", asked, break_glass=requested.break_glass
            )

        return await operator_endpoint.answer(self.threads, request, revoke)

    async def remove(self, request: Request) -> Response:
        """Remove a revocation."""
        asked = operator_endpoint.query(request, RevocationTarget).model_dump()

        def remove_revocation(session: Any, operator: Operator) -> Any:
            return self.approvals.perform(session, operator, "revocation.remove", asked)

        return await operator_endpoint.answer(self.threads, request, remove_revocation)
