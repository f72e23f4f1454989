"""Broken control planes, to check the checker: ``python -m tests.chaos.mutants NAME`` serves as a gateway that lacks one promise.

The product has no switch for any of this. A mutant is made here, in a process of its own, by taking out of the gateway
what keeps the promise, before it serves.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from airbridge.control_plane.gateway import exchanges
from airbridge.control_plane.gateway.fencing import Fence
from airbridge.executor.protocol import RefusalReason


def without_fencing() -> None:
    """Whoever writes is the holder."""

    def anybody(row: Any, worker: str, epoch: int) -> Fence:
        return Fence() if row is not None else Fence(RefusalReason.UNKNOWN_ITEM, held_once=False)

    exchanges.fence = anybody


def without_idempotency() -> None:
    """What is sent again is applied again."""

    class Forgetful:
        @staticmethod
        def find(*_: Any) -> dict[int, Any]:
            return {}

        @staticmethod
        def add(*_: Any, **__: Any) -> None:
            return None

    exchanges.records = Forgetful


GATEWAYS: dict[str, Callable[[], None]] = {
    "no fencing": without_fencing,
    "no idempotency key": without_idempotency,
}


def main() -> None:
    """Serve as the mutant of that name."""
    from airbridge.control_plane.dags import publisher
    from airbridge.control_plane.gateway import server
    from airbridge.executor import settings

    GATEWAYS[sys.argv[1]]()
    read = settings.load()
    server.run(read, publisher(read))


if __name__ == "__main__":
    main()
