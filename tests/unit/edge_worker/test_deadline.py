"""When a task is stopped, killed, or not started, for lack of contact."""

from __future__ import annotations

from uuid import UUID

import pytest
from tests.unit.edge_worker.test_journal_file import grant

from airbridge.edge_worker.clock import SystemClock
from airbridge.edge_worker.deadline import Deadline, start_before, stop_after
from airbridge.edge_worker.holdings import Holding, Holdings, Stop
from airbridge.edge_worker.journal_rows import GrantState
from airbridge.executor.protocol import DisconnectPolicy


class At(SystemClock):
    """A clock that stands where it is put."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def elapsed(self) -> float:
        return self._seconds


def check(policy: DisconnectPolicy, silent: float) -> tuple[list[Stop], list[UUID]]:
    """What happens to a running task that has been out of contact for so long."""
    holding = Holding(
        grant().model_copy(update={"disconnect": policy}), state=GrantState.STARTED, contact_at=100.0
    )
    holdings = Holdings(slots=1)
    holdings.add(holding)
    stopped: list[Stop] = []
    killed: list[UUID] = []
    Deadline(
        holdings,
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
def test_a_task_is_stopped_and_at_last_killed_before_it_is_lost(
    policy: DisconnectPolicy, stopped_at: float, killed_at: float
) -> None:
    """Whatever `stop_after` says, nothing runs any more when the control plane may give the task to another."""
    assert check(policy, stopped_at - 1) == ([], [])
    stopped, killed = check(policy, stopped_at + 1)
    assert (len(stopped), killed) == (1, [])
    assert f"its stop_after is {policy.stop_after:g} s" in stopped[0].detail
    assert len(check(policy, killed_at + 1)[1]) == 1
    assert killed_at < policy.lost_after


def test_without_stop_after_a_task_runs_on() -> None:
    """However long the cut: the control plane decides what its result is worth."""
    assert check(DisconnectPolicy(lost_after=600), 10**6) == ([], [])
    assert stop_after(DisconnectPolicy(lost_after=600)) is None


def test_a_claimed_task_does_not_start_once_it_is_lost_or_would_be_stopped() -> None:
    """Up to `lost_after` without contact it starts; with a `stop_after`, up to that."""
    assert start_before(DisconnectPolicy(lost_after=600)) == 600
    assert start_before(DisconnectPolicy(lost_after=600, stop_after=60)) == 60
