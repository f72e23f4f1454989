"""Limits of request bodies that are being received: their number per caller and in total, and their bytes.

Bodies of callers without a certificate and of workers are counted apart. At a limit of the number, the newest body evicts
the oldest of the same group: an honest body arrives within milliseconds, one that is sent slowly becomes the oldest.
Large bodies reserve their bytes, so that memory stays bounded. Without room, the caller that holds the most bytes loses
its oldest body under way; the body is refused if that caller would be its own. Bodies that never end thus keep no other
worker out.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from airbridge.control_plane.exceptions import Unavailable
from airbridge.control_plane.gateway.auth.authentication import Peer

MIB: Final = 1024 * 1024
# Bytes of a body that need no reservation: the limits of the number bound them.
UNRESERVED: Final = 256 * 1024


@dataclass(frozen=True)
class BodyReadLimits:
    """Maximum numbers of bodies under way on one listener, and of bytes of large ones."""

    #: Of all callers without a certificate.
    anonymous: int = 512
    per_address: int = 64
    per_worker: int = 32
    bytes_total: int = 128 * MIB
    bytes_per_caller: int = 64 * MIB


@dataclass(eq=False)
class BodyRead:
    """One body under way. `evict` ends its reading."""

    owner: BodyReads = field(repr=False)
    caller: str
    evict: Callable[[], object]
    reserved: int = 0
    evicted: bool = False

    def reserve(self, size: int) -> None:
        """Reserve memory for a body of `size` bytes. Raises `Unavailable` without room, or if the body was evicted."""
        self.owner.reserve(self, size)

    def received(self) -> None:
        """Stop counting the body as one that is being received; its bytes stay reserved. Idempotent."""
        self.owner.finish(self)

    def release(self) -> None:
        """Free place and bytes. Idempotent."""
        self.owner.finish(self)
        self.owner.free(self)


class BodyReads:
    """All bodies under way on a listener, in groups, oldest first."""

    def __init__(self, limits: BodyReadLimits | None = None) -> None:
        self._limits = limits or BodyReadLimits()
        self._groups: defaultdict[str, OrderedDict[BodyRead, None]] = defaultdict(OrderedDict)
        self._anonymous: OrderedDict[BodyRead, None] = OrderedDict()
        self._bytes: Counter[str] = Counter()

    def __len__(self) -> int:
        """Return the number of bodies that are being received."""
        return sum(map(len, self._groups.values()))

    @property
    def reserved_bytes(self) -> int:
        """Bytes that are reserved for large bodies."""
        return self._bytes.total()

    def begin(self, peer: Peer, evict: Callable[[], object]) -> BodyRead:
        """Count a body, after an eviction if a limit is reached."""
        limits = self._limits
        if peer.certificate is not None:
            read = BodyRead(self, peer.certificate.uri, evict)
            self._make_room(self._groups[read.caller], limits.per_worker)
        else:
            read = BodyRead(self, peer.address.rpartition(":")[0], evict)
            self._make_room(self._groups[read.caller], limits.per_address)
            self._make_room(self._anonymous, limits.anonymous)
            self._anonymous[read] = None
        self._groups[read.caller][read] = None
        return read

    def finish(self, read: BodyRead) -> None:
        """Count a body no longer; see `BodyRead.received`."""
        self._anonymous.pop(read, None)
        group = self._groups.get(read.caller)
        if group is not None:
            group.pop(read, None)
            if not group:
                del self._groups[read.caller]

    def reserve(self, read: BodyRead, size: int) -> None:
        """Reserve bytes; see `BodyRead.reserve`."""
        if read.evicted:
            raise Unavailable("too many bodies are being sent; send this one again")
        more = size - read.reserved
        if size <= UNRESERVED or more <= 0:
            return
        held = self._bytes[read.caller] + more
        if held > self._limits.bytes_per_caller or not self._make_room_for_bytes(held, more):
            raise Unavailable(f"large bodies hold {self.reserved_bytes} bytes; send this one again later")
        self._bytes[read.caller] += more
        read.reserved = size

    def free(self, read: BodyRead) -> None:
        """Free the reserved bytes; see `BodyRead.release`."""
        if read.reserved:
            self._bytes[read.caller] -= read.reserved
            read.reserved = 0
            if not self._bytes[read.caller]:
                del self._bytes[read.caller]

    def _make_room(self, bodies: OrderedDict[BodyRead, None], limit: int) -> None:
        while len(bodies) >= limit:
            oldest = next(iter(bodies))
            bodies.pop(oldest)
            self._evict(oldest)

    def _make_room_for_bytes(self, held: int, more: int) -> bool:
        """Evict bodies of callers that hold more than `held` bytes until `more` have room. Return whether they have."""
        while self.reserved_bytes + more > self._limits.bytes_total:
            victim = self._oldest_of_largest(held)
            if victim is None:
                return False
            self._evict(victim)
            self.free(victim)
        return True

    def _oldest_of_largest(self, held: int) -> BodyRead | None:
        for caller, reserved in self._bytes.most_common():
            if reserved <= held:
                return None
            # Bodies that have arrived are in no group: they are worked on, and end soon.
            for body in self._groups.get(caller, ()):
                if body.reserved:
                    return body
        return None

    def _evict(self, body: BodyRead) -> None:
        self.finish(body)
        body.evicted = True
        body.evict()
