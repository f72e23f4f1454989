"""Follows the secrets directory: a new CA, root or key is in force within seconds, without a restart."""

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

LOOK_SECONDS: Final = 1.0


class LiveKeys:
    """Looks at a keyring's files. `changed` is called, in the loop's thread, when the keys are new ones."""

    def __init__(self, keyring: Keyring, changed: Callable[[], None]) -> None:
        self._keyring = keyring
        self._changed = changed
        self._refused = ""

    async def follow(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Take up what has changed. Files that do not fit together change nothing, and are said once."""
        before = self._keyring.keys.describe()
        try:
            new = await asyncio.to_thread(self._keyring.look)
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
            await asyncio.to_thread(note, {**now, "before": before})


def note(detail: dict[str, Any]) -> None:
    """Write the change to the audit trail."""
    actor = f"gateway:{socket.gethostname()}:{os.getpid()}"
    try:
        with unit() as work:
            audit.record(work.session, "keys.changed", "changed", actor, rule="secrets_dir", **detail)
    except sql.SQLAlchemyError as error:
        log.warning("audit.unwritten", audit_event="keys.changed", exc_info=error)
