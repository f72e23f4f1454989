"""Endpoint helpers of the operator API: authenticate and work in one transaction, answer in JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from airbridge.control_plane.exceptions import Refused
from airbridge.control_plane.gateway.api.handling import Handler
from airbridge.control_plane.gateway.auth.authentication import (
    Operator,
    authenticate_operator,
    bearer,
    check_operator_token,
)
from airbridge.control_plane.gateway.database import unit
from airbridge.control_plane.gateway.net.thread_pools import ThreadPool
from airbridge.core.protocol import RefusalReason

Query = TypeVar("Query", bound=BaseModel)


class Body(BaseModel):
    """Base of operators' request models: immutable, without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Accepted(dict[str, Any]):
    """Answer with status 202: the action waits for a second operator."""


class OperatorAuthenticator:
    """Checks the token of every request, in a thread of its own, before its body is read and before it takes other threads."""

    def __init__(self, threads: ThreadPool) -> None:
        self._threads = threads

    def before(self, handler: Handler) -> Handler:
        """Return `handler`, reached with a valid token alone. It authenticates again in its own transaction."""

        async def authenticated(request: Request) -> Response:
            # A request without a token costs no database connection.
            secret = bearer(request.scope)
            await self._threads.run(_check_token, request, secret)
            return await handler(request)

        return authenticated


def _check_token(request: Request, secret: str) -> None:
    with unit() as work:
        check_operator_token(work.session, request.scope, secret)


async def answer(threads: ThreadPool, request: Request, work: Callable[[Any, Operator], Any]) -> Response:
    """Run `work` in one transaction, after authentication in the same one."""

    def run() -> Any:
        with unit() as opened:
            return work(opened.session, authenticate_operator(opened.session, request.scope))

    result = await threads.run(run)
    return JSONResponse(result, 202 if isinstance(result, Accepted) else 200)


def query(request: Request, model: type[Query]) -> Query:
    """Return the query's parameters as `model`. Raises `Refused` (400) naming the malformed one."""
    try:
        return model.model_validate(_once(request.query_params.multi_items()))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "the query"
        raise Refused(400, RefusalReason.MALFORMED, f"{where}: {first['msg']}") from error


def missing(detail: str) -> Refused:
    """Return a 404 for something that does not exist."""
    return Refused(404, RefusalReason.UNKNOWN, detail)


def _once(items: list[tuple[str, str]]) -> Mapping[str, str]:
    found = dict(items)
    if len(found) != len(items):
        raise Refused(400, RefusalReason.MALFORMED, "a parameter of the query is given twice")
    return found
