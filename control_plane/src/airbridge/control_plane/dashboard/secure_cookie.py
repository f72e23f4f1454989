"""The Secure attribute on the cookies of Airflow's token and of the dashboard's session.

Airflow 3.0.4, and the dashboard in it, set the attribute by the scheme of the request that reaches it, which is http behind a proxy that ends TLS
(CVE-2026-41017 is the same fault in later versions). What users open is `[api] base_url`.
"""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class SecureCookie:
    """Root middleware that makes cookies Secure wherever a response sets them."""

    def __init__(self, app: ASGIApp, cookies: Collection[str]) -> None:
        self._app = app
        self._starts = tuple(f"{each}=" for each in cookies)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""

        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._secure(message)
            await send(message)

        await self._app(scope, receive, secured)

    def _secure(self, message: Message) -> None:
        headers = MutableHeaders(raw=list(message.get("headers", ())))
        cookies = headers.getlist("set-cookie")
        if not any(self._is_open(each) for each in cookies):
            return
        del headers["set-cookie"]
        for each in cookies:
            headers.append("set-cookie", f"{each}; Secure" if self._is_open(each) else each)
        message["headers"] = headers.raw

    def _is_open(self, cookie: str) -> bool:
        attributes = {part.strip().lower() for part in cookie.split(";")[1:]}
        return cookie.startswith(self._starts) and "secure" not in attributes
