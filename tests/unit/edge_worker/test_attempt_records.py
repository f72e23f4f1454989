"""Records of an attempt, what is still owed for it, and the attempts of a worker together."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest
from tests.unit.edge_worker.test_journal_file import NOW, grant, record

from airbridge.core.protocol import LeaseRef, RecordResult, RefusalReason
from airbridge.edge_worker.proxy.protocol import Call
from airbridge.edge_worker.work.attempts import Attempt, Attempts, Entry, Outcome, Phase

CALL = Call(7, "PATCH", "/task-instances/x/state", "a=b", "{}")


def test_writes_are_numbered() -> None:
    """A write takes the next number; a read stands behind the writes so far and takes none."""
    attempt = Attempt(grant(epoch=3), seq=4)
    numbers = [attempt.record(CALL, NOW, write=write).seq for write in (True, False, True, False)]
    assert numbers == [5, 6, 6, 7]
    assert attempt.seq == 6


def test_record_carries_the_call() -> None:
    """The item and the epoch are the grant's; the path has no leading slash."""
    found = Attempt(grant(2, epoch=3)).record(CALL, NOW, write=True)
    assert (found.item_id, found.epoch, found.recorded_at) == (UUID(int=2), 3, NOW)
    assert (found.method, found.path, found.query, found.body) == (
        "PATCH",
        "task-instances/x/state",
        "a=b",
        "{}",
    )


def test_reads_without_waiter_are_abandoned() -> None:
    """A read whose caller is gone need not be sent; a write always has to be."""

    async def scenario() -> None:
        waiter: asyncio.Future[RecordResult] = asyncio.get_running_loop().create_future()
        read = Entry(record(1, 1), write=False, waiter=waiter)
        assert read.abandoned is False
        waiter.cancel()
        assert read.abandoned is True
        assert Entry(record(1, 1), write=False).abandoned is True
        assert Entry(record(1, 1), write=True).abandoned is False

    asyncio.run(scenario())


def test_answer_reaches_the_waiter_once() -> None:
    """The first result is the caller's; later ones, and those without a caller, go nowhere."""
    first, second = (
        RecordResult(item_id=UUID(int=1), epoch=1, seq=1, status=status) for status in (200, 409)
    )

    async def scenario() -> None:
        waiter: asyncio.Future[RecordResult] = asyncio.get_running_loop().create_future()
        entry = Entry(record(1, 1), write=False, waiter=waiter)
        entry.answer(first)
        entry.answer(second)
        assert await waiter == first
        Entry(record(1, 1), write=True).answer(first)

    asyncio.run(scenario())


def test_fence_drops_what_is_unanswered() -> None:
    """A fenced attempt sends nothing more, and gives back what it would have sent."""
    entry = Entry(record(1, 1), write=True)
    attempt = Attempt(grant(), phase=Phase.ENDED)
    attempt.unanswered.append(entry)
    assert attempt.fence(RefusalReason.LOST) == [entry]
    assert not attempt.unanswered
    assert attempt.done


def test_cancelled_attempt_keeps_its_reads() -> None:
    """The process of a cancelled attempt may need them to end; its writes are dropped."""

    async def scenario() -> None:
        write = Entry(record(1, 1), write=True)
        read = Entry(record(1, 2), write=False, waiter=asyncio.get_running_loop().create_future())
        attempt = Attempt(grant(), phase=Phase.STARTED)
        attempt.unanswered.extend([write, read])
        assert attempt.fence(RefusalReason.CANCELLED) == [write]
        assert [*attempt.unanswered] == [read]

    asyncio.run(scenario())


def test_abandoned_read_is_not_owed() -> None:
    """An attempt whose process ended while it waited for a read is done."""

    async def scenario() -> None:
        read = Entry(record(1, 1), write=False, waiter=asyncio.get_running_loop().create_future())
        attempt = Attempt(grant(), phase=Phase.ENDED)
        attempt.unanswered.append(read)
        assert not attempt.done
        assert read.waiter is not None
        read.waiter.cancel()
        assert attempt.done

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("outcome", "leased"),
    [(Outcome.OPEN, True), (Outcome.PENDING, True), (Outcome.COMMITTED, False), (Outcome.FENCED, False)],
)
def test_lease_lasts_until_outcome_is_settled(outcome: Outcome, leased: bool) -> None:
    """A final state that is recorded and not answered yet still needs the lease."""
    assert Attempt(grant(), outcome=outcome).leased is leased


