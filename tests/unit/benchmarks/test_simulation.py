"""Simulation of gateways and Postgres."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest
from tests.benchmarks.sizing.cost_model import batches
from tests.benchmarks.sizing.simulation import Batch, Demand, Outcome, Platform, Service, simulate

NOTHING = Service(0.0, 0.0, 0.0, 1)
PLATFORM = Platform(
    gateways=1,
    heartbeat=Batch(Service(0.0002, 0.002, 0.002, 9), Service(0.0004, 0.0001, 0.00002, 0)),
    claim=Service(0.0006, 0.003, 0.003, 10),
    exchange=Service(0.0006, 0.003, 0.003, 10),
    claim_threads=4,
    work_threads=8,
    postgres_cores=1,
    spacing=0.05,
)


def total(counts: dict[str, int]) -> int:
    return sum(counts.values())


def test_every_request_is_answered() -> None:
    """Every request that came is answered, each once."""
    outcome = simulate(PLATFORM, Demand(100, 7), seconds=20)
    assert {"heartbeat": 2_000, "claim": 140, "exchange": 140} == outcome.arrived == outcome.answered
    assert {kind: len(seconds) for kind, seconds in outcome.seconds.items()} == outcome.arrived
    assert 0 == outcome.unanswered


def test_exchange_follows_its_claim() -> None:
    """A task's exchange is made once its claim is answered, if that is wanted."""
    outcome = simulate(PLATFORM, Demand(10, 5, exchange_follows=True), seconds=10)
    assert 50 == outcome.answered["claim"] == outcome.answered["exchange"]


def test_overload_leaves_requests_unanswered() -> None:
    """More demand than a gateway can serve leaves requests, which are counted and not lost."""
    outcome = simulate(PLATFORM, Demand(100, 500), seconds=5)
    assert outcome.unanswered > 0
    assert total(outcome.arrived) == total(outcome.answered) + outcome.unanswered
    assert outcome.gateway_busy == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(
    "busy",
    [Service(0.0, 0.01, 0.0, 1), Service(0.0, 0.0, 0.01, 1)],
    ids=["a thread of the gateway", "Postgres"],
)
def test_waits_agree_with_theory(busy: Service) -> None:
    """With one server of constant service times the mean wait is that of M/D/1: u s / (2 (1 - u))."""
    platform = replace(PLATFORM, exchange=busy, claim=NOTHING, work_threads=1_000 if busy.database else 1)
    outcome = simulate(platform, Demand(0, 70), seconds=400, warm_up=10)
    waited = statistics.fmean(outcome.seconds["exchange"]) - 0.01
    assert waited == pytest.approx(0.7 * 0.01 / (2 * 0.3), rel=0.1)


def test_busy_shares_are_what_requests_cost() -> None:
    """Cores are busy for as long as the requests take, whatever waits for whatever."""
    outcome = simulate(PLATFORM, Demand(100, 20), seconds=50)
    made = outcome.batches / 50
    assert outcome.gateway_busy == pytest.approx(made * 0.0022 + 100 * 0.0005 + 40 * 0.0036, rel=0.01)
    assert outcome.postgres_busy == pytest.approx(made * 0.002 + 100 * 0.00002 + 40 * 0.003, rel=0.01)


@pytest.mark.parametrize("rate", [1, 10, 30, 200])
def test_batches_are_as_modelled(rate: int) -> None:
    """The simulated batcher makes as many batches as the costs are computed with."""
    outcome = simulate(PLATFORM, Demand(rate, 0), seconds=200)
    assert outcome.batches == pytest.approx(batches(rate, 200), rel=0.05)


def test_more_gateways_are_less_busy() -> None:
    """More gateways never raise the share of each that is busy."""
    shares = [simulated(gateways).gateway_busy for gateways in (1, 2, 3, 4, 8)]
    assert sorted(shares, reverse=True) == shares


def simulated(gateways: int) -> Outcome:
    return simulate(replace(PLATFORM, gateways=gateways, postgres_cores=8), Demand(1_500, 5), seconds=10)


def test_heartbeats_wait_behind_claims() -> None:
    """Threads of claims share the core with the event loop: a burst of them delays heartbeats."""
    steady = simulate(PLATFORM, Demand(900, 7), seconds=20)
    burst = simulate(PLATFORM, Demand(900, 7, claims_within=0.5), seconds=20)
    assert max(burst.seconds["heartbeat"]) > 2 * max(steady.seconds["heartbeat"])


def test_others_slow_postgres() -> None:
    """What others need of Postgres's core makes requests wait."""
    alone = simulate(PLATFORM, Demand(0, 20), seconds=20)
    beside = simulate(PLATFORM, Demand(0, 20, beside=0.03), seconds=20)
    assert statistics.fmean(beside.seconds["claim"]) > 1.5 * statistics.fmean(alone.seconds["claim"])


def test_waits_of_the_network_take_no_core() -> None:
    """A round trip delays each statement and a commit the last one, and neither makes a core busy."""
    near = simulate(PLATFORM, Demand(0, 1), seconds=20)
    far = simulate(replace(PLATFORM, round_trip=0.01, commit=0.1), Demand(0, 1), seconds=20)
    longer = min(far.seconds["claim"]) - min(near.seconds["claim"])
    assert longer == pytest.approx(10 * 0.01 + 0.1, abs=1e-6)
    assert far.gateway_busy == pytest.approx(near.gateway_busy, rel=0.01)
