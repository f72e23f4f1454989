"""What every endpoint of the operators' listener does: authenticate and work in one transaction, answer as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from airbridge.control_plane.exceptions import Refused
from airbridge.control_plane.gateway.authentication import Operator, authenticate_operator, bearer
from airbridge.control_plane.gateway.database import unit
from airbridge.control_plane.gateway.lanes import Lane
from airbridge.executor.protocol import RefusalReason

Query = TypeVar("Query", bound=BaseModel)


class Body(BaseModel):
    """Base of what operators send: immutable, and nothing in it that is not known."""

    model_config = ConfigDict(frozen=True, extra="forbid")


async def answer(lane: Lane, request: Request, work: Callable[[Any, Operator], Any]) -> Response:
    """Run `work` in one transaction, after authentication in the same one."""

    def run() -> Any:
        with unit() as opened:
            return work(opened.session, authenticate_operator(opened.session, request.scope))

    bearer(request.scope)
    return JSONResponse(await lane.run(run))


def query(request: Request, model: type[Query]) -> Query:
    """Return the query's parameters as `model`. Raises `Refused` (400) naming the one that is wrong."""
    try:
        return model.model_validate(_once(request.query_params.multi_items()))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "the query"
        raise Refused(400, RefusalReason.MALFORMED, f"{where}: {first['msg']}") from error


def missing(detail: str) -> Refused:
    """Return the refusal for what does not exist."""
    return Refused(404, RefusalReason.UNKNOWN, detail)


def _once(items: list[tuple[str, str]]) -> Mapping[str, str]:
    found = dict(items)
    if len(found) != len(items):
        raise Refused(400, RefusalReason.MALFORMED, "a parameter of the query is given twice")
    return found
