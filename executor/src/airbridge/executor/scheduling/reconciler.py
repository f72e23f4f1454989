"""Reconciler: fences lost attempts, cancels what Airflow no longer wants, and keeps leased tasks' heartbeats fresh.

Every scheduler runs one. They do not block each other: rows that one has locked are skipped by the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

import structlog

from airbridge.core.protocol import ItemKind
from airbridge.executor import _airflow
from airbridge.executor.background_loop import BackgroundLoop, Pause
from airbridge.executor.ledger import clock, events, items, leases
from airbridge.executor.ledger.models import Outcome, WorkItemRow
from airbridge.executor.settings import Settings

log = structlog.get_logger(__name__)

BATCH = 100
PURGE_SECONDS = 3600.0
# A heartbeat older than this share of the scheduler's timeout is renewed.
FRESH_SHARE = 0.2


class Reconciler:
    """One scheduler's loop over the ledger and Airflow's task instances."""

    def __init__(
        self,
        *,
        settings: Settings,
        owner_job_id: int | None,
        new_session: Callable[[], AbstractContextManager[Any]],
        heartbeat_timeout: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._owner = owner_job_id
        self._new_session = new_session
        self._stale_after = timedelta(seconds=heartbeat_timeout * FRESH_SHARE)
        self._monotonic = monotonic
        self._purge_at = monotonic() + settings.reconcile_interval
        self.loop = BackgroundLoop(
            "reconciler", self._paced_turn, on_error_seconds=settings.reconcile_interval
        )

    def start(self) -> None:
        """Start the loop in a thread."""
        self.loop.start()

    def stop(self, timeout_seconds: float = 5.0) -> None:
        """End the loop after its turn."""
        self.loop.stop(timeout_seconds)

    def _paced_turn(self) -> Pause:
        self.turn()
        return Pause(self._settings.reconcile_interval)

    def turn(self) -> None:
        """Do every duty once; one that fails is logged and tried again next turn."""
        for step in (
            self.fence,
            self.cancel,
            self.restart,
            self.freshen,
            self.keep_triggerer,
            self._purge_when_due,
        ):
            try:
                step()
            except Exception:
                log.exception("reconciler.failed", step=step.__name__)

    def fence(self) -> int:
        """Fence attempts whose worker sent no heartbeat for `lost_after`; return how many."""
        fenced = 0
        while True:
            with self._new_session() as session:
                rows = leases.overdue(session, BATCH)
                for row in rows:
                    self._fence(session, row)
            fenced += len(rows)
            if len(rows) < BATCH:
                return fenced

    def _fence(self, session: Any, row: WorkItemRow) -> None:
        policy = row.disconnect
        ending = "" if policy["replace"] else "; it is not retried (replace is false)"
        known = row.detail  # set where an attempt was given up before its lease ran out
        silence = (
            f"lost: worker {row.worker_id} in {row.region} sent no heartbeat for {policy['lost_after']:g} s "
            f"(since {row.renewed_at:%Y-%m-%d %H:%M:%S} UTC)"
        )
        if row.kind == ItemKind.TRIGGER and row.outcome is None:
            leases.release_lost(session, row, known or silence)
            log.warning("trigger.lost", item_id=row.id, ti_id=row.ti_id, epoch=row.epoch, region=row.region)
            return
        detail = f"{known or silence}{ending}"
        leases.settle(session, row, Outcome.LOST, detail)
        events.record(session, "item.lost", "reconciler", row=row, reason=detail, replace=policy["replace"])
        if not policy["replace"] and row.kind == ItemKind.TASK:
            _airflow.forbid_retry(session, row.ti_id)
        log.warning("item.lost", item_id=row.id, ti_id=row.ti_id, epoch=row.epoch, worker=row.worker_id)

    def cancel(self) -> int:
        """Cancel open items whose task instance Airflow no longer has queued or running; return how many."""
        with self._new_session() as session:
            candidates = _airflow.abandoned(session, BATCH)
        if not candidates:
            return 0
        with self._new_session() as session:
            rows = leases.lock(session, candidates)
            # Checked again under the lock: the scheduler may have queued the task anew in between.
            gone = _airflow.abandoned(session, BATCH, list(rows))
            for item_id in gone:
                items.cancel(session, rows[item_id], "Airflow no longer has the task queued or running")
                log.info("item.cancelled", item_id=item_id, ti_id=rows[item_id].ti_id)
        return len(gone)

    def restart(self) -> int:
        """Queue tasks again that were cleared while they ran, once their old attempt is closed; return how many."""
        with self._new_session() as session:
            restarted = _airflow.restart_cleared(session, self._owner)
        if restarted:
            log.info("tasks.restarted", task_ids=restarted)
        return len(restarted)

    def keep_triggerer(self) -> None:
        """Keep the job that edge triggers are assigned to, so that Airflow's triggerers leave them alone."""
        with self._new_session() as session:
            _airflow.keep_edge_triggerer(session)

    def freshen(self) -> int:
        """Keep the scheduler's heartbeat timeout from failing leased tasks; return how many were renewed."""
        now = _airflow.utcnow()
        with self._new_session() as session:
            return _airflow.touch_heartbeats(session, self._owner, now, now - self._stale_after)

    def _purge_when_due(self) -> None:
        if self._monotonic() >= self._purge_at:
            self._purge_at = self._monotonic() + PURGE_SECONDS
            self.purge()

    def purge(self) -> None:
        """Delete what is older than the retention."""
        with self._new_session() as session:
            before = clock.now(session) - timedelta(days=self._settings.retention_days)
            purged, forgotten = items.purge(session, before), events.purge(session, before)
        if purged or forgotten:
            log.info("ledger.purged", items=purged, events=forgotten)
