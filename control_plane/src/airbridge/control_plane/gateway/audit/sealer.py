"""Sealer: appends committed audit rows to the hash chain. Every gateway runs one; a database lock picks the active one."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog
from sqlalchemy import exc as sql

from airbridge.control_plane.gateway.database import unit
from airbridge.executor.ledger import audit
from airbridge.executor.ledger.chain import ChainLink

log = structlog.get_logger()

BATCH: Final = 1_000


async def run(interval_seconds: float) -> None:
    """Seal until cancelled. Each new end of the chain is logged: an anchor outside of the database against truncation."""
    log.info("sealer.started", interval_seconds=interval_seconds)
    try:
        while True:
            link = await asyncio.to_thread(seal_once)
            if link is not None:
                log.info("audit.sealed", seq=link.seq, hash=link.hash)
            await asyncio.sleep(interval_seconds)
    finally:
        log.info("sealer.stopped")


def seal_once() -> ChainLink | None:
    """Seal every unsealed row; return the chain's new end. While the database is down rows stay unsealed."""
    newest: ChainLink | None = None
    try:
        while True:
            with unit() as work:
                link = audit.seal(work.session, BATCH)
            if link is None:
                return newest
            newest = link
    except sql.SQLAlchemyError as error:
        log.warning("audit.seal_failed", exc_info=error)
        return newest