def test_done_when_nothing_is_owed() -> None:
    """Nothing runs, nothing is unanswered, and no request is under way."""
    attempt = Attempt(grant(), phase=Phase.ENDED)
    assert attempt.done
    attempt.in_flight = True
    assert not attempt.done
    attempt.in_flight = False
    attempt.unanswered.append(Entry(record(1, 1), write=True))
    assert not attempt.done
    assert not Attempt(grant(), phase=Phase.STARTED).done


def test_prefetch_adds_to_capacity() -> None:
    """A worker may hold more than it has slots for; a task that wants more slots than there are takes all."""
    attempts = Attempts(slots=2, prefetch=3)
    assert attempts.capacity == 5
    attempts.add(Attempt(grant().model_copy(update={"slots": 9}), phase=Phase.STARTED))
    assert (attempts.used, attempts.held, attempts.capacity) == (2, 2, 3)


def test_attempts_found_by_item_and_epoch() -> None:
    """The same item may be held under two epochs for a moment; the highest counts."""
    attempts = Attempts(slots=2)
    old, new = Attempt(grant(1, epoch=1), phase=Phase.ENDED), Attempt(grant(1, epoch=2))
    attempts.add(old)
    attempts.add(new)
    assert (attempts.get(old.key), attempts.get(new.key), len(attempts)) == (old, new, 2)
    assert attempts.epoch_of(str(UUID(int=1))) == 2
    assert attempts.epoch_of(str(UUID(int=2))) == 0
    assert attempts.leases == tuple(LeaseRef(item_id=UUID(int=1), epoch=epoch) for epoch in (1, 2))
    attempts.remove(new)
    attempts.remove(new)
    assert [*attempts] == [old]


def test_lists_by_phase() -> None:
    """Running and unstarted attempts are listed separately, each in the order of the grants."""
    attempts = Attempts(slots=2)
    by_phase = {phase: Attempt(grant(number), phase=phase) for number, phase in enumerate(Phase, 1)}
    for attempt in by_phase.values():
        attempts.add(attempt)
    assert attempts.unstarted == [by_phase[Phase.CLAIMED]]
    assert attempts.running == [by_phase[each] for each in (Phase.STARTING, Phase.STARTED, Phase.RELEASING)]


def test_changes_wake_every_waiter() -> None:
    """Adding, removing and notifying each wake those who wait at that moment, once."""

    async def scenario() -> None:
        attempts, attempt = Attempts(slots=1), Attempt(grant())
        for change in (lambda: attempts.add(attempt), lambda: attempts.remove(attempt), attempts.notify):
            waiting = [asyncio.create_task(attempts.changed()) for _ in range(2)]
            await asyncio.sleep(0)
            assert not any(each.done() for each in waiting)
            change()
            await asyncio.wait_for(asyncio.gather(*waiting), 5)

    asyncio.run(scenario())


def test_answers_advance_until_a_refusal() -> None:
    """The task has received the outcome of its writes up to the first that was accepted here and refused there."""
    attempt = Attempt(grant())
    received = []
    for seq, status in ((1, 201), (2, 204), (3, 413), (4, 201), (5, 201)):
        attempt.answered(Entry(record(1, seq), write=True), status)
        received.append((attempt.answered_seq, attempt.write_refused))
    assert received == [(1, False), (2, False), (2, True), (2, True), (2, True)]


def test_refused_final_state_is_no_refused_write() -> None:
    """A final state that is refused fails no other write; a refusal that the task waits for is the task's to handle."""

    async def scenario() -> None:
        attempt = Attempt(grant())
        assert attempt.answered(Entry(record(1, 1), write=True, final=True), 409)
        assert not attempt.write_refused
        waiter: asyncio.Future[RecordResult] = asyncio.get_running_loop().create_future()
        assert not attempt.answered(Entry(record(1, 2), write=True, waiter=waiter), 413)
        assert (attempt.write_refused, attempt.answered_seq) == (False, 2)

    asyncio.run(scenario())
