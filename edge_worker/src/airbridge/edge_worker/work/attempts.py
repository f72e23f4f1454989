"""Attempts: the work items that the worker holds, each under an epoch, with their phase and their unanswered records."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final

from airbridge.core.protocol import Grant, LeaseRef, Record, RecordResult, RefusalReason
from airbridge.edge_worker.journal.rows import Key, key
from airbridge.edge_worker.proxy.protocol import Call


class Phase(StrEnum):
    """Progress of an attempt on this worker."""

    #: Waits for a slot.
    CLAIMED = "claimed"
    #: Has a slot; its code is being fetched or its process forked.
    STARTING = "starting"
    #: Journalled as started: it never starts again under this epoch.
    STARTED = "started"
    #: Goes back to the queue unstarted (drain).
    RELEASING = "releasing"
    #: Nothing runs for it any more; records may still be unanswered.
    ENDED = "ended"


_NEXT_PHASES: Final = {
    Phase.CLAIMED: {Phase.STARTING, Phase.RELEASING, Phase.ENDED},
    Phase.STARTING: {Phase.STARTED, Phase.ENDED},
    Phase.STARTED: {Phase.ENDED},
    # Back to CLAIMED if the gateway was out of reach: the next start of the worker takes it up from the journal.
    Phase.RELEASING: {Phase.CLAIMED, Phase.ENDED},
    # A hard stop may end what a drain is releasing; both then report the end.
    Phase.ENDED: {Phase.ENDED},
}


# A trigger whose host has ended starts again in another. A task never does.
_OF_TRIGGERS: Final = {Phase.STARTING: {Phase.CLAIMED}, Phase.STARTED: {Phase.CLAIMED}}


class Outcome(StrEnum):
    """Progress of an attempt's final state towards the control plane."""

    #: There is no final state yet.
    OPEN = "open"
    #: The final state is recorded, and not answered.
    PENDING = "pending"
    #: The gateway has answered the final state.
    COMMITTED = "committed"
    #: The control plane has given the attempt up; nothing that it reports counts.
    FENCED = "fenced"


_NEXT_OUTCOMES: Final = {
    Outcome.OPEN: {Outcome.PENDING, Outcome.FENCED},
    Outcome.PENDING: {Outcome.PENDING, Outcome.COMMITTED, Outcome.FENCED},
    # Final for the attempt: a write after the final state may still be refused, which undoes nothing.
    Outcome.COMMITTED: set(),
    Outcome.FENCED: set(),
}


