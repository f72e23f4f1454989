"""Deadlines of a task without contact: stopped, killed, or not started."""

from __future__ import annotations

from uuid import UUID

import pytest
from tests.unit.edge_worker.test_journal_file import grant

from airbridge.core.protocol import DisconnectPolicy, RefusalReason
from airbridge.edge_worker.clock import SystemClock
from airbridge.edge_worker.work.attempts import Attempt, Attempts, Outcome, Phase, Stop
from airbridge.edge_worker.work.deadline import Deadline, contact_due, start_before, stop_after


class At(SystemClock):
    """A clock that stands where it is put."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def elapsed(self) -> float:
        return self._seconds


def check(policy: DisconnectPolicy, silent: float) -> tuple[list[Stop], list[UUID]]:
    """Check a running task that has been out of contact for so long; return the stops and kills."""
    attempt = Attempt(
        grant().model_copy(update={"disconnect": policy}), phase=Phase.STARTED, contact_at=100.0
    )
    attempts = Attempts(slots=1)
    attempts.add(attempt)
    stopped: list[Stop] = []
    killed: list[UUID] = []
    Deadline(
        attempts,
        At(100.0 + silent),
        lambda _, why: stopped.append(why),
        lambda one: killed.append(one.grant.item_id),
    ).check()
    return stopped, killed


@pytest.mark.parametrize(
    ("policy", "stopped_at", "killed_at"),
    [
        (DisconnectPolicy(lost_after=600, stop_after=120), 120, 590),
        (DisconnectPolicy(lost_after=600, stop_after=600), 580, 590),
        (DisconnectPolicy(lost_after=30, stop_after=30), 24, 27),
    ],
)
def test_task_is_killed_before_lost_after(
    policy: DisconnectPolicy, stopped_at: float, killed_at: float
) -> None:
    """A task is stopped, then killed, before the control plane may give it to another worker, for any `stop_after`."""
    assert check(policy, stopped_at - 1) == ([], [])
    stopped, killed = check(policy, stopped_at + 1)
    assert (len(stopped), killed) == (1, [])
    assert f"its stop_after is {policy.stop_after:g} s" in stopped[0].detail
    assert len(check(policy, killed_at + 1)[1]) == 1
    assert killed_at < policy.lost_after


def test_without_stop_after_task_runs_on() -> None:
    """Without `stop_after` a task runs on however long the cut: the control plane decides about its result."""
    assert check(DisconnectPolicy(lost_after=600), 10**6) == ([], [])
    assert stop_after(DisconnectPolicy(lost_after=600)) is None


def test_start_limit_without_contact() -> None:
    """A claimed task starts up to `lost_after` without contact; with a `stop_after`, up to that."""
    assert start_before(DisconnectPolicy(lost_after=600)) == 600
    assert start_before(DisconnectPolicy(lost_after=600, stop_after=60)) == 60


@pytest.mark.parametrize(
    ("policy", "due"),
    [
        (DisconnectPolicy(lost_after=900), 550.0),
        (DisconnectPolicy(lost_after=900, stop_after=20), 110.0),
    ],
)
def test_contact_is_due_at_half(policy: DisconnectPolicy, due: float) -> None:
    """Contact is due at half of the silence that the policy allows; never for work that is given up."""
    item = grant().model_copy(update={"disconnect": policy})
    assert contact_due(Attempt(item, phase=Phase.STARTED, contact_at=100.0)) == due
    assert contact_due(Attempt(item, phase=Phase.CLAIMED)) is None
    stop = Stop(RefusalReason.LOST, "no contact", report=True)
    given_up = ({"given_up": True}, {"fenced": RefusalReason.CANCELLED}, {"outcome": Outcome.COMMITTED})
    for change in ({"stop": stop}, *given_up):
        attempt = Attempt(item, phase=Phase.STARTED, contact_at=100.0, **change)  # type: ignore[arg-type] # each its own
        assert contact_due(attempt) is None
