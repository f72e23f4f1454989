"""Redirect from the dashboard's path without a trailing slash to the path with one.

Airflow mounts a plugin's application under a prefix and a slash. Requests without the slash reach the catch-all route of
Airflow's own UI, which has no such page.
"""

from __future__ import annotations

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class TrailingSlash:
    """Root middleware of Airflow's api-server that redirects `prefix` and forwards every other request."""

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
