"""Broken control planes, to check the checker: ``python -m tests.chaos.mutants NAME`` serves as a gateway that lacks one promise.

The product has no switch for any of this. A mutant is made here, in a process of its own, by taking out of the gateway
what keeps the promise, before it serves.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from tests.chaos import regional_mutants

from airbridge.control_plane.gateway.heartbeat import heartbeats
from airbridge.control_plane.gateway.work import exchanges
from airbridge.control_plane.gateway.work.fencing import Fence
from airbridge.core.protocol import RefusalReason
from airbridge.executor.ledger import leases
from airbridge.executor.ledger.models import ItemState, Outcome


def without_fencing() -> None:
    """Accept every writer as the holder."""

    def anybody(row: Any, worker: str, epoch: int) -> Fence:
        return Fence() if row is not None else Fence(RefusalReason.UNKNOWN_ITEM, was_holder=False)

    exchanges.fence = anybody


def without_idempotency() -> None:
    """Apply a repeated record again."""

    class Forgetful:
        @staticmethod
        def find(*_: Any) -> dict[int, Any]:
            return {}

        @staticmethod
        def add(*_: Any, **_more: Any) -> None:
            """Keep nothing."""

    exchanges.records = Forgetful


def without_confirmation() -> None:
    """Settle a cancelled attempt when its worker is ordered to end it, and not when its process has ended."""
    ordered = heartbeats._cancels

    def settled(session: Any, caller: Any, lost: Any, states: Any) -> Any:
        commands = ordered(session, caller, lost, states)
        for row in leases.lock(session, [lease.item_id for lease in lost]).values():
            if row.state == ItemState.CLAIMED and row.outcome == Outcome.CANCELLED:
                leases.settle(session, row, Outcome.CANCELLED, "its worker was ordered to end it")
        return commands

    heartbeats._cancels = settled


GATEWAYS: dict[str, Callable[[], None]] = {
    "no fencing": without_fencing,
    "no idempotency key": without_idempotency,
    "no confirmed end": without_confirmation,
    **regional_mutants.GATEWAYS,
}


def main() -> None:
    """Serve as the mutant of that name."""
    from airbridge.control_plane.dags import publisher
    from airbridge.control_plane.environments import receiver
    from airbridge.control_plane.gateway import server
    from airbridge.executor import settings

    GATEWAYS[sys.argv[1]]()
    read = settings.load()
    server.run(read, publisher(read).steps, receiver(read))


if __name__ == "__main__":
    main()
