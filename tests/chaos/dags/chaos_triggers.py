"""Trigger of the chaos suite's waiting tasks. What it really did goes to a file, like what the tasks did."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent


class FiresAfter(BaseTrigger):  # type: ignore[misc] # Airflow publishes no types
    """Fires a while after it began on its host, wherever it ran before; writes the time to a file first."""

    def __init__(self, seconds: float, ti_id: str, fires: str) -> None:
        super().__init__()
        self.seconds = seconds
        self.ti_id = ti_id
        self.fires = fires

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return how it is made again."""
        given = {"seconds": self.seconds, "ti_id": self.ti_id, "fires": self.fires}
        return "chaos_triggers.FiresAfter", given

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and fire."""
        await asyncio.sleep(self.seconds)
        line = {"ti_id": self.ti_id, "at": time.time()}
        handle = os.open(self.fires, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(handle, json.dumps(line).encode() + b"\n")
        finally:
            os.close(handle)
        yield TriggerEvent(self.ti_id)
