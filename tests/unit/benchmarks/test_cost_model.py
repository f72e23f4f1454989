"""Fit of costs to measured loads."""

from __future__ import annotations

import random

import pytest
from tests.benchmarks.sizing.cost_model import (
    KINDS,
    Load,
    Observation,
    batches,
    cost,
    fit,
    left_out,
    non_negative,
    unidentified,
)

COSTS = {
    "rest": 0.01,
    "worker": 1e-6,
    "batch": 0.0025,
    "heartbeat": 0.0005,
    "renewal": 0.001,
    "lease": 0.0002,
    "running": 0.0,
    "placing": 0.0,
    "claim": 0.004,
    "exchange": 0.003,
    "receive": 0.0,
}


def stage(workers: int, **more: float) -> Load:
    """Thirty seconds of a swarm: heartbeats every ten, and 200 tasks."""
    load = {"rest": 30.0, "worker": 30.0 * workers, "heartbeat": 3.0 * workers, "claim": 200, "exchange": 200}
    return Load(batch=batches(workers / 10, 30), **{**load, **more})


PHASES = [
    Load(rest=15),
    Load(rest=15, worker=750_000),
    Load(rest=10, batch=200, heartbeat=7_000),
    Load(rest=20, batch=80, heartbeat=100),
    Load(rest=10, batch=190, heartbeat=1_000, renewal=190, lease=1_000),
    Load(rest=10, batch=200, heartbeat=4_000, renewal=200, lease=4_000),
    Load(rest=2, claim=200),
    Load(rest=3, exchange=200),
]
STAGES = [stage(10), stage(100), stage(1_000), stage(10_000)]


def observed(loads: list[Load], noise: float = 0.0) -> list[Observation]:
    rng = random.Random(3)
    return [
        Observation(str(number), load, cost(COSTS, load) * (1 + rng.uniform(-noise, noise)))
        for number, load in enumerate(loads)
    ]


def test_known_costs_are_recovered() -> None:
    """Costs that made the observations are found again, those of zero as well."""
    found = fit(observed([*PHASES, *STAGES]), floor=0.1)
    assert found == pytest.approx(COSTS, rel=1e-6, abs=1e-9)


def test_noise_moves_costs_little() -> None:
    """Observations that are wrong by up to 3 % give the large costs within a tenth, and none below zero."""
    found = fit(observed([*PHASES, *STAGES], noise=0.03), floor=0.1)
    for kind in ("heartbeat", "claim", "exchange"):
        assert found[kind] == pytest.approx(COSTS[kind], rel=0.1)
    assert all(value >= 0 for value in found.values())


def test_negative_costs_become_zero() -> None:
    """Where least squares would have a negative cost, it is 0, and the others are the best without it."""
    assert non_negative([[1, 1], [1, 0]], [1.0, 2.0]) == pytest.approx([1.5, 0.0])
    assert non_negative([[1, 0], [0, 1], [1, 1]], [1.0, 2.0, 3.0]) == pytest.approx([1.0, 2.0])
    assert non_negative([[1, 2], [2, 4]], [-1.0, -2.0]) == [0.0, 0.0]


def test_stages_cannot_tell_tasks_apart() -> None:
    """Stages with the same number of tasks each leave claims, exchanges and the rest apart from nothing; phases tell them."""
    assert {"rest", "claim", "exchange"} <= set(unidentified(STAGES))
    assert [] == unidentified([*PHASES, *STAGES])


def test_prediction_is_blind() -> None:
    """The prediction of an observation does not know it: one that is ten times too high is predicted as it should be."""
    wrong = observed([*PHASES, *STAGES])
    right = wrong[-2]
    wrong[-2] = Observation(right.name, right.load, right.spent * 10)
    assert left_out(wrong, floor=0.1)[right.name] == pytest.approx(right.spent, rel=0.01)


def test_only_one_of_its_kind() -> None:
    """An observation that alone has requests of a kind is not predicted from the others."""
    observations = observed([*STAGES, stage(1_000, receive=2_000)])
    assert {"0", "1", "2", "3"} == set(left_out(observations, floor=0.1))


@pytest.mark.parametrize(("rate", "expected"), [(0, 0), (0.1, 0.1), (1, 1.0), (1_000, 20)])
def test_batches_of_a_second(rate: float, expected: float) -> None:
    """A rare heartbeat is a batch of its own; many make twenty batches a second."""
    assert batches(rate) == pytest.approx(expected, rel=0.01)


def test_load_is_scaled() -> None:
    """A load twice has twice of everything."""
    assert Load(**dict.fromkeys(KINDS, 4.0)) == Load(**dict.fromkeys(KINDS, 2.0)).times(2)
