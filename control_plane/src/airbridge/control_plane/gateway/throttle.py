"""How often may be asked: by one worker, by one address whose callers show no certificate, and by all together."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from airbridge.control_plane.gateway import requests
from airbridge.control_plane.gateway.authentication import PEER, Peer

BURST_SECONDS: Final = 5.0
"""How many seconds' worth of requests may come at once."""
_MAX_CALLERS: Final = 50_000
_ALL: Final = "all"


@dataclass(frozen=True)
class RequestRates:
    """Requests a second; 0 for no limit."""

    total: float = 2_000.0
    per_worker: float = 100.0
    per_address: float = 50.0


@dataclass
class _Bucket:
    room: float
    at: float


class Throttle:
    """Token buckets, one a caller; those of callers not heard of for longest are forgotten."""

    def __init__(self, rates: RequestRates, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._rates = rates
        self._monotonic = monotonic
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def wait(self, peer: Peer, *, vital: bool = False) -> float:
        """Count a request; return 0, or how many seconds to wait with it. `vital`: what all others do does not matter."""
        if peer.certificate is not None:
            asked = self._take(peer.certificate.uri, self._rates.per_worker)
        else:
            asked = self._take(peer.address.rpartition(":")[0], self._rates.per_address)
        return asked if asked or vital else self._take(_ALL, self._rates.total)

    def _take(self, caller: str, rate: float) -> float:
        if rate <= 0:
            return 0.0
        now, burst = self._monotonic(), max(1.0, rate * BURST_SECONDS)
        bucket = self._buckets.pop(caller, None) or _Bucket(burst, now)
        bucket.room = min(burst, bucket.room + (now - bucket.at) * rate)
        bucket.at = now
        self._buckets[caller] = bucket
        if len(self._buckets) > _MAX_CALLERS:
            self._buckets.popitem(last=False)
        if bucket.room < 1.0:
            return (1.0 - bucket.room) / rate
        bucket.room -= 1.0
        return 0.0


class Throttled:
    """An ASGI application that answers 429 to those who ask too often, before anything else is done for them."""

    def __init__(self, app: ASGIApp, throttle: Throttle, vital: frozenset[str] = frozenset()) -> None:
        self._app = app
        self._throttle = throttle
        self._vital = vital

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        seconds = self._throttle.wait(scope[PEER], vital=scope["path"] in self._vital)
        if seconds:
            await requests.throttled(math.ceil(seconds))(scope, receive, send)
            return
        await self._app(scope, receive, send)
