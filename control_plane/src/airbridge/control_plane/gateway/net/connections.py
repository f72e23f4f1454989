"""Connection limits: in total, per worker, and per address of callers without a certificate.

At a limit the newest connection evicts the oldest of the same group. A worker completes its handshake with a certificate
within milliseconds; a client that holds many connections open without one loses them first.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

ANONYMOUS_GROUP: Final = "strangers "


@dataclass(frozen=True)
class ConnectionLimits:
    """Maximum numbers of connections."""

    total: int = 16_384
    #: Of callers without a certificate, or before their handshake.
    per_address: int = 1_024
    per_worker: int = 64


@dataclass(eq=False)
class Ticket:
    """Slot of one connection. `abort` closes the connection."""

    owner: Connections = field(repr=False)
    group: str
    abort: Callable[[], object]

    def assign_worker(self, worker: str) -> None:
        """Count the connection as this worker's from now on."""
        self.owner.move(self, worker)

    def release(self) -> None:
        """Free the slot. Idempotent."""
        self.owner.remove(self)


class Connections:
    """All connections of a listener, in groups, oldest first."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self._limits = limits
        self._groups: defaultdict[str, OrderedDict[Ticket, None]] = defaultdict(OrderedDict)
        self._anonymous: OrderedDict[Ticket, None] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        """Return the number of connections."""
        return self._count

    def admit(self, address: str, abort: Callable[[], object]) -> Ticket | None:
        """Return the slot of a new connection, after an eviction if a limit is reached. None: the connection is refused."""
        if self._count >= self._limits.total:
            if not self._anonymous:
                return None
            self._evict(next(iter(self._anonymous)))
        ticket = Ticket(self, ANONYMOUS_GROUP + address, abort)
        self._anonymous[ticket] = None
        self._add(ticket, self._limits.per_address)
        return ticket

    def move(self, ticket: Ticket, worker: str) -> None:
        """Move a slot to a worker's group; see `Ticket.assign_worker`."""
        if not self._discard(ticket):
            return
        ticket.group = worker
        self._add(ticket, self._limits.per_worker)

    def remove(self, ticket: Ticket) -> None:
        """Free a slot; see `Ticket.release`."""
        self._discard(ticket)

    def _add(self, ticket: Ticket, limit: int) -> None:
        group = self._groups[ticket.group]
        while len(group) >= limit:
            self._evict(next(iter(group)))
        self._groups[ticket.group][ticket] = None
        self._count += 1

    def _discard(self, ticket: Ticket) -> bool:
        group = self._groups.get(ticket.group)
        if group is None or ticket not in group:
            return False
        del group[ticket]
        self._anonymous.pop(ticket, None)
        self._count -= 1
        if not group:
            del self._groups[ticket.group]
        return True

    def _evict(self, ticket: Ticket) -> None:
        self._discard(ticket)
        ticket.abort()
