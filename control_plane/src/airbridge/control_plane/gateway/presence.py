"""The gateway's sign of life: a row that says since when it runs and when it was last there."""

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

EVERY_SECONDS: Final = 10.0


class Presence:
    """Writes the row every few seconds, and takes it away at the end."""

    def __init__(self, every_seconds: float = EVERY_SECONDS) -> None:
        self._every = every_seconds
        self._id = f"{socket.gethostname()[:50]}-{secrets.token_hex(4)}"

    async def run(self) -> None:
        """Say so until cancelled."""
        try:
            while True:
                await asyncio.to_thread(self._say)
                await asyncio.sleep(self._every)
        finally:
            await asyncio.shield(asyncio.to_thread(self._leave))

    def _say(self) -> None:
        try:
            with unit() as work:
                gateways.seen(work.session, self._id, version("airbridge-control-plane"))
        except sql.SQLAlchemyError as error:
            log.warning("presence.unwritten", exc_info=error)

    def _leave(self) -> None:
        try:
            with unit() as work:
                gateways.left(work.session, self._id)
        except sql.SQLAlchemyError as error:
            log.warning("presence.unwritten", exc_info=error)
