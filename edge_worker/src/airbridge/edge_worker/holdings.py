"""What the worker holds: each granted work item, what its task said, and how far that has come."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

from airbridge.edge_worker.frames import Call
from airbridge.edge_worker.journal_rows import GrantState, Key, key
from airbridge.executor.protocol import Grant, LeaseRef, Record, RecordResult, RefusalReason


@dataclass(eq=False)
class Entry:
    """A record on its way to the gateway. Reads are entries too, in order among the writes, but are not journalled."""

    record: Record
    write: bool
    final: bool = False
    due_at: float = 0.0
    """When to send it though nothing urgent follows (`Clock.elapsed`)."""
    durable: bool = False
    waiter: asyncio.Future[RecordResult] | None = None

    @property
    def abandoned(self) -> bool:
        """Whether it is a read that nobody waits for any more."""
        return not self.write and (self.waiter is None or self.waiter.cancelled())

    def answer(self, result: RecordResult) -> None:
        """Wake who waits for it."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(result)


@dataclass(frozen=True)
class Stop:
    """Why a task is being stopped. `report` if the control plane still wants to hear how it ended: it did not ask."""

    reason: RefusalReason
    detail: str
    report: bool


@dataclass(eq=False)
class Holding:
    """One work item under one epoch."""

    grant: Grant
    state: GrantState = GrantState.CLAIMED
    seq: int = 0
    """The last write's."""
    outbox: deque[Entry] = field(default_factory=deque)
    in_flight: bool = False
    alone: bool = False
    """Its records are sent one at a time and without company: a request that carried them was refused as a whole."""
    finished: bool = False
    """Its final state is in the outbox, or was answered."""
    committed: bool = False
    """The gateway answered its final state."""
    fenced: RefusalReason | None = None
    stop: Stop | None = None
    starting: bool = False
    """It has a slot, and its code is being fetched or its process forked."""
    ended: bool = False
    """Nothing runs for it any more."""
    contact_at: float | None = None
    """When the control plane last knew that we hold it (`Clock.elapsed`)."""

    @property
    def key(self) -> Key:
        """The item and its epoch."""
        return key(self.grant.item_id, self.grant.epoch)

    @property
    def occupies(self) -> bool:
        """Whether it takes slots: something runs for it, or is about to."""
        return not self.ended and (self.starting or self.state is not GrantState.CLAIMED)

    @property
    def leased(self) -> bool:
        """Whether its lease is still to be renewed: its outcome is not settled."""
        return not self.committed and self.fenced is None and not (self.stop and not self.stop.report)

    @property
    def done(self) -> bool:
        """Whether nothing is left to do or to say."""
        return self.ended and not self.outbox and not self.in_flight

    def record(self, call: Call, at: datetime, *, write: bool) -> Record:
        """Return the next record; a write takes the next seq, a read only stands behind the writes."""
        number = self.seq + 1
        if write:
            self.seq = number
        return Record.model_validate(
            {
                "item_id": self.grant.item_id,
                "epoch": self.grant.epoch,
                "seq": number,
                "method": call.method,
                "path": call.path.lstrip("/"),
                "query": call.query,
                "body": call.body,
                "recorded_at": at,
            }
        )


class Holdings:
    """All of them."""

    def __init__(self, slots: int, prefetch: int = 0) -> None:
        self.slots = slots
        self.prefetch = prefetch
        self._by_key: dict[Key, Holding] = {}
        self._changed = asyncio.Event()

    def __iter__(self) -> Iterator[Holding]:
        return iter([*self._by_key.values()])

    def __len__(self) -> int:
        return len(self._by_key)

    def get(self, at: Key) -> Holding | None:
        """Return the holding of this item and epoch."""
        return self._by_key.get(at)

    def epoch_of(self, item_id: str) -> int:
        """Return the highest epoch under which the item is held; 0 if it is not."""
        return max((epoch for item, epoch in self._by_key if item == item_id), default=0)

    def add(self, holding: Holding) -> None:
        """Hold it."""
        self._by_key[holding.key] = holding
        self.notify()

    def remove(self, holding: Holding) -> None:
        """Hold it no longer."""
        self._by_key.pop(holding.key, None)
        self.notify()

    def slots_of(self, slots: int) -> int:
        """Return how many slots a task that wants `slots` takes here: all of them, if it wants more than there are."""
        return min(slots, self.slots)

    @property
    def used(self) -> int:
        """Slots that running tasks take, and those about to run."""
        return sum(self.slots_of(one.grant.slots) for one in self._by_key.values() if one.occupies)

    @property
    def held(self) -> int:
        """Slots that tasks running and waiting to run take."""
        return sum(self.slots_of(one.grant.slots) for one in self._by_key.values() if not one.ended)

    @property
    def room(self) -> int:
        """Slots' worth of work that may still be claimed."""
        return self.slots + self.prefetch - self.held

    @property
    def leases(self) -> tuple[LeaseRef, ...]:
        """Every lease to renew."""
        return tuple(
            LeaseRef(item_id=one.grant.item_id, epoch=one.grant.epoch)
            for one in self._by_key.values()
            if one.leased
        )

    @property
    def running(self) -> list[Holding]:
        """Those with a process, or about to have one."""
        return [one for one in self if one.occupies]

    @property
    def unstarted(self) -> list[Holding]:
        """Those that wait for a slot, in the order they were granted."""
        return [one for one in self if not one.occupies and not one.ended]

    def notify(self) -> None:
        """Wake who waits for a change."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def changed(self) -> None:
        """Return at the next change."""
        await self._changed.wait()
