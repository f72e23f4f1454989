"""Placing of triggers: whether a deferred task's trigger goes to the workers of its pool, and the work item for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

import structlog
from sqlalchemy import select

from airbridge.control_plane.gateway.triggers import _airflow
from airbridge.core.catalogue import Catalogue
from airbridge.core.protocol import TRIGGERS, ItemKind, WorkerState
from airbridge.executor._airflow import edge_triggerer_id
from airbridge.executor.ledger import clock, items
from airbridge.executor.ledger.backlogs import WORKER_ALIVE_SECONDS, PoolRef
from airbridge.executor.ledger.models import WorkerRow, WorkItemRow

log = structlog.get_logger()

HOME: Final = "home"
EDGE: Final = "edge"
# Seconds for which the capabilities of a pool's workers are taken for known. A worker without them is refused at its claim.
KNOWN_SECONDS: Final = 5.0


@dataclass
class EdgeTriggers:
    """Rule of where triggers run. Safe for use by many threads."""

    enabled: bool = False
    #: ``edge`` or ``home``, by region and pool.
    places: Mapping[PoolRef, str] = field(default_factory=dict)
    alive_seconds: float = WORKER_ALIVE_SECONDS
    monotonic: Callable[[], float] = time.monotonic
    _capable: dict[PoolRef, tuple[float, bool]] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def of(cls, catalogue: Catalogue, *, enabled: bool, alive_seconds: float) -> EdgeTriggers:
        """Return the rule of a catalogue."""
        places = {(region.name, pool.name): region.triggers_of(pool) for region, pool in catalogue.places()}
        return cls(enabled, places, alive_seconds)

    def wanted(self, session: Any, row: WorkItemRow) -> bool:
        """Return whether the trigger of this task goes to its pool's workers.

        The task's own choice counts before the pool's. Without a scheduler that keeps the job of edge triggers, or with a live
        worker that cannot run them, triggers stay at home.
        """
        place = row.workload.get("trigger") or self.places.get((row.region, row.pool), HOME)
        if not self.enabled or place != EDGE or edge_triggerer_id(session) is None:
            return False
        return self._all_capable(session, (row.region, row.pool))

    def _all_capable(self, session: Any, ref: PoolRef) -> bool:
        now = self.monotonic()
        with self._lock:
            known = self._capable.get(ref)
        if known is not None and now - known[0] < KNOWN_SECONDS:
            return known[1]
        since = clock.now(session) - timedelta(seconds=self.alive_seconds)
        query = select(WorkerRow.versions).where(
            WorkerRow.region == ref[0],
            WorkerRow.pool == ref[1],
            WorkerRow.last_heartbeat_at > since,
            WorkerRow.state == WorkerState.ACTIVE,
        )
        found = [*session.scalars(query)]
        capable = bool(found) and all(TRIGGERS in versions.get("capabilities", ()) for versions in found)
        with self._lock:
            self._capable[ref] = (now, capable)
        return capable

    def place(self, session: Any, row: WorkItemRow, now: datetime | None) -> WorkItemRow | None:
        """Place the trigger that the task of this settled row is deferred on, in the transaction that deferred it."""
        job_id = edge_triggerer_id(session)
        trigger_id = _airflow.assign(session, row.ti_id, job_id) if job_id is not None else None
        if trigger_id is None:
            return None
        placed = items.place_trigger(session, row, trigger_id, at=now)
        log.info(
            "trigger.placed", item_id=placed.id, ti_id=row.ti_id, trigger_id=trigger_id, region=row.region
        )
        return placed


def is_trigger(row: WorkItemRow) -> bool:
    """Return whether a row is that of a trigger."""
    return bool(row.kind == ItemKind.TRIGGER)
