"""What every request and answer of both listeners has in common: bounded bodies, one shape of error."""

from __future__ import annotations

import asyncio
from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from airbridge.control_plane.exceptions import Refused, Unavailable
from airbridge.executor.protocol import Problem, RefusalReason

Model = TypeVar("Model", bound=BaseModel)

BODY_SECONDS: Final = 30.0
_JSON: Final = "application/json"
_PROBLEM: Final = "application/problem+json"


async def read_body(request: Request, limit: int, seconds: float = BODY_SECONDS) -> bytes:
    """Return the body. Raises `Refused` (413, 408) if it is larger than `limit` bytes or slower than `seconds`."""
    declared = request.headers.get("content-length", "0")
    if not declared.isdigit() or int(declared) > limit:
        raise _too_large(limit)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise _too_large(limit)
                chunks.append(chunk)
    except TimeoutError as error:
        raise Refused(408, RefusalReason.MALFORMED, f"the body took longer than {seconds:g} s") from error
    except ClientDisconnect as error:
        raise Refused(400, RefusalReason.MALFORMED, "the client went away") from error
    return b"".join(chunks)


def parse(body: bytes, model: type[Model]) -> Model:
    """Return the body as `model`. Raises `Refused` (400) naming the field that is wrong, not its value."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise Refused(400, RefusalReason.MALFORMED, f"{where}: {first['msg']}") from error


def answer(model: BaseModel) -> Response:
    """Return a 200 with `model` as JSON."""
    return Response(model.model_dump_json(), media_type=_JSON)


def problem(error: Refused) -> Response:
    """Return the answer to a refusal."""
    return _error(error.problem())


def busy(error: Unavailable) -> Response:
    """Return a 503 that says when to come back."""
    body = Problem(status=503, reason=RefusalReason.OVERLOADED, detail=str(error))
    return _error(body, {"Retry-After": f"{error.retry_after:g}"})


def throttled(seconds: int) -> Response:
    """Return a 429 that says when to come back, and closes the connection: its body has not been looked at."""
    body = Problem(status=429, reason=RefusalReason.OVERLOADED, detail="too many requests; see Retry-After")
    return _error(body, {"Retry-After": str(seconds)})


def broken() -> Response:
    """Return a 500 that says nothing of the cause: that is in the log."""
    return _error(
        Problem(status=500, reason=RefusalReason.INTERNAL, detail="an error of the gateway; see its log")
    )


def _error(body: Problem, headers: dict[str, str] | None = None) -> Response:
    extra = {"WWW-Authenticate": "Bearer"} if body.status == 401 else {}
    return Response(
        body.model_dump_json(),
        status_code=body.status,
        media_type=_PROBLEM,
        headers={**extra, **(headers or {})},
    )


def _too_large(limit: int) -> Refused:
    return Refused(413, RefusalReason.MALFORMED, f"the body is larger than {limit} bytes")
