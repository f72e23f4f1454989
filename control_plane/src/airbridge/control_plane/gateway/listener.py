"""What both listeners do around a request: admit it, answer it, turn every error into one shape, write refusals down."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from airbridge.control_plane.exceptions import Refused, Unavailable
from airbridge.control_plane.gateway import requests
from airbridge.control_plane.gateway.audit import ANONYMOUS, Denial, DenialLog
from airbridge.control_plane.gateway.authentication import ACTOR, PEER, Peer
from airbridge.control_plane.gateway.database import transient, unfit
from airbridge.control_plane.gateway.lanes import Lane
from airbridge.executor.ledger.events import trace_id
from airbridge.executor.protocol import RefusalReason

log = structlog.get_logger()

REQUEST_SECONDS: Final = 60.0

Handler = Callable[[Request], Awaitable[Response]]


def application(routes: Sequence[BaseRoute]) -> Starlette:
    """Return an ASGI application whose own errors (no such path, wrong method) have the shape of all others."""

    async def answer(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        detail = f"there is no {request.method} {request.url.path[:200]}"
        return requests.problem(Refused(status, RefusalReason.UNKNOWN, detail))

    return Starlette(routes=routes, exception_handlers={HTTPException: answer})


class Guard:
    """Wraps handlers, so that each of them holds nothing but its own work."""

    def __init__(self, denials: DenialLog) -> None:
        self._denials = denials

    def __call__(self, handler: Handler, lane: Lane, seconds: float = REQUEST_SECONDS) -> Handler:
        """Return `handler` as an endpoint that cannot raise, and answers within `seconds`."""

        async def endpoint(request: Request) -> Response:
            try:
                async with lane.admit(), asyncio.timeout(seconds):
                    return await handler(request)
            except Refused as error:
                await self._note(request, error)
                return requests.problem(error)
            except Unavailable as error:
                return requests.busy(error)
            except TimeoutError:
                return requests.busy(Unavailable(f"no answer within {seconds:g} s"))
            except Exception as error:
                if unfit(error):
                    refused = Refused(
                        400, RefusalReason.MALFORMED, "a number or a text is not one that can be kept"
                    )
                    await self._note(request, refused)
                    return requests.problem(refused)
                if transient(error):
                    log.warning("request.unavailable", path=request.url.path, exc_info=error)
                    return requests.busy(Unavailable("the database is away or busy"))
                log.exception("request.broken", path=request.url.path)
                return requests.broken()

        return endpoint

    async def _note(self, request: Request, error: Refused) -> None:
        peer: Peer = request.scope[PEER]
        actor = request.scope.get(ACTOR) or (peer.certificate.uri if peer.certificate else ANONYMOUS)
        what = f"{request.method} {request.url.path}"
        log.warning(
            "request.refused",
            actor=actor,
            address=peer.address,
            request=what[:200],
            status=error.status,
            reason=str(error.reason),
            detail=error.detail,
        )
        detail = {
            "request": what[:200],
            "status": error.status,
            "reason": str(error.reason),
            "why": error.detail,
        }
        trace = trace_id({"traceparent": request.headers.get("traceparent", "")})
        await self._denials.write(Denial("request.refused", actor, peer.address, error.rule, trace, detail))
