"""Leads from the dashboard's address without its last slash to the one with it.

Airflow mounts a plugin's application under a prefix and a slash. What comes without one reaches the catch-all route of
Airflow's own UI, which has no such page.
"""

from __future__ import annotations

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class TrailingSlash:
    """A root middleware of Airflow's api-server: redirects `prefix`, and passes everything else on."""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        root = scope.get("root_path", "")
        if scope["type"] != "http" or scope["path"].removeprefix(root) != self._prefix:
            await self._app(scope, receive, send)
            return
        query = scope.get("query_string", b"").decode("latin-1")
        there = f"{root}{self._prefix}/" + (f"?{query}" if query else "")
        await RedirectResponse(there, 307)(scope, receive, send)
