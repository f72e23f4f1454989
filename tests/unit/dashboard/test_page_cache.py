"""What a page of the dashboard is cached by."""

from __future__ import annotations

from starlette.requests import Request

from airbridge.control_plane.dashboard import app


def asked(path: str, query: str, host: str) -> tuple[str, str]:
    scope = {
        "type": "http",
        "scheme": "http",
        "server": ("127.0.0.1", 80),
        "path": path,
        "query_string": query.encode(),
        "headers": [(b"host", host.encode())],
    }
    return app._asked(Request(scope))


def test_host_header_moves_no_page() -> None:
    """CVE-2026-48710: a page is cached under the path that was requested, not under one that a Host header pretends."""
    honest = asked("/airbridge/workers/a", "q=1", "airflow.example")
    assert honest == ("/airbridge/workers/a", "q=1")
    assert honest == asked("/airbridge/workers/a", "q=1", "airflow.example/airbridge/workers/b?q=2#")
