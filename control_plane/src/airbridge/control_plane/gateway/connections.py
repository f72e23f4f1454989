"""How many connections there may be: in all, of one worker, and of one address whose callers have shown no certificate.

At a limit the oldest connection of the same kind gives way to the newest. Who means to get work done completes a
handshake in milliseconds and shows a certificate; who holds many connections open without one loses them first.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

STRANGERS: Final = "strangers "


@dataclass(frozen=True)
class ConnectionLimits:
    """How many at most."""

    total: int = 16_384
    per_address: int = 1_024
    """Of callers that have shown no certificate, or not yet."""
    per_worker: int = 64


@dataclass(eq=False)
class Ticket:
    """One connection's place. `abort` ends the connection."""

    owner: Connections = field(repr=False)
    group: str
    abort: Callable[[], object]

    def belongs_to(self, worker: str) -> None:
        """The connection is this worker's: it counts as such from now on."""
        self.owner.move(self, worker)

    def give_back(self) -> None:
        """The connection has ended. May be said more than once."""
        self.owner.remove(self)


class Connections:
    """All connections of a listener, in groups, the oldest first."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self._limits = limits
        self._groups: defaultdict[str, OrderedDict[Ticket, None]] = defaultdict(OrderedDict)
        self._strangers: OrderedDict[Ticket, None] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        """How many there are."""
        return self._count

    def admit(self, address: str, abort: Callable[[], object]) -> Ticket | None:
        """Return a new connection's place, at the cost of an older one at a limit. None: there is none to be had."""
        if self._count >= self._limits.total:
            if not self._strangers:
                return None
            self._evict(next(iter(self._strangers)))
        ticket = Ticket(self, STRANGERS + address, abort)
        self._strangers[ticket] = None
        self._add(ticket, self._limits.per_address)
        return ticket

    def move(self, ticket: Ticket, worker: str) -> None:
        """See `Ticket.belongs_to`."""
        if not self._take_out(ticket):
            return
        ticket.group = worker
        self._add(ticket, self._limits.per_worker)

    def remove(self, ticket: Ticket) -> None:
        """See `Ticket.give_back`."""
        self._take_out(ticket)

    def _add(self, ticket: Ticket, limit: int) -> None:
        group = self._groups[ticket.group]
        while len(group) >= limit:
            self._evict(next(iter(group)))
        self._groups[ticket.group][ticket] = None
        self._count += 1

    def _take_out(self, ticket: Ticket) -> bool:
        group = self._groups.get(ticket.group)
        if group is None or ticket not in group:
            return False
        del group[ticket]
        self._strangers.pop(ticket, None)
        self._count -= 1
        if not group:
            del self._groups[ticket.group]
        return True

    def _evict(self, ticket: Ticket) -> None:
        self._take_out(ticket)
        ticket.abort()
