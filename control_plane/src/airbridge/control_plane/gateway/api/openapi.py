"""``/openapi.json`` of the edge API, generated from the models in `airbridge.core.protocol` alone."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from airbridge.core import protocol
from airbridge.core.protocol import PROTOCOL_VERSION, SUPPORTED_VERSIONS, VERSION_HEADER, Problem
from airbridge.core.wire.brokering import AwsCredentials, AwsCredentialsRequest

PATH: Final = "/openapi.json"
_REFERENCE: Final = "#/components/schemas/{model}"

_ENDPOINTS: Final[dict[str, tuple[type[BaseModel], type[BaseModel]]]] = {
    "enrol": (protocol.EnrolRequest, protocol.Credentials),
    "renew": (protocol.RenewRequest, protocol.Credentials),
    "claim": (protocol.ClaimRequest, protocol.ClaimResponse),
    "heartbeat": (protocol.Heartbeat, protocol.HeartbeatResponse),
    "exchange": (protocol.ExchangeRequest, protocol.ExchangeResponse),
    "release": (protocol.ReleaseRequest, protocol.ReleaseResponse),
    "credentials": (AwsCredentialsRequest, AwsCredentials),
}
# Endpoints that need no identity.
_OPEN: Final = frozenset({"enrol"})
_ERRORS: Final = {
    "400": "The body or one of its fields is malformed",
    "401": "Missing or invalid certificate or access token",
    "403": "Forbidden, or revoked",
    "408": "The body took too long",
    "409": "Conflict with the current state",
    "413": "The body is too large",
    "426": f"{VERSION_HEADER} is not a version that this gateway supports",
    "429": "Too many requests; see Retry-After",
    "503": "Overloaded, or the database is down; see Retry-After",
}


@cache
def document(root: str) -> dict[str, Any]:
    """Return the description of the API under `root`."""
    models: list[type[BaseModel]] = [Problem, *(model for pair in _ENDPOINTS.values() for model in pair)]
    _, schemas = models_json_schema(
        [(model, "validation") for model in models], ref_template=_REFERENCE, title="AirBridge"
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "AirBridge edge API",
            "version": str(PROTOCOL_VERSION),
            "description": "Requests of workers to the gateway, over mutual TLS 1.3. The models are the wire protocol's.",
        },
        "paths": {f"{root}/{name}": {"post": _operation(name, *pair)} for name, pair in _ENDPOINTS.items()},
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {
                "certificate": {"type": "mutualTLS"},
                "token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT bound to the certificate"},
            },
        },
    }


def route(root: str) -> Route:
    """Return the route that serves the description, without authentication: it reveals nothing of the deployment."""

    async def serve(_request: Request) -> Response:
        return JSONResponse(document(root))

    return Route(PATH, serve)


def _operation(name: str, requested: type[BaseModel], answered: type[BaseModel]) -> dict[str, Any]:
    errors = {status: _response(why, Problem, "application/problem+json") for status, why in _ERRORS.items()}
    return {
        "operationId": name,
        "summary": (requested.__doc__ or name).strip().partition("\n")[0],
        "security": [] if name in _OPEN else [{"certificate": [], "token": []}],
        "parameters": [
            {
                "name": VERSION_HEADER,
                "in": "header",
                "required": True,
                "schema": {
                    "type": "string",
                    "enum": [str(version) for version in sorted(SUPPORTED_VERSIONS)],
                },
            }
        ],
        "requestBody": {"required": True, "content": {"application/json": {"schema": _schema(requested)}}},
        "responses": {"200": _response("Done", answered, "application/json"), **errors},
    }


def _response(why: str, model: type[BaseModel], media_type: str) -> dict[str, Any]:
    return {"description": why, "content": {media_type: {"schema": _schema(model)}}}


def _schema(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REFERENCE.format(model=model.__name__)}
