"""Routes of Airflow's api-server that are closed, because they execute DAG code in it.

`/api/v2/dagReports` imports the DAG files below a path (CVE-2025-62402). Nothing in Airflow's UI asks for it;
tests/contract/test_airflow_vulnerabilities.py finds no other such route.
"""

from __future__ import annotations

from typing import Final

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

CLOSED: Final = {
    "/api/v2/dagReports": "it executes DAG files in the api-server (CVE-2025-62402); `airflow dags report` does the same elsewhere"
}


class ClosedRoutes:
    """Root middleware that answers 404 on closed routes and forwards every other request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        # The raw path, as Starlette's router reads it: a Host header can change `request.url` (CVE-2026-48710).
        path = scope.get("path", "").removeprefix(scope.get("root_path", "")).rstrip("/")
        if scope["type"] != "http" or path not in CLOSED:
            await self._app(scope, receive, send)
            return
        await JSONResponse({"detail": f"{path} is closed: {CLOSED[path]}"}, 404)(scope, receive, send)
