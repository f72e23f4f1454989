"""Closed routes, and the Secure attribute of the token's cookie, in front of small applications."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from airbridge.control_plane.dashboard.closed_routes import ClosedRoutes
from airbridge.control_plane.dashboard.secure_cookie import SecureCookie


def get(app: Any, path: str, **headers: str) -> httpx.Response:
    async def request() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.get(path, headers=headers)

    return asyncio.run(request())


def served(request: Request) -> Response:
    return PlainTextResponse(f"served {request.url.path}")


APPLICATION = ClosedRoutes(Starlette(routes=[Route("/{path:path}", served)]))


@pytest.mark.parametrize(
    "path", ["/api/v2/dagReports", "/api/v2/dagReports/", "/api/v2/dag%52eports?subdir=/x"]
)
def test_closed_route_is_not_served(path: str) -> None:
    """Every spelling that the router takes for the closed route is answered with 404."""
    assert get(APPLICATION, path).status_code == 404


@pytest.mark.parametrize("path", ["/", "/api/v2/dags", "/api/v2/dagReportsX", "/x/api/v2/dagReports"])
def test_other_routes_are_served(path: str) -> None:
    """Only the route itself is closed."""
    assert get(APPLICATION, path).status_code == 200


def test_host_header_opens_nothing() -> None:
    """CVE-2026-48710: a Host header that changes `request.url` neither opens the closed route nor closes another."""
    hostile = "test/api/v2/dags?"
    assert get(APPLICATION, "/api/v2/dagReports", host=hostile).status_code == 404
    assert "/api/v2/dagReports" not in get(APPLICATION, "/elsewhere", host=hostile).text
    assert get(APPLICATION, "/elsewhere", host="test/api/v2/dagReports?").status_code == 200


def answer_with(*cookies: str) -> Any:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"0"), *((b"set-cookie", each.encode()) for each in cookies)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    return application


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        ("_token=abc; Path=/", "_token=abc; Path=/; Secure"),
        ("_token=abc; secure; Path=/", "_token=abc; secure; Path=/"),
        ("_token=secure", "_token=secure; Secure"),
        ("airbridge_session=abc; HttpOnly", "airbridge_session=abc; HttpOnly; Secure"),
        ("other=abc; Path=/", "other=abc; Path=/"),
        ("_token_too=abc", "_token_too=abc"),
    ],
)
def test_only_open_token_changes(sent: str, received: str) -> None:
    """The cookies of token and session become Secure where they are not; other cookies stay as they are, in their order."""
    answer = get(SecureCookie(answer_with("first=1", sent), ("_token", "airbridge_session")), "/")
    assert ["first=1", received] == answer.headers.get_list("set-cookie")
