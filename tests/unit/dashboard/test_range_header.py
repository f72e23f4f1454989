"""Removal of Range headers in front of static files."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.staticfiles import StaticFiles

from airbridge.control_plane.dashboard.range_header import WithoutRange
from airbridge.control_plane.plugin import AirBridgePlugin

CONTENT = "x" * 100_000


@pytest.fixture
def static(tmp_path: Path) -> StaticFiles:
    (tmp_path / "file.js").write_text(CONTENT)
    return StaticFiles(directory=tmp_path)


def get(app: Any, **headers: str) -> httpx.Response:
    async def request() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.get("/file.js", headers=headers)

    return asyncio.run(request())


def hostile(ranges: int) -> str:
    """Return a header of ranges that do not overlap, which Starlette 0.47.2 merges in quadratic time."""
    return "bytes=" + ",".join(f"{2 * each}-{2 * each}" for each in range(ranges))


def test_starlette_is_still_affected(static: StaticFiles) -> None:
    """Without the middleware the header is parsed: when this fails, Starlette is fixed and the middleware can go."""
    assert get(static, range="bytes=0-9").status_code == 206


def test_range_is_ignored(static: StaticFiles) -> None:
    """A request with a Range header gets the whole file."""
    answer = get(WithoutRange(static), **{"range": "bytes=0-9", "if-range": '"etag"'})
    assert (200, CONTENT) == (answer.status_code, answer.text)


def test_hostile_range_costs_nothing(static: StaticFiles) -> None:
    """61 kB of ranges cost the same CPU as none: the header is gone before Starlette parses it."""
    seen: list[Any] = []

    async def recording(scope: Any, receive: Any, send: Any) -> None:
        seen.extend(scope["headers"])
        await static(scope, receive, send)

    began = time.process_time()
    answer = get(WithoutRange(recording), range=hostile(6_000))
    print(f"{time.process_time() - began:.3f} s of CPU")
    assert answer.status_code == 200
    assert b"range" not in {name for name, _ in seen}


def test_api_server_gets_the_middleware() -> None:
    """Airflow puts the plugin's root middlewares in front of everything that the api-server serves."""
    assert WithoutRange in {each["middleware"] for each in AirBridgePlugin().fastapi_root_middlewares}
