"""Rate limits: per worker, per address of callers without a certificate, and in total."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from airbridge.control_plane.gateway.api import requests
from airbridge.control_plane.gateway.auth.authentication import PEER, Peer

# Burst: this many seconds' worth of requests at once.
BURST_SECONDS: Final = 5.0
_MAX_CALLERS: Final = 50_000
_ALL: Final = "all"


@dataclass(frozen=True)
class RequestRates:
    """Requests per second; 0 for no limit."""

    total: float = 2_000.0
    per_worker: float = 100.0
    per_address: float = 50.0


@dataclass
class _Bucket:
    tokens: float
    at: float


class RateLimiter:
    """Token buckets, one per caller; the least recently used are dropped."""

    def __init__(self, rates: RequestRates, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._rates = rates
        self._monotonic = monotonic
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def wait(self, peer: Peer, *, vital: bool = False) -> float:
        """Count a request; return 0, or the seconds until it is allowed. `vital` requests are exempt from the total limit."""
        if peer.certificate is not None:
            seconds = self._take(peer.certificate.uri, self._rates.per_worker)
        else:
            seconds = self._take(peer.address.rpartition(":")[0], self._rates.per_address)
        return seconds if seconds or vital else self._take(_ALL, self._rates.total)

    def _take(self, caller: str, rate: float) -> float:
        if rate <= 0:
            return 0.0
        now, burst = self._monotonic(), max(1.0, rate * BURST_SECONDS)
        bucket = self._buckets.pop(caller, None) or _Bucket(burst, now)
        bucket.tokens = min(burst, bucket.tokens + (now - bucket.at) * rate)
        bucket.at = now
        self._buckets[caller] = bucket
        if len(self._buckets) > _MAX_CALLERS:
            self._buckets.popitem(last=False)
        if bucket.tokens < 1.0:
            return (1.0 - bucket.tokens) / rate
        bucket.tokens -= 1.0
        return 0.0


class RateLimited:
    """ASGI wrapper that answers 429 above the rate limit, before any other work on the request."""

    def __init__(self, app: ASGIApp, limiter: RateLimiter, vital: frozenset[str] = frozenset()) -> None:
        self._app = app
        self._limiter = limiter
        self._vital = vital

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        seconds = self._limiter.wait(scope[PEER], vital=scope["path"] in self._vital)
        if seconds:
            await requests.too_many_requests(math.ceil(seconds))(scope, receive, send)
            return
        await self._app(scope, receive, send)
