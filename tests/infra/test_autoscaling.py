"""The model of AWS's autoscaling, on the alarms and policies of the synthesised stacks."""

from __future__ import annotations

import pytest
from tests.autoscaling.model import Group, Sample, Scaler
from tests.infra.conftest import Stacks

BACKLOG, WORK = "BacklogPerSlot", "WorkPerSlot"


@pytest.fixture(scope="module")
def group(prod: Stacks) -> Group:
    """A production pool: at most 40 instances of 8 slots, ten idle minutes."""
    return Group.read(prod["edge-ap-southeast-2"], "default")


def constant(value: float, until: float) -> list[Sample]:
    return [(at, value) for at in range(0, int(until), 10)]


@pytest.mark.parametrize(
    ("capacity", "backlog", "warming", "expected"),
    [(0, 0, 0, 0), (0, 0.1, 0, 1), (0, 62, 0, 40), (5, 2, 0, 10), (38, 2, 0, 40), (5, 2, 5, 5), (7, 2, 5, 7)],
)
def test_a_pool_grows_with_its_backlog(
    group: Group, capacity: int, backlog: float, warming: int, expected: int
) -> None:
    """From zero, in steps, never over the maximum; what is warming up is counted."""
    scaler = Scaler(group, capacity)
    samples = {BACKLOG: constant(backlog, 20), WORK: constant(backlog + 1, 20)}
    for now in (0.0, 10.0):
        scaler.decide(now, samples, warming)
    assert expected == scaler.capacity


def test_backlog_scales_at_next_evaluation(group: Group) -> None:
    """Work that comes just after an evaluation is counted at the following one, ten seconds later."""
    scaler = Scaler(group, 0)
    assert [] == scaler.decide(100.0, {BACKLOG: [(99.0, 0.0)]}, 0)
    assert [] == scaler.decide(109.9, {BACKLOG: [(99.0, 0.0), (100.1, 60.0)]}, 0)
    [decision] = scaler.decide(110.0, {BACKLOG: [(99.0, 0.0), (100.1, 60.0)]}, 0)
    assert (0, 40) == (decision.before, decision.after)


def test_idle_pool_halves_to_zero(group: Group) -> None:
    """After ten minutes of spare slots an idle pool is halved each minute, to the last instance."""
    scaler = Scaler(group, 40)
    sizes = {40: 0}
    for now in range(0, 1300, 10):
        for decision in scaler.decide(float(now), {BACKLOG: constant(0, now), WORK: constant(0, now)}, 0):
            sizes[decision.after] = now
    assert [40, 20, 10, 5, 3, 2, 1, 0] == list(sizes)
    assert 600 == sizes[20]
    assert 600 + 6 * 60 == sizes[0]


def test_fully_used_pool_keeps_size(group: Group) -> None:
    """Long tasks leave no backlog; a pool that they fill does not shrink under them."""
    scaler = Scaler(group, 10)
    for now in range(0, 3600, 10):
        scaler.decide(float(now), {BACKLOG: constant(0, now), WORK: constant(0.6, now)}, 0)
    assert 10 == scaler.capacity


def test_nothing_shrinks_while_instances_warm_up(group: Group) -> None:
    """AWS starts no scale-in during a scale-out."""
    scaler = Scaler(group, 10)
    for now in range(0, 1300, 10):
        scaler.decide(float(now), {BACKLOG: constant(0, now), WORK: constant(0, now)}, 4)
    assert 10 == scaler.capacity


def test_silence_grows_nothing(group: Group) -> None:
    """A control plane that publishes nothing leaves pools as they are."""
    scaler = Scaler(group, 3)
    for now in range(0, 1300, 10):
        scaler.decide(float(now), {}, 0)
    assert 3 == scaler.capacity


def test_unknown_pool_is_named(prod: Stacks) -> None:
    """The error names the pool."""
    with pytest.raises(LookupError, match="pool 'gpu'"):
        Group.read(prod["edge-ap-southeast-2"], "gpu")
