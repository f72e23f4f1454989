"""What the gateway counts, in Prometheus' text format at ``/operator/v1/metrics`` (scope ``metrics:read``)."""

from __future__ import annotations

import time
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """One gateway's counters, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "airbridge_gateway_requests",
            "Requests answered, by endpoint of the edge API and HTTP status",
            ("endpoint", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "airbridge_gateway_request_seconds",
            "Seconds from a request's first byte to its answer, by endpoint of the edge API",
            ("endpoint",),
            buckets=_SECONDS,
            registry=self._registry,
        )

    def answered(self, endpoint: str, status: int, seconds: float) -> None:
        """Count one request."""
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def render(self) -> bytes:
        """Return everything counted so far."""
        return generate_latest(self._registry)


class Counted:
    """An ASGI application that counts what it answers. Paths it does not know are counted together, as ``other``."""

    def __init__(self, app: ASGIApp, metrics: Metrics, endpoints: dict[str, str]) -> None:
        self._app = app
        self._metrics = metrics
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        endpoint = self._endpoints.get(scope["path"], "other")
        began = time.perf_counter()

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.answered(endpoint, message["status"], time.perf_counter() - began)
            await send(message)

        await self._app(scope, receive, counting)
