"""Refusals as events: who, what, why. Always in the log, and in the ledger at a bounded rate."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import structlog
from sqlalchemy import exc as sql

from airbridge.control_plane.exceptions import Refused
from airbridge.control_plane.gateway.database import unit
from airbridge.executor.ledger import events

log = structlog.get_logger()

PER_SECOND: Final = 20.0
BURST: Final = 100.0


class RefusalLog:
    """Writes refusals down. Strangers cannot fill the table: past the rate only the log has them."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._room = BURST
        self._at = monotonic()

    def admit(self) -> bool:
        """Whether the next refusal goes into the ledger too."""
        now = self._monotonic()
        self._room = min(BURST, self._room + (now - self._at) * PER_SECOND)
        self._at = now
        if self._room < 1.0:
            return False
        self._room -= 1.0
        return True

    def write(self, actor: str, address: str, what: str, refused: Refused) -> None:
        """Write one refusal to the ledger, in a transaction of its own."""
        try:
            with unit() as work:
                events.record(
                    work.session,
                    "request.refused",
                    actor,
                    address=address,
                    request=what[:200],
                    status=refused.status,
                    reason=str(refused.reason),
                    why=refused.detail[:500],
                )
        except sql.SQLAlchemyError as error:
            log.warning("audit.unwritten", exc_info=error)
