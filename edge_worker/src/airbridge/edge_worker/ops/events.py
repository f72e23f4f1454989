"""Events of the edge, with this machine's times, reported to the control plane with the heartbeat.

They are journalled, so that a cut or a restart loses none, but in batches: a task does not wait for its events. Events of the
last second before a crash of the machine may be missing; results never are.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import Final
from uuid import uuid4

import structlog
from pydantic import ValidationError

from airbridge.core.protocol import MAX_EVENTS, EdgeEvent
from airbridge.edge_worker.clock import Clock
from airbridge.edge_worker.exceptions import JournalError
from airbridge.edge_worker.journal.event_rows import AddEvents, DropEvents
from airbridge.edge_worker.journal.file import Damage
from airbridge.edge_worker.journal.journal import Journal
from airbridge.edge_worker.journal.rows import EventRow, Key

log = structlog.get_logger(__name__)

FLUSH_SECONDS: Final = 1.0
# Events kept during a cut, about 15 MB; the oldest are dropped beyond it.
MOST_KEPT: Final = 50_000
LONGEST_TEXT: Final = 300

Value = str | int | float | bool | None


class EventLog:
    """Events that the control plane has not acknowledged yet, the oldest first. For one event loop."""

    def __init__(self, journal: Journal, clock: Clock) -> None:
        self._journal = journal
        self._clock = clock
        self._kept: deque[tuple[int, EdgeEvent]] = deque(_left_over(journal.events))
        self._number = self._kept[-1][0] if self._kept else 0
        self._written = self._number
        self.dropped = 0
        self.on_event: Callable[[EdgeEvent], None] = lambda _event: None
        """Called with every event when it is emitted."""
        for damage in journal.damages:
            self.journal_damaged(damage)
        journal.on_damage = self.journal_damaged

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def now(self) -> datetime:
        """This machine's time."""
        return self._clock.now()

    def emit(
        self,
        event: str,
        about: Key | None = None,
        *,
        at: datetime | None = None,
        began_at: datetime | None = None,
        **detail: Value,
    ) -> None:
        """Emit an event about a work item under an epoch, or about the worker itself. `detail` must not hold secrets."""
        self._number += 1
        emitted = EdgeEvent.model_validate(
            {
                "uid": uuid4(),
                "event": event,
                "at": at or self._clock.now(),
                "began_at": began_at,
                "item_id": about[0] if about else None,
                "epoch": about[1] if about else None,
                "detail": {
                    name: value[:LONGEST_TEXT] if isinstance(value, str) else value
                    for name, value in detail.items()
                },
            }
        )
        self._kept.append((self._number, emitted))
        self.on_event(emitted)
        if len(self._kept) > MOST_KEPT:
            self._drop_oldest()

    def pending(self, limit: int = MAX_EVENTS) -> tuple[EdgeEvent, ...]:
        """Return the oldest events that are not acknowledged yet."""
        return tuple(event for _, event in islice(self._kept, limit))

    def connectivity_changed(self, up: bool, silent_seconds: float) -> None:
        """Emit that contact with the gateway was lost, or was restored after `silent_seconds`."""
        if up:
            now = self._clock.now()
            self.emit("link.restored", at=now, began_at=now - timedelta(seconds=silent_seconds))
        else:
            self.emit("link.cut")

    def journal_damaged(self, damage: Damage) -> None:
        """Emit that the journal failed its checks and was replaced by a new one."""
        aside = damage.set_aside.name if damage.set_aside else None
        self.emit("journal.damaged", why=damage.reason, set_aside=aside, carried_over=damage.carried_over)

    def acknowledge(self, events: Sequence[EdgeEvent]) -> None:
        """Drop events that the control plane has stored, which `pending` returned."""
        names = {event.uid for event in events}
        upto = 0
        while self._kept and self._kept[0][1].uid in names:
            upto, _ = self._kept.popleft()
        if upto:
            self._written = max(self._written, upto)
            self._journal.submit(DropEvents(upto))

    async def run(self) -> None:
        """Journal new events, about once a second, until cancelled."""
        try:
            while True:
                await asyncio.sleep(FLUSH_SECONDS)
                await self.flush()
        finally:
            await asyncio.shield(self.flush())

    async def flush(self) -> None:
        """Journal new events. A full journal refuses them: its last space is for results."""
        rows = [
            EventRow(number, event.model_dump_json())
            for number, event in self._kept
            if number > self._written
        ]
        if not rows:
            return
        self._written = rows[-1].number
        try:
            await self._journal.submit(AddEvents(rows))
        except JournalError as error:
            log.warning("events.not_journalled", count=len(rows), detail=str(error))

    def _drop_oldest(self) -> None:
        number, _ = self._kept.popleft()
        self.dropped += 1
        # One line and one journal operation for a thousand: dropping must not become the load itself.
        if self.dropped % 1000 == 1:
            log.warning("events.dropped", count=self.dropped)
        if number <= self._written and self.dropped % 1000 == 0:
            self._journal.submit(DropEvents(number))


def _left_over(rows: dict[int, str]) -> list[tuple[int, EdgeEvent]]:
    found = []
    for number in sorted(rows):
        try:
            found.append((number, EdgeEvent.model_validate_json(rows[number])))
        except ValidationError as error:
            log.warning("events.unreadable", number=number, detail=str(error))
    return found
