"""Endpoint ``bound-keys`` of the operator API."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from airbridge.control_plane.exceptions import Refused
from airbridge.control_plane.gateway.api import operator_endpoint
from airbridge.control_plane.gateway.api.body_reader import BodyLimit, BodyReader
from airbridge.control_plane.gateway.api.handling import Handler
from airbridge.control_plane.gateway.approvals import Approvals
from airbridge.control_plane.gateway.auth.authentication import Operator
from airbridge.control_plane.gateway.hosts import binding
from airbridge.control_plane.gateway.hosts.binding import NewBoundKey
from airbridge.control_plane.gateway.net.thread_pools import ThreadPool
from airbridge.core.catalogue import Catalogue
from airbridge.core.protocol import RefusalReason

SMALL_BODY = BodyLimit(16_384)


@dataclass(frozen=True, slots=True)
class BoundKeysApi:
    """Keys of hosts: list, bind and remove."""

    threads: ThreadPool
    bodies: BodyReader
    approvals: Approvals
    catalogue: Catalogue

    def routes(self, route: Callable[[str, str, Handler], Route]) -> list[Route]:
        """Return the routes, made by `route` of path, method and handler."""
        return [
            route("bound-keys", "GET", self.listing),
            route("bound-keys", "POST", self.bind),
            route("bound-keys/{worker}", "DELETE", self.unbind),
        ]

    async def listing(self, request: Request) -> Response:
        """Return all bound keys."""
        return await operator_endpoint.answer(self.threads, request, binding.listing)

    async def bind(self, request: Request) -> Response:
        """Bind a key."""
        asked = await self.bodies.parse(request, NewBoundKey, SMALL_BODY)

        def bind(session: Any, operator: Operator) -> Any:
            operator.require("tokens:create", "join", region=asked.region, pool=asked.pool)
            if fault := self.catalogue.lacks(asked.region, asked.pool):
                raise Refused(400, RefusalReason.MALFORMED, f"no host could join with this key: {fault}")
            return self.approvals.perform(session, operator, "bound_key.bind", asked.model_dump())

        return await operator_endpoint.answer(self.threads, request, bind)

    async def unbind(self, request: Request) -> Response:
        """Remove a key."""
        worker = request.path_params["worker"]
        return await operator_endpoint.answer(
            self.threads, request, lambda session, operator: binding.unbind(session, operator, worker)
        )
