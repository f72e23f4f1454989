"""Phases and outcomes of an attempt."""

from __future__ import annotations

import itertools
from uuid import UUID

import pytest
from tests.unit.edge_worker.test_journal_file import grant

from airbridge.core.protocol import RefusalReason, TriggerSpec
from airbridge.edge_worker.work.attempts import Attempt, Attempts, Outcome, Phase, Stop

ALLOWED = {
    ("claimed", "starting"),
    ("claimed", "releasing"),
    ("claimed", "ended"),
    ("starting", "started"),
    ("starting", "ended"),
    ("started", "ended"),
    ("releasing", "claimed"),
    ("releasing", "ended"),
    ("ended", "ended"),
}


@pytest.mark.parametrize(("before", "after"), [*itertools.product(Phase, Phase)])
def test_phase_transitions(before: Phase, after: Phase) -> None:
    """Exactly the transitions of the table are possible; others raise and change nothing."""
    attempt = Attempt(grant(), phase=before)
    if (before.value, after.value) in ALLOWED:
        attempt.enter(after)
        assert attempt.phase is after
    else:
        with pytest.raises(ValueError, match=f"from {before} to {after}"):
            attempt.enter(after)
        assert attempt.phase is before


@pytest.mark.parametrize(
    ("phase", "waiting", "occupies", "ended"),
    [
        (Phase.CLAIMED, True, False, False),
        (Phase.STARTING, False, True, False),
        (Phase.STARTED, False, True, False),
        (Phase.RELEASING, False, True, False),
        (Phase.ENDED, False, False, True),
    ],
)
def test_slots_by_phase(phase: Phase, waiting: bool, occupies: bool, ended: bool) -> None:
    """A waiting attempt takes no slot, one that is starting, started or being released does, an ended one is gone."""
    attempt = Attempt(grant(), phase=phase)
    assert (attempt.waiting, attempt.occupies, attempt.ended) == (waiting, occupies, ended)
    attempts = Attempts(slots=4)
    attempts.add(attempt)
    assert (attempts.used, attempts.held) == (int(occupies), int(not ended))
    assert attempts.capacity == 4 - int(not ended)


def test_committed_outcome_is_final() -> None:
    """A refused write after the committed final state does not undo the result."""
    attempt = Attempt(grant())
    for outcome in (Outcome.PENDING, Outcome.COMMITTED):
        attempt.advance(outcome)
        assert attempt.outcome is outcome
    attempt.fence(RefusalReason.SETTLED)
    assert attempt.outcome is Outcome.COMMITTED
    assert attempt.fenced is RefusalReason.SETTLED


def test_fenced_attempt_reports_nothing() -> None:
    """A final state that is recorded after the fence does not count, and the lease is not renewed."""
    attempt = Attempt(grant())
    attempt.fence(RefusalReason.LOST)
    attempt.advance(Outcome.PENDING)
    assert attempt.outcome is Outcome.FENCED
    assert not attempt.finished
    assert not attempt.leased


@pytest.mark.parametrize(
    ("phase", "stop", "leased"),
    [
        (Phase.ENDED, Stop(RefusalReason.LOST, "", report=True), True),
        (Phase.STARTED, Stop(RefusalReason.LOST, "", report=False), False),
        (Phase.STARTING, Stop(RefusalReason.CANCELLED, "", report=False), True),
        (Phase.STARTED, Stop(RefusalReason.CANCELLED, "", report=False), True),
        (Phase.ENDED, Stop(RefusalReason.CANCELLED, "", report=False), False),
        (Phase.CLAIMED, Stop(RefusalReason.CANCELLED, "", report=False), False),
    ],
)
def test_lease_of_stopped_attempt(phase: Phase, stop: Stop, leased: bool) -> None:
    """An attempt that the worker stopped keeps its lease until reported; a cancelled one until its process has ended."""
    assert Attempt(grant(), phase=phase, stop=stop).leased is leased


def test_cancelled_writer_keeps_its_lease() -> None:
    """A write that is refused because the task is cancelled is no proof that its process has ended."""
    attempt = Attempt(grant(), phase=Phase.STARTED)
    attempt.fence(RefusalReason.CANCELLED)
    assert attempt.leased
    attempt.enter(Phase.ENDED)
    assert not attempt.leased


def of_trigger(number: int = 1) -> Attempt:
    spec = TriggerSpec(trigger_id=number, classpath="mine.Waits")
    return Attempt(
        grant().model_copy(update={"item_id": UUID(int=100 + number), "trigger": spec, "slots": 0})
    )


def test_trigger_starts_again() -> None:
    """A trigger whose host has ended is claimed again, and not ended; a task that has started never starts again."""
    attempt = of_trigger()
    for phase in (Phase.STARTING, Phase.STARTED, Phase.CLAIMED, Phase.STARTING, Phase.CLAIMED, Phase.ENDED):
        attempt.enter(phase)
    assert attempt.ended


def test_triggers_take_no_slots() -> None:
    """Triggers are held and leased beside the tasks, and take none of their slots."""
    attempts = Attempts(slots=2)
    task = Attempt(grant().model_copy(update={"slots": 1}))
    held = [of_trigger(number) for number in range(1, 4)]
    for each in (task, *held):
        attempts.add(each)
    for each in held:
        each.enter(Phase.STARTING)
    assert (attempts.held, attempts.used, attempts.capacity) == (1, 0, 1)
    assert (attempts.running, attempts.unstarted) == ([], [task])
    assert (attempts.triggers, attempts.trigger_count) == (held, 3)
    assert len(attempts.leases) == 4
    attempts.remove(held[0])
    assert attempts.trigger_count == 2
