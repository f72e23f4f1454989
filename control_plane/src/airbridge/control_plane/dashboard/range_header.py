"""Removal of the Range header in front of every static file of Airflow's api-server.

Starlette 0.47.2, which Airflow 3.0.4 is pinned to, parses the header in quadratic time: 61 kB of it, sent without signing in, cost
7.6 s of CPU (CVE-2025-62727). A server may ignore the header (RFC 9110, section 14.2) and answer with the whole file.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

_REMOVED = frozenset({b"range", b"if-range"})


class WithoutRange:
    """Root middleware that forwards requests without their Range and If-Range headers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward one request."""
        if scope["type"] == "http":
            # ASGI servers send header names in lower case.
            kept = [pair for pair in scope["headers"] if pair[0].lower() not in _REMOVED]
            scope = {**scope, "headers": kept}
        await self._app(scope, receive, send)
