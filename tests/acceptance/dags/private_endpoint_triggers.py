"""Trigger of the private endpoint's sensor, which the bundle has of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent


class PortTrigger(BaseTrigger):  # type: ignore[misc] # Airflow publishes no types
    """Fires once a port answers. Its event has the time at which it did."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__()
        self.host = host
        self.port = port

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return how it is made again."""
        return "private_endpoint_triggers.PortTrigger", {"host": self.host, "port": self.port}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Try the port until it is open."""
        while True:
            try:
                async with asyncio.timeout(1.0):
                    _, writer = await asyncio.open_connection(self.host, self.port)
            except OSError:
                await asyncio.sleep(0.1)
                continue
            writer.close()
            yield TriggerEvent({"at": time.time()})
            return
