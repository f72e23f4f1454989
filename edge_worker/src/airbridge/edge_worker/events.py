"""The edge's events: what happened here, by this machine's clock, told to the control plane with the heartbeat.

They are journalled, so that a cut or a restart loses none, but never one by one: a task does not wait for its events.
What happened in the last moments before the machine died may be missing; a result never is.
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

from airbridge.edge_worker.clock import Clock
from airbridge.edge_worker.event_rows import AddEvents, DropEvents
from airbridge.edge_worker.exceptions import JournalError
from airbridge.edge_worker.journal import Journal
from airbridge.edge_worker.journal_file import Damage
from airbridge.edge_worker.journal_rows import EventRow, Key
from airbridge.executor.protocol import MAX_EVENTS, EdgeEvent

log = structlog.get_logger(__name__)

FLUSH_SECONDS: Final = 1.0
MOST_KEPT: Final = 50_000
"""About 15 MB. A cut that is longer than that many events loses the oldest ones."""
LONGEST_TEXT: Final = 300

Value = str | int | float | bool | None


class EventLog:
    """Events that the control plane has yet to take, the oldest first. For one event loop."""

    def __init__(self, journal: Journal, clock: Clock) -> None:
        self._journal = journal
        self._clock = clock
        self._kept: deque[tuple[int, EdgeEvent]] = deque(_left_over(journal.events))
        self._number = self._kept[-1][0] if self._kept else 0
        self._written = self._number
        self.dropped = 0
        self.on_note: Callable[[EdgeEvent], None] = lambda _said: None
        """Hears of every event when it happens."""
        for damage in journal.damages:
            self.journal_damaged(damage)
        journal.on_damage = self.journal_damaged

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def now(self) -> datetime:
        """This machine's time."""
        return self._clock.now()

    def note(
        self,
        event: str,
        about: Key | None = None,
        *,
        at: datetime | None = None,
        began_at: datetime | None = None,
        **detail: Value,
    ) -> None:
        """Something happened, to a work item held under an epoch or to the worker itself. Never a secret in `detail`."""
        self._number += 1
        said = EdgeEvent.model_validate(
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
        self._kept.append((self._number, said))
        self.on_note(said)
        if len(self._kept) > MOST_KEPT:
            self._drop_oldest()

    def waiting(self, limit: int = MAX_EVENTS) -> tuple[EdgeEvent, ...]:
        """Return the oldest events that are to be told."""
        return tuple(said for _, said in islice(self._kept, limit))

    def link_changed(self, up: bool, silent_seconds: float) -> None:
        """Contact with the gateway was lost, or is there again after so long."""
        if up:
            now = self._clock.now()
            self.note("link.restored", at=now, began_at=now - timedelta(seconds=silent_seconds))
        else:
            self.note("link.cut")

    def journal_damaged(self, damage: Damage) -> None:
        """The journal failed its checks, and a new one was begun."""
        aside = damage.set_aside.name if damage.set_aside else None
        self.note("journal.damaged", why=damage.reason, set_aside=aside, carried_over=damage.carried_over)

    def taken(self, told: Sequence[EdgeEvent]) -> None:
        """The control plane has taken these, which `waiting` gave."""
        names = {said.uid for said in told}
        upto = 0
        while self._kept and self._kept[0][1].uid in names:
            upto, _ = self._kept.popleft()
        if upto:
            self._written = max(self._written, upto)
            self._journal.submit(DropEvents(upto))

    async def run(self) -> None:
        """Journal what is new, about once a second, until cancelled."""
        try:
            while True:
                await asyncio.sleep(FLUSH_SECONDS)
                await self.flush()
        finally:
            await asyncio.shield(self.flush())

    async def flush(self) -> None:
        """Journal what is new. A journal that has no room for it keeps its room for results."""
        rows = [
            EventRow(number, said.model_dump_json()) for number, said in self._kept if number > self._written
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