@dataclass(eq=False)
class Entry:
    """A record on its way to the gateway. Reads are entries too, in order among the writes, but are not journalled."""

    record: Record
    write: bool
    final: bool = False
    #: Time (`Clock.elapsed`) at which it is sent even if nothing urgent follows.
    due_at: float = 0.0
    durable: bool = False
    waiter: asyncio.Future[RecordResult] | None = None

    @property
    def abandoned(self) -> bool:
        """Return whether it is a read whose caller has stopped waiting."""
        return not self.write and (self.waiter is None or self.waiter.cancelled())

    def answer(self, result: RecordResult) -> None:
        """Pass the result to the waiting caller, if there is one."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(result)


@dataclass(frozen=True)
class Stop:
    """Reason for stopping a task. `report` if the worker itself stops it, so that the control plane needs the outcome."""

    reason: RefusalReason
    detail: str
    report: bool


@dataclass(eq=False)
class Attempt:
    """One work item under one epoch."""

    grant: Grant
    phase: Phase = Phase.CLAIMED
    outcome: Outcome = Outcome.OPEN
    #: Sequence number of the last write.
    seq: int = 0
    #: The task has received the outcome of its writes up to this one (see `Record.answered`).
    answered_seq: int = 0
    #: Whether the control plane refused a write that was accepted here.
    write_refused: bool = False
    #: Writes that the gateway refused without applying the request that they were in: it does not know them.
    rejected_writes: list[str] = field(default_factory=list)
    unanswered: deque[Entry] = field(default_factory=deque)
    #: Whether a request with its records is under way; there is one at a time.
    in_flight: bool = False
    #: Whether its records are sent one by one: a request that carried them was refused as a whole.
    isolated: bool = False
    fenced: RefusalReason | None = None
    stop: Stop | None = None
    #: Time (`Clock.elapsed`) at which the control plane last confirmed the lease.
    contact_at: float | None = None
    #: Whether the control plane has refused to renew the lease: more heartbeats change nothing.
    given_up: bool = False

    def enter(self, phase: Phase) -> None:
        """Move to another phase. Raises `ValueError` for a transition that is not in the table."""
        again = _OF_TRIGGERS.get(self.phase, set()) if self.is_trigger else set()
        if phase not in _NEXT_PHASES[self.phase] | again:
            raise ValueError(f"work item {self.grant.item_id} cannot go from {self.phase} to {phase}")
        self.phase = phase

    def advance(self, outcome: Outcome) -> None:
        """Move the outcome forward; a transition that is not in the table changes nothing.

        Answers come late and out of order with the task's own calls, so those transitions are not errors.
        """
        if outcome in _NEXT_OUTCOMES[self.outcome]:
            self.outcome = outcome

    def fence(self, reason: RefusalReason | None) -> list[Entry]:
        """Give the attempt up, and return the entries that will not be sent any more: all but the reads of a cancelled task, which may need them to end."""
        self.fenced = reason
        self.advance(Outcome.FENCED)
        entries = [*self.unanswered]
        self.unanswered.clear()
        if reason is RefusalReason.CANCELLED:
            self.unanswered.extend(entry for entry in entries if not entry.write)
        return [entry for entry in entries if entry not in self.unanswered]

    def answered(self, entry: Entry, status: int) -> bool:
        """Note the answer to a write; return whether it was refused after it had been accepted here."""
        refused = status >= 300 and entry.waiter is None
        self.write_refused = self.write_refused or (refused and not entry.final)
        if not self.write_refused:
            self.answered_seq = max(self.answered_seq, entry.record.seq)
        return refused

    @property
    def key(self) -> Key:
        """Key of the work item and its epoch."""
        return key(self.grant.item_id, self.grant.epoch)

    @property
    def is_trigger(self) -> bool:
        """Return whether it is a trigger: it takes no slot, and may start again."""
        return self.grant.trigger is not None

    @property
    def waiting(self) -> bool:
        """Return whether it waits for a slot."""
        return self.phase is Phase.CLAIMED

    @property
    def occupies(self) -> bool:
        """Return whether it takes slots: something runs for it, or is about to."""
        return self.phase not in {Phase.CLAIMED, Phase.ENDED}

    @property
    def ended(self) -> bool:
        """Return whether nothing runs for it any more."""
        return self.phase is Phase.ENDED

    @property
    def finished(self) -> bool:
        """Return whether its final state is recorded."""
        return self.outcome in {Outcome.PENDING, Outcome.COMMITTED}

    @property
    def committed(self) -> bool:
        """Return whether its result stands. Calls of its callbacks may still be refused, each by itself."""
        return self.outcome is Outcome.COMMITTED

    @property
    def leased(self) -> bool:
        """Return whether its lease is still to be renewed: its outcome is not settled, or its process is being stopped.

        The control plane starts no other attempt of a cancelled task before this one is listed no more.
        """
        given_up = self.stop.reason if self.stop and not self.stop.report else self.fenced
        if given_up is not None:
            return given_up is RefusalReason.CANCELLED and self.occupies
        return self.outcome in {Outcome.OPEN, Outcome.PENDING}

    @property
    def done(self) -> bool:
        """Return whether nothing is left to run or to report."""
        return self.ended and not self.in_flight and all(entry.abandoned for entry in self.unanswered)

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
                "answered": self.answered_seq,
            }
        )


class Attempts:
    """All attempts of the worker, by key, and the slots that they take.

    `slots_for` returns what a granted task takes: more than those of its work item if what it requests exceeds those slots' share.
    """

    def __init__(
        self, slots: int, prefetch: int = 0, slots_for: Callable[[Grant], int] = lambda grant: grant.slots
    ) -> None:
        self.slots = slots
        self._slots_for = slots_for
        self.prefetch = prefetch
        self._by_key: dict[Key, Attempt] = {}
        # Those that take slots: of triggers there may be thousands.
        self._tasks: dict[Key, Attempt] = {}
        self._changed = asyncio.Event()

    def __iter__(self) -> Iterator[Attempt]:
        return iter([*self._by_key.values()])

    def __len__(self) -> int:
        return len(self._by_key)

    def get(self, at: Key) -> Attempt | None:
        """Return the attempt of this item and epoch."""
        return self._by_key.get(at)

    def epoch_of(self, item_id: str) -> int:
        """Return the highest epoch under which the item is held; 0 if it is not."""
        return max((epoch for item, epoch in self._by_key if item == item_id), default=0)

    def add(self, attempt: Attempt) -> None:
        """Add an attempt."""
        self._by_key[attempt.key] = attempt
        if not attempt.is_trigger:
            self._tasks[attempt.key] = attempt
        self.notify()

    def remove(self, attempt: Attempt) -> None:
        """Remove an attempt, if it is there."""
        self._by_key.pop(attempt.key, None)
        self._tasks.pop(attempt.key, None)
        self.notify()

    def slots_of(self, slots: int) -> int:
        """Return the slots that a task takes here: all of them if it wants more than there are."""
        return min(slots, self.slots)

    def slots_taken(self, attempt: Attempt) -> int:
        """Return the slots that a granted task takes here."""
        return self.slots_of(self._slots_for(attempt.grant))

    @property
    def used(self) -> int:
        """Slots that running tasks take, and those about to run."""
        return sum(self.slots_taken(one) for one in self._tasks.values() if one.occupies)

    @property
    def held(self) -> int:
        """Slots that tasks running and waiting to run take."""
        return sum(self.slots_taken(one) for one in self._tasks.values() if not one.ended)

    @property
    def capacity(self) -> int:
        """Slots' worth of work that may still be claimed."""
        return self.slots + self.prefetch - self.held

    @property
    def leases(self) -> tuple[LeaseRef, ...]:
        """Leases to renew."""
        return tuple(
            LeaseRef(item_id=one.grant.item_id, epoch=one.grant.epoch)
            for one in self._by_key.values()
            if one.leased
        )

    @property
    def running(self) -> list[Attempt]:
        """Tasks with a process, or about to have one."""
        return [one for one in self._tasks.values() if one.occupies]

    @property
    def unstarted(self) -> list[Attempt]:
        """Tasks that wait for a slot, in the order in which they were granted."""
        return [one for one in self._tasks.values() if one.waiting]

    @property
    def trigger_count(self) -> int:
        """Number of triggers held."""
        return len(self._by_key) - len(self._tasks)

    @property
    def triggers(self) -> list[Attempt]:
        """Triggers, those that have ended and are not reported yet included."""
        if not self.trigger_count:
            return []
        return [one for one in self if one.is_trigger]

    def notify(self) -> None:
        """Wake every caller of `changed`."""
        # A new event for later callers: clearing the old one could run before its waiters have woken.
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def changed(self) -> None:
        """Return at the next change."""
        await self._changed.wait()
