"""Deployment in waves: the canary first, and a wave that fails is rolled back by itself."""

from __future__ import annotations

import pytest
from tests.unit.ci.tree import digest

from airbridge.ci.exceptions import CiError, RolloutFailed
from airbridge.ci.rollout import plan
from airbridge.ci.rollout.deployment import Rollout
from airbridge.ci.rollout.plan import Step
from airbridge.ci.rollout.testing import Behaviour, Fleet

OLD, NEW = digest(1), digest(2)
REGIONS = ("eu-west-1", "ap-southeast-2", "us-west-2")
STEP = Step(
    follows="staging",
    waves=(("ap-southeast-2",), ("eu-west-1",)),
    ready_minutes=5,
    watch_minutes=10,
    error_budget=0.05,
)


def fleet(refusing: tuple[tuple[str, str], ...] = (), **behaviours: Behaviour) -> Fleet:
    """Three regions on the old image; `behaviours` of the new one by region, with underscores."""
    named = {(region.replace("_", "-"), NEW): behaviour for region, behaviour in behaviours.items()}
    return Fleet(dict.fromkeys(REGIONS, OLD), named, refusing)


def rollout(simulated: Fleet, step: Step = STEP) -> Rollout:
    """From OLD to NEW."""
    said: list[str] = []
    return Rollout(simulated, simulated, step, OLD, NEW, simulated.now, simulated.sleep, said.append)


def test_waves_go_one_by_one_and_end_on_the_new_image() -> None:
    """Control plane, canary, second wave, then the regions that no wave names."""
    simulated = fleet()
    results = rollout(simulated).run(REGIONS)
    assert [result.regions for result in results] == [("ap-southeast-2",), ("eu-west-1",), ("us-west-2",)]
    assert [stack for stack, _ in simulated.deployed] == [
        "control-plane",
        "edge-ap-southeast-2",
        "edge-eu-west-1",
        "edge-us-west-2",
    ]
    assert all({NEW} == simulated.running(region) for region in REGIONS)
    assert len(simulated.drained) == 6


def test_old_workers_are_drained_only_when_new_ones_take_work() -> None:
    """A region is never without a healthy worker."""
    simulated = fleet()
    seen: list[set[str]] = []
    move = rollout(simulated)
    drain = simulated.drain
    simulated.drain = lambda worker, comment: (
        seen.append(simulated.running("eu-west-1")),
        drain(worker, comment),
    )[1]  # type: ignore[method-assign]
    move.run(("eu-west-1",))
    assert seen
    assert all(NEW in running for running in seen)


@pytest.mark.parametrize(
    ("behaviour", "says"),
    [
        (Behaviour(comes_up=False), "no healthy worker"),
        (Behaviour(boot_seconds=600), "no healthy worker"),
        (Behaviour(share_failed=0.5), "tasks failed since the wave began"),
        (Behaviour(beats_for_seconds=120), "are unhealthy"),
    ],
)
def test_a_failing_canary_is_rolled_back_and_nothing_else_begins(behaviour: Behaviour, says: str) -> None:
    """Workers that never come, come late, fail their tasks or fall silent: back to the old image, alone."""
    simulated = fleet(ap_southeast_2=behaviour)
    move = rollout(simulated)
    with pytest.raises(RolloutFailed) as caught:
        move.run(REGIONS)
    assert says in str(caught.value)
    assert [(result.outcome, result.regions) for result in move.results] == [
        ("rolled back", ("ap-southeast-2",))
    ]
    touched = {stack for stack, _ in simulated.deployed}
    assert touched == {"control-plane", "edge-ap-southeast-2"}
    assert simulated.deployed[-1] == ("edge-ap-southeast-2", OLD)
    simulated.sleep(120)
    assert {OLD} == simulated.running("ap-southeast-2")
    assert {OLD} == simulated.running("eu-west-1")


def test_a_later_wave_that_fails_leaves_the_earlier_ones_on_the_new_image() -> None:
    """What has proved itself stays."""
    simulated = fleet(eu_west_1=Behaviour(share_failed=0.2))
    move = rollout(simulated)
    with pytest.raises(RolloutFailed):
        move.run(REGIONS)
    assert [result.outcome for result in move.results] == ["done", "rolled back"]
    assert {NEW} == simulated.running("ap-southeast-2")


def test_a_stack_that_cannot_be_applied_is_rolled_back() -> None:
    """cdktf's failure counts as the wave's."""
    simulated = fleet(refusing=(("edge-ap-southeast-2", NEW),))
    with pytest.raises(RolloutFailed, match="could not be applied"):
        rollout(simulated).run(REGIONS)
    assert simulated.deployed[-1] == ("edge-ap-southeast-2", OLD)


def test_a_way_back_that_fails_is_said_loudly() -> None:
    """Neither forth nor back: the outcome is 'stuck', with both errors."""
    simulated = fleet(refusing=(("edge-ap-southeast-2", NEW), ("edge-ap-southeast-2", OLD)))
    move = rollout(simulated)
    with pytest.raises(RolloutFailed, match="the way back failed too"):
        move.run(REGIONS)
    assert move.results[-1].outcome == "stuck"


def test_a_first_release_drains_nobody() -> None:
    """There is no image before it: the workers that have just begun are not told to go."""
    simulated = Fleet(dict.fromkeys(REGIONS, NEW), {}, ())
    said: list[str] = []
    first = Rollout(simulated, simulated, STEP, NEW, NEW, simulated.now, simulated.sleep, said.append)
    assert ["done"] * 3 == [result.outcome for result in first.run(REGIONS)]
    assert not simulated.drained


def test_failures_within_the_budget_do_not_stop_a_wave() -> None:
    """A task may fail for its own reasons."""
    simulated = fleet(ap_southeast_2=Behaviour(share_failed=0.03))
    assert len(rollout(simulated).run(REGIONS)) == 3


def test_the_plan_is_one_chain() -> None:
    """Order, waves and what is wrong with a plan that is none."""
    text = '[environment.a]\n[environment.b]\nfollows = "a"\n[environment.c]\nfollows = "b"\n'
    assert plan.parse(text).order() == ("a", "b", "c")
    assert Step(waves=(("x", "gone"),)).waves_of(("x", "y", "z")) == (("x",), ("y", "z"))
    for wrong, says in (
        ('[environment.a]\nfollows = "b"\n[environment.b]\nfollows = "a"\n', "must follow none"),
        ('[environment.a]\n[environment.b]\nfollows = "c"\n', "one chain"),
        ("[environment.a]\nsoak = 3\n", "soak"),
        ("[environment.a]\nerror_budget = 1.5\n", "error_budget"),
        ("nothing", "rollout.toml"),
    ):
        with pytest.raises(CiError, match=says):
            plan.parse(wrong)
