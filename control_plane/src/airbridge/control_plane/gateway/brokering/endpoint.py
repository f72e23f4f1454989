"""Endpoint ``credentials`` of the edge API."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from airbridge.control_plane.gateway.api import requests
from airbridge.control_plane.gateway.api.body_reader import BodyLimit, BodyReader
from airbridge.control_plane.gateway.api.handling import Guard
from airbridge.control_plane.gateway.auth.authentication import Caller
from airbridge.control_plane.gateway.brokering.broker import Broker
from airbridge.control_plane.gateway.net.thread_pools import ThreadPool
from airbridge.core.wire.brokering import AwsCredentialsRequest

PATH: Final = "credentials"
BODY: Final = BodyLimit(1024, values=16)


@dataclass(frozen=True, slots=True)
class BrokerApi:
    """The endpoint, over its components."""

    broker: Broker
    bodies: BodyReader
    #: Calls of STS, and what is read and written before and after them.
    threads: ThreadPool

    def route(self, root: str, guard: Guard, caller: Callable[[Request], Caller]) -> Route:
        """Return the route under `root`. `caller` authenticates a request."""

        async def credentials(request: Request) -> Response:
            who = caller(request)
            wanted = await self.bodies.parse(request, AwsCredentialsRequest, BODY)
            # Before the threads: most pools have none.
            self.broker.require(who.name, for_tasks=wanted.for_tasks)
            give = partial(self.broker.credentials, for_tasks=wanted.for_tasks)
            return requests.answer(await self.threads.run(give, who))

        return Route(f"{root}/{PATH}", guard(credentials), methods=["POST"])
