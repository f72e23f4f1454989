"""Deletion of stored XComs that no row of Airflow's refers to any more: retries, clearing and deleted runs remove rows alone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from itertools import islice
from typing import Any, Final

import structlog
from sqlalchemy import exc as sql
from sqlalchemy import select, text

from airbridge.control_plane.gateway.database import unit
from airbridge.control_plane.gateway.work.stored_xcoms import StoredXComs
from airbridge.core.exceptions import StoreError
from airbridge.core.residency import xcoms
from airbridge.core.residency.xcoms import ObjectName
from airbridge.core.violations import Violation
from airbridge.executor.ledger import clock
from airbridge.executor.ledger.models import ItemState, WorkItemRow

log = structlog.get_logger()

EVERY_SECONDS: Final = 3600.0
#: A task may write XComs for some minutes after its final state; see `exchanges.EPILOGUE`.
GRACE: Final = timedelta(hours=1)
_BATCH: Final = 500
# The columns of references alone, so that no value is loaded.
_REFERENCED: Final = text(
    "SELECT value->'__data__'->>'object' FROM xcom "
    "WHERE dag_id = ANY(:dags) AND value->>'__classname__' = :classname"
)


class XComSweep:
    """Sweeps the buckets of all regions. Several gateways may do so at the same time."""

    def __init__(
        self, stored: StoredXComs, every_seconds: float = EVERY_SECONDS, grace: timedelta = GRACE
    ) -> None:
        self._stored, self._every, self._grace = stored, every_seconds, grace

    async def run(self) -> None:
        """Sweep every `every_seconds`, until cancelled."""
        log.info("xcom_sweep.started")
        try:
            while True:
                await asyncio.sleep(self._every)
                for region in self._stored.regions:
                    await asyncio.to_thread(self._try_region, region)
        finally:
            log.info("xcom_sweep.stopped")

    def _try_region(self, region: str) -> None:
        try:
            self.turn(region)
        except (StoreError, sql.SQLAlchemyError) as error:
            log.warning("xcom_sweep.failed", region=region, error=str(error))

    def turn(self, region: str) -> list[str]:
        """Sweep one region; return the keys that were deleted. Raises `StoreError`."""
        store = self._stored.store(region)
        if store is None:
            return []
        deleted: list[str] = []
        names = _names(info.key for info in store.list(xcoms.PREFIX))
        while batch := list(islice(names, _BATCH)):
            unused = self._unused(batch)
            store.delete(unused)
            deleted += unused
        if deleted:
            log.info("xcom_sweep.deleted", region=region, objects=len(deleted))
        return deleted

    def _unused(self, names: Sequence[ObjectName]) -> list[str]:
        with unit() as work:
            session = work.session
            # First the work items: a reference that is written later is that of an item which is kept.
            kept = set(session.scalars(_kept_items(names, clock.now(session) - self._grace)))
            dags = sorted({name.dag_id for name in names})
            found = session.execute(_REFERENCED, {"dags": dags, "classname": xcoms.CLASS})
            referenced = set(found.scalars())
        return [name.key for name in names if name.item_id not in kept and name.key not in referenced]


def _kept_items(names: Sequence[ObjectName], settled_before: Any) -> Any:
    """Select the work items that may still write a reference."""
    recent = (WorkItemRow.state != ItemState.SETTLED) | (WorkItemRow.settled_at >= settled_before)
    return select(WorkItemRow.id).where(WorkItemRow.id.in_({name.item_id for name in names}), recent)


def _names(keys: Iterable[str]) -> Iterator[ObjectName]:
    for key in keys:
        try:
            yield ObjectName.parse(key)
        except Violation:
            log.warning("xcom_sweep.unknown_object", key=key[:200])
