"""Offers of triggers to workers whose slots are all taken: they do not receive from their queue, and triggers need no slot."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import select

from airbridge.core.protocol import TRIGGERS, Heartbeat, LeaseRef, WorkerState
from airbridge.executor.ledger.models import ItemState, WorkItemRow

# Age of a message beyond which no worker seems to receive it.
OFFERED_AFTER: Final = timedelta(seconds=5)
# Leases in one answer: those of one claim.
MOST_OFFERS: Final = 100
# Seconds for which what was found for a pool is offered to its workers.
KNOWN_SECONDS: Final = 2.0


@dataclass
class Offers:
    """Finds offers, pool by pool. Safe for use by many threads."""

    monotonic: Callable[[], float] = time.monotonic
    _known: dict[tuple[str, str], tuple[float, tuple[LeaseRef, ...]]] = field(
        default_factory=dict, repr=False
    )
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def to(
        self, session: Any, place: tuple[str, str], heartbeat: Heartbeat, now: datetime
    ) -> tuple[LeaseRef, ...]:
        """Return the triggers of a pool that a worker may claim without a message; none while it has free slots."""
        full = heartbeat.slots_used >= heartbeat.slots_total
        if not full or heartbeat.state is not WorkerState.ACTIVE:
            return ()
        if TRIGGERS not in heartbeat.versions.capabilities:
            return ()
        at = self.monotonic()
        with self._lock:
            known = self._known.get(place)
        if known is None or at - known[0] >= KNOWN_SECONDS:
            known = (at, _waiting(session, place, now - OFFERED_AFTER))
            with self._lock:
                self._known[place] = known
        return known[1]


def _waiting(session: Any, place: tuple[str, str], before: datetime) -> tuple[LeaseRef, ...]:
    row = WorkItemRow
    query = (
        select(row.id, row.epoch)
        .where(
            row.state == ItemState.SENT,
            row.region == place[0],
            row.pool == place[1],
            row.trigger_id.is_not(None),
            row.sent_at < before,
        )
        .order_by(row.placed_at)
        .limit(MOST_OFFERS)
    )
    return tuple(LeaseRef(item_id=UUID(item_id), epoch=epoch) for item_id, epoch in session.execute(query))
