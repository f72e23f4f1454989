"""Request handling of both listeners: timeout, one error format, and audit of denials."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import structlog
from sqlalchemy import exc as sql
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from airbridge.control_plane.exceptions import IdentityForked, Refused, Unavailable
from airbridge.control_plane.gateway.api import requests
from airbridge.control_plane.gateway.api.body_reader import DEADLINE, Deadline
from airbridge.control_plane.gateway.audit.denials import ANONYMOUS, Denial, DenialLog
from airbridge.control_plane.gateway.auth.authentication import ACTOR, PEER, TOKEN_ID, Peer
from airbridge.control_plane.gateway.database import is_unstorable, transient, unit
from airbridge.core.protocol import RefusalReason
from airbridge.executor.ledger.events import trace_id

log = structlog.get_logger()

REQUEST_SECONDS: Final = 60.0

Handler = Callable[[Request], Awaitable[Response]]


def application(routes: Sequence[BaseRoute]) -> Starlette:
    """Return an ASGI application whose routing errors (no such path, wrong method) use the common error format."""

    async def answer(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        detail = f"there is no {request.method} {request.url.path[:200]}"
        return requests.problem(Refused(status, RefusalReason.UNKNOWN, detail))

    return Starlette(routes=routes, exception_handlers={HTTPException: answer})


class Guard:
    """Wraps handlers with timeout and error handling. Thread pools admit a request once its body was read."""

    def __init__(self, denials: DenialLog) -> None:
        self._denials = denials

    def __call__(self, handler: Handler, seconds: float | None = None) -> Handler:
        """Return `handler` as an endpoint that never raises and answers within `seconds` (`REQUEST_SECONDS`), from the end of a body that may be slow."""

        async def endpoint(request: Request) -> Response:
            most = REQUEST_SECONDS if seconds is None else seconds
            try:
                async with asyncio.timeout(most) as deadline:
                    request.scope[DEADLINE] = Deadline(deadline, most)
                    return await handler(request)
            except Refused as error:
                if isinstance(error, IdentityForked):
                    await asyncio.to_thread(_stop, error)
                await self._record_refusal(request, error)
                return requests.problem(error)
            except Unavailable as error:
                return requests.busy(error)
            except TimeoutError:
                return requests.busy(Unavailable(f"no answer within {most:g} s"))
            except Exception as error:
                if is_unstorable(error):
                    refused = Refused(
                        400, RefusalReason.MALFORMED, "a number is out of range or a text contains NUL"
                    )
                    await self._record_refusal(request, refused)
                    return requests.problem(refused)
                if transient(error):
                    log.warning("request.unavailable", path=request.url.path, exc_info=error)
                    return requests.busy(Unavailable("the database is down or busy"))
                log.exception("request.failed", path=request.url.path)
                return requests.broken()

        return endpoint

    async def _record_refusal(self, request: Request, error: Refused) -> None:
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
            **({"token": request.scope[TOKEN_ID]} if TOKEN_ID in request.scope else {}),
        }
        trace = trace_id({"traceparent": request.headers.get("traceparent", "")})
        await self._denials.write(Denial("request.refused", actor, peer.address, error.rule, trace, detail))


def _stop(forked: IdentityForked) -> None:
    """Stop a name. A database that is away leaves it to the next request: it is refused for the same reason."""
    try:
        with unit() as work:
            forked.stop(work.session)
    except sql.SQLAlchemyError as error:
        log.error("identity.unstopped", worker=forked.uri, exc_info=error)  # noqa: TRY400 - said once
