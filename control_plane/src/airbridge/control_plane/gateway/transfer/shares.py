"""Fair shares: how many requests of one kind are under way per worker, per region and in total.

A request beyond a limit is refused at once with a time to come back, so that one site's logs take neither the memory nor the
threads that another's need.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from airbridge.control_plane.exceptions import Unavailable
from airbridge.control_plane.identity.spiffe import WorkerName


@dataclass(frozen=True, slots=True)
class ShareLimits:
    """Maximum numbers of requests under way."""

    per_worker: int
    per_region: int
    total: int


class Shares:
    """Requests of one kind that are under way. For one event loop."""

    def __init__(self, kind: str, limits: ShareLimits) -> None:
        self._kind = kind
        self._limits = limits
        self._held: Counter[str] = Counter()

    def __len__(self) -> int:
        """Return the number of requests that are under way."""
        return self._held[""]

    @contextmanager
    def hold(self, name: WorkerName) -> Iterator[None]:
        """Count a request for the length of the block. Raises `Unavailable` at a limit."""
        limits = self._limits
        shares = {name.uri: limits.per_worker, f"region {name.region}": limits.per_region, "": limits.total}
        for share, limit in shares.items():
            if self._held[share] >= limit:
                raise Unavailable(
                    f"{limit} requests for {self._kind} are under way; send this one again later"
                )
        self._held.update(shares.keys())
        try:
            yield
        finally:
            self._held.subtract(shares.keys())
            for share in shares:
                if not self._held[share]:
                    del self._held[share]
