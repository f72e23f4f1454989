"""Long polls of queues on behalf of workers."""

from __future__ import annotations

import asyncio

from airbridge.control_plane.gateway.transfer.receiving import Receiving
from airbridge.core.aws.queue import MemoryQueue

POOL = ("factory-7", "default")


def test_polls_begun_together_end_apart() -> None:
    """The one that came last may ask again first."""
    drawn = iter((0.0, 1.0))
    ended: list[str] = []

    async def poll(receiving: Receiving, name: str) -> None:
        assert await receiving.receive(POOL, lambda: queue, 1, 1.4) == []
        ended.append(name)

    async def both() -> None:
        receiving = Receiving(random=lambda: next(drawn))
        await asyncio.gather(poll(receiving, "first"), poll(receiving, "last"))
        receiving.close()

    queue = MemoryQueue()
    asyncio.run(both())
    assert ended == ["last", "first"]
