"""Liveness row of the gateway: its start time and the time it was last alive."""

from __future__ import annotations

import asyncio
import secrets
import socket
from importlib.metadata import version
from typing import Final

import structlog
from sqlalchemy import exc as sql

from airbridge.control_plane.gateway.database import unit
from airbridge.executor.ledger import gateways

log = structlog.get_logger()

# A gateway that has missed two writes counts as down (read_model.platform.GATEWAY_SILENT).
EVERY_SECONDS: Final = 5.0


class Liveness:
    """Writes the row every `every_seconds`, and deletes it at shutdown."""

    def __init__(self, every_seconds: float = EVERY_SECONDS) -> None:
        self._every = every_seconds
        self._id = f"{socket.gethostname()[:50]}-{secrets.token_hex(4)}"

    async def run(self) -> None:
        """Write the row until cancelled, then delete it."""
        try:
            while True:
                await asyncio.to_thread(self._write)
                await asyncio.sleep(self._every)
        finally:
            await asyncio.shield(asyncio.to_thread(self._remove))

    def _write(self) -> None:
        try:
            with unit() as work:
                gateways.seen(work.session, self._id, version("airbridge-control-plane"))
        except sql.SQLAlchemyError as error:
            log.warning("liveness.write_failed", exc_info=error)

    def _remove(self) -> None:
        try:
            with unit() as work:
                gateways.left(work.session, self._id)
        except sql.SQLAlchemyError as error:
            log.warning("liveness.write_failed", exc_info=error)
