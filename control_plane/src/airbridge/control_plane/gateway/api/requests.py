"""Parsing and answers of both listeners: bounds before models, one error format (RFC 9457)."""

from __future__ import annotations

from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from airbridge.control_plane.exceptions import Refused, Unavailable
from airbridge.core import json_bounds
from airbridge.core.protocol import Problem, RefusalReason

Model = TypeVar("Model", bound=BaseModel)

MOST_VALUES: Final = 1_000
MOST_FAULTS: Final = 100
_JSON: Final = "application/json"
_PROBLEM: Final = "application/problem+json"


def parse(body: bytes, model: type[Model], values: int = MOST_VALUES) -> Model:
    """Return the body as `model`. Raises `Refused` (400) naming the malformed field, not its value.

    A body of more than `values` values is refused before it is parsed.
    """
    try:
        json_bounds.check(body, values)
        return model.model_validate_json(body)
    except json_bounds.OutOfBounds as error:
        raise Refused(413, RefusalReason.MALFORMED, f"the body has {error}") from error
    except ValidationError as error:
        raise Refused(400, RefusalReason.MALFORMED, _fault(error)) from error


def _fault(error: ValidationError) -> str:
    # `errors` describes every fault, and a hostile body has as many as it has values.
    if error.error_count() > MOST_FAULTS:
        return f"the body has {error.error_count()} malformed fields"
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(map(str, first["loc"])) or "the body"
    return f"{where}: {first['msg']}"


def answer(model: BaseModel) -> Response:
    """Return a 200 with `model` as JSON."""
    return Response(model.model_dump_json(), media_type=_JSON)


def problem(error: Refused) -> Response:
    """Return the response for a denial."""
    return _error(error.problem())


def busy(error: Unavailable) -> Response:
    """Return a 503 with Retry-After."""
    body = Problem(status=503, reason=RefusalReason.OVERLOADED, detail=str(error))
    return _error(body, {"Retry-After": f"{error.retry_after:g}"})


def too_many_requests(seconds: int) -> Response:
    """Return a 429 with Retry-After. The request's body has not been read, so the connection is closed."""
    body = Problem(status=429, reason=RefusalReason.OVERLOADED, detail="too many requests; see Retry-After")
    return _error(body, {"Retry-After": str(seconds)})


def broken() -> Response:
    """Return a 500 without the cause, which is in the log."""
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
