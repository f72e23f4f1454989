"""Triggers of a bundle's own, which Airflow's triggerer in the control plane cannot import."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

from airflow.hooks.base import BaseHook
from airflow.triggers.base import BaseTrigger, TriggerEvent
from asgiref.sync import sync_to_async


class OwnTrigger(BaseTrigger):  # type: ignore[misc] # Airflow publishes no types
    """Fires once a port answers; reads a connection first, and logs it."""

    def __init__(self, port: int, conn_id: str | None = None) -> None:
        super().__init__()
        self.port = port
        self.conn_id = conn_id

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return how it is made again."""
        return "edge_trigger_classes.OwnTrigger", {"port": self.port, "conn_id": self.conn_id}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Try the port until it is open."""
        if self.conn_id:
            connection = await sync_to_async(BaseHook.get_connection)(self.conn_id)
            self.log.info("read %s with password %s", connection.host, connection.password)
        self.log.info("waiting for port %s", self.port)
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                await asyncio.sleep(0.2)
                continue
            writer.close()
            yield TriggerEvent({"port": self.port, "host": os.environ.get("AIRFLOW_HOME", "").split("/")[-2]})
            return


class FailingTrigger(BaseTrigger):  # type: ignore[misc] # Airflow publishes no types
    """Raises."""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return how it is made again."""
        return "edge_trigger_classes.FailingTrigger", {}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Raise an error."""
        for _ in ():
            yield TriggerEvent(None)
        raise ValueError("a trigger's own failure")
