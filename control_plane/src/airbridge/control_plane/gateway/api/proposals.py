"""Proposal API: what waits for a second operator, and its approval. See `airbridge.control_plane.gateway.approvals`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from airbridge.control_plane.exceptions import Refused
from airbridge.control_plane.gateway.api import documents, operator_endpoint
from airbridge.control_plane.gateway.api.actions import NewPolicy
from airbridge.control_plane.gateway.api.body_reader import BodyLimit, BodyReader
from airbridge.control_plane.gateway.api.handling import Handler
from airbridge.control_plane.gateway.approvals import Approvals
from airbridge.control_plane.gateway.auth.authentication import Operator
from airbridge.control_plane.gateway.net.thread_pools import ThreadPool
from airbridge.control_plane.policy.approved import CHANGE_POLICY
from airbridge.control_plane.policy.rules import RulePolicy
from airbridge.core.protocol import RefusalReason
from airbridge.executor.ledger.identity import proposals
from airbridge.executor.setting_values import FourEyes

# A policy's text in JSON: each character may be escaped.
POLICY_BODY: Final = BodyLimit(1024 * 1024, values=16)


class Listing(operator_endpoint.Body):
    """Filter of proposals."""

    status: Literal["proposed", "approved", "refused", "expired"] | None = None
    limit: int = Field(default=100, ge=1, le=1_000)


@dataclass(frozen=True, slots=True)
class ProposalsApi:
    """Endpoints ``proposals`` and ``policy`` (PUT)."""

    approvals: Approvals
    threads: ThreadPool
    bodies: BodyReader

    async def listing(self, request: Request) -> Response:
        """Return proposals, newest first."""
        wanted = operator_endpoint.query(request, Listing)

        def read(session: Any, operator: Operator) -> Any:
            operator.require("approvals:read")
            rows = proposals.list_all(session, wanted.status, wanted.limit)
            return {"proposals": [_without_text(documents.proposal(row)) for row in rows]}

        return await operator_endpoint.answer(self.threads, request, read)

    async def show(self, request: Request) -> Response:
        """Return one proposal with its whole content."""
        wanted = request.path_params["proposal"]

        def read(session: Any, operator: Operator) -> Any:
            operator.require("approvals:read")
            row = proposals.get(session, wanted)
            if row is None:
                raise operator_endpoint.missing(f"there is no proposal {wanted[:64]!r}")
            return documents.proposal(row)

        return await operator_endpoint.answer(self.threads, request, read)

    def decision(self, name: Literal["approve", "refuse", "collect"]) -> Handler:
        """Return the endpoint that approves, refuses or collects a proposal."""
        decide = getattr(self.approvals, name)

        async def handle(request: Request) -> Response:
            wanted = request.path_params["proposal"]
            return await operator_endpoint.answer(
                self.threads, request, lambda session, operator: decide(session, operator, wanted)
            )

        return handle

    async def change_policy(self, request: Request) -> Response:
        """Propose a policy."""
        body = await self.bodies.parse(request, NewPolicy, POLICY_BODY)

        def propose(session: Any, operator: Operator) -> Any:
            operator.require("policy:write")
            if FourEyes.POLICY not in self.approvals.four_eyes:
                raise Refused(
                    409,
                    RefusalReason.FORBIDDEN,
                    "the policy is the file [airbridge] policy_file, since four_eyes does not have 'policy'; change the file",
                )
            last = proposals.last_approved(session, CHANGE_POLICY)
            before = RulePolicy.parse(last.payload["text"].encode(), "").digest if last is not None else None
            asked = {"text": body.text, "replaces": before}
            return self.approvals.perform(session, operator, CHANGE_POLICY, asked)

        return await operator_endpoint.answer(self.threads, request, propose)


def _without_text(document: dict[str, Any]) -> dict[str, Any]:
    payload = dict(document["payload"])
    if isinstance(payload.get("text"), str):
        payload["text"] = f"{len(payload['text'])} characters"
    return {**document, "payload": payload}
