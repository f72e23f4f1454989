"""Reload of the secrets directory: a new CA, root or key takes effect within seconds, without a restart."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Any, Final

import structlog
from sqlalchemy import exc as sql

from airbridge.control_plane.exceptions import SecretsError
from airbridge.control_plane.gateway.database import unit
from airbridge.control_plane.identity.keyring import Keyring
from airbridge.executor.ledger import audit

log = structlog.get_logger()

POLL_SECONDS: Final = 1.0


class KeyReloader:
    """Polls a keyring's files. Calls `changed` on the event loop after the keys have changed."""

    def __init__(self, keyring: Keyring, changed: Callable[[], None]) -> None:
        self._keyring = keyring
        self._changed = changed
        self._refused = ""

    async def run(self) -> None:
        """Poll until cancelled."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            await self.reload()

    async def reload(self) -> None:
        """Reload changed files. Inconsistent files change nothing and are logged once."""
        before = self._keyring.keys.describe()
        try:
            new = await asyncio.to_thread(self._keyring.reload)
        except (SecretsError, OSError) as error:
            if self._refused != str(error):
                self._refused = str(error)
                log.error("keys.refused", why=self._refused)  # noqa: TRY400 - files in the making are no fault
            return
        self._refused = ""
        if new:
            self._changed()
            now = self._keyring.keys.describe()
            log.info("keys.changed", **now)
            await asyncio.to_thread(record_change, {**now, "before": before})


def record_change(detail: dict[str, Any]) -> None:
    """Record the change in the audit trail."""
    actor = f"gateway:{socket.gethostname()}:{os.getpid()}"
    try:
        with unit() as work:
            audit.record(work.session, "keys.changed", "changed", actor, rule="secrets_dir", **detail)
    except sql.SQLAlchemyError as error:
        log.warning("audit.write_failed", audit_event="keys.changed", exc_info=error)
