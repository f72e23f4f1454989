"""Deployment in waves: the canary first, and a wave that fails is rolled back by itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.unit.ci.tree import digest

from airbridge.ci.exceptions import CiError, RolloutFailed
from airbridge.ci.release.pins import WorkerImages
from airbridge.ci.rollout import plan
from airbridge.ci.rollout.deployment import Rollout
from airbridge.ci.rollout.plan import Step
from airbridge.ci.rollout.pools import Pool
from airbridge.ci.rollout.testing import Behaviour, Fleet

OLD, NEW = digest(1), digest(2)
OLD_TOOLS, NEW_TOOLS = digest(11), digest(12)
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
    return Rollout(
        simulated,
        simulated,
        step,
        WorkerImages(OLD),
        WorkerImages(NEW),
        simulated.now,
        simulated.sleep,
        said.append,
    )


def test_waves_run_in_order() -> None:
    """Control plane, canary, second wave, then the regions that no wave names; all end on the new image."""
    simulated = fleet()
    results = rollout(simulated).run(REGIONS)
    assert [result.regions for result in results] == [("ap-southeast-2",), ("eu-west-1",), ("us-west-2",)]
    assert [stack for stack, _ in simulated.deployed] == [
        "foundation",
        "control-plane",
        "edge-ap-southeast-2",
        "edge-eu-west-1",
        "edge-us-west-2",
    ]
    assert all({NEW} == simulated.running(region) for region in REGIONS)
    assert len(simulated.drained) == 6


def test_old_workers_drain_after_replacements() -> None:
    """Old workers drain only after their replacements are healthy: a region is never without a healthy worker."""
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


def healthy(simulated: Fleet) -> int:
    """Return how many workers take work."""
    return sum(worker.healthy(simulated.now(), 60) for worker in simulated.workers())


@pytest.mark.parametrize("readable", [True, False])
def test_capacity_is_kept_while_workers_come_one_by_one(readable: bool) -> None:
    """Old workers drain as new ones come: a pool never has less than three quarters of the workers that took work before."""
    simulated = Fleet({"eu-west-1": OLD}, workers_per_region=8, start_interval=120)
    move = with_pools(simulated) if readable else rollout(simulated)
    seen: list[int] = []

    def sleep(seconds: float) -> None:
        seen.append(healthy(simulated))
        simulated.sleep(seconds)

    move.sleep = sleep
    [result] = move.run(("eu-west-1",))
    assert min(seen) >= 6
    assert {NEW} == simulated.running("eu-west-1")
    assert 8 == len(simulated.drained)
    assert "all workers healthy on the new digest" == result.detail


def test_groups_that_stop_replacing_end_the_wave() -> None:
    """Old workers whose places nothing takes keep working; the wave ends after `ready_minutes` without a change, and names them."""
    simulated = Fleet({"eu-west-1": OLD}, workers_per_region=4, start_interval=10_000)
    [result] = rollout(simulated).run(("eu-west-1",))
    assert "3 workers on the old digest take work until their groups have replaced them" == result.detail
    assert 4 == healthy(simulated)


def test_applies_do_not_count_as_waiting() -> None:
    """A wave of many regions is applied for longer than `ready_minutes`, which begin after the last of them."""
    regions = tuple(f"eu-west-{number}" for number in range(1, 9))
    simulated = Fleet(dict.fromkeys(regions, OLD))
    step = STEP.model_copy(update={"waves": (regions,)})
    assert ["done"] == [result.outcome for result in rollout(simulated, step).run(regions)]


@pytest.mark.parametrize(
    ("behaviour", "says"),
    [
        (Behaviour(comes_up=False), "no healthy worker"),
        (Behaviour(boot_seconds=600), "no healthy worker"),
        (Behaviour(share_failed=0.5), "tasks failed since the wave began"),
        (Behaviour(beats_for_seconds=120), "are unhealthy"),
    ],
)
def test_failing_canary_is_rolled_back(behaviour: Behaviour, says: str) -> None:
    """Workers that never start, start late, fail their tasks or go silent: the canary returns to the old
    image and no other wave begins.
    """
    simulated = fleet(ap_southeast_2=behaviour)
    move = rollout(simulated)
    with pytest.raises(RolloutFailed) as caught:
        move.run(REGIONS)
    assert says in str(caught.value)
    assert [(result.outcome, result.regions) for result in move.results] == [
        ("rolled back", ("ap-southeast-2",))
    ]
    touched = {stack for stack, _ in simulated.deployed}
    assert touched == {"foundation", "control-plane", "edge-ap-southeast-2"}
    assert simulated.deployed[-1] == ("edge-ap-southeast-2", OLD)
    simulated.sleep(120)
    assert {OLD} == simulated.running("ap-southeast-2")
    assert {OLD} == simulated.running("eu-west-1")


def test_failed_wave_keeps_earlier_waves() -> None:
    """A wave that succeeded stays on the new image."""
    simulated = fleet(eu_west_1=Behaviour(share_failed=0.2))
    move = rollout(simulated)
    with pytest.raises(RolloutFailed):
        move.run(REGIONS)
    assert [result.outcome for result in move.results] == ["done", "rolled back"]
    assert {NEW} == simulated.running("ap-southeast-2")


def test_failed_apply_is_rolled_back() -> None:
    """A failure of cdktf fails the wave, which is rolled back."""
    simulated = fleet(refusing=(("edge-ap-southeast-2", NEW),))
    with pytest.raises(RolloutFailed, match="could not be applied"):
        rollout(simulated).run(REGIONS)
    assert simulated.deployed[-1] == ("edge-ap-southeast-2", OLD)


def test_unreadable_pools_roll_back() -> None:
    """A wave whose pools cannot be read after its stacks were applied goes back; it is not left between two releases."""
    simulated = fleet()

    def unreadable(region: str) -> list[Pool]:
        raise CiError(f"the pools of {region} cannot be read: throttled")

    move = replace(rollout(simulated), pools=unreadable)
    with pytest.raises(
        RolloutFailed, match=r"the pools of ap-southeast-2 cannot be read: throttled; rolled back"
    ):
        move.run(REGIONS)
    assert simulated.running("ap-southeast-2") == {OLD}
    assert [result.outcome for result in move.results] == ["rolled back"]


def test_failed_rollback_is_reported_stuck() -> None:
    """If the rollback fails too, the outcome is 'stuck', with both errors."""
    simulated = fleet(refusing=(("edge-ap-southeast-2", NEW), ("edge-ap-southeast-2", OLD)))
    move = rollout(simulated)
    with pytest.raises(RolloutFailed, match="the way back failed too"):
        move.run(REGIONS)
    assert move.results[-1].outcome == "stuck"


def test_first_release_drains_no_worker() -> None:
    """Without an image before it, the workers that have just started are not drained."""
    simulated = Fleet(dict.fromkeys(REGIONS, NEW), {}, ())
    log: list[str] = []
    first = Rollout(
        simulated,
        simulated,
        STEP,
        WorkerImages(NEW),
        WorkerImages(NEW),
        simulated.now,
        simulated.sleep,
        log.append,
    )
    assert ["done"] * 3 == [result.outcome for result in first.run(REGIONS)]
    assert not simulated.drained


def test_failures_within_budget_are_tolerated() -> None:
    """Failed tasks within the budget do not fail a wave: a task may fail for its own reasons."""
    simulated = fleet(ap_southeast_2=Behaviour(share_failed=0.03))
    assert len(rollout(simulated).run(REGIONS)) == 3


def test_the_plan_is_one_chain() -> None:
    """A plan orders its environments as one chain, and its waves; a faulty plan is refused with the fault."""
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


def with_pools(simulated: Fleet, log: list[str] | None = None) -> Rollout:
    """From OLD to NEW, with a reader of the pools."""
    report = (log if log is not None else []).append
    old, new = WorkerImages(OLD, {"tools": OLD_TOOLS}), WorkerImages(NEW, {"tools": NEW_TOOLS})
    return Rollout(
        simulated, simulated, STEP, old, new, simulated.now, simulated.sleep, report, pools=simulated.pools
    )


def test_idle_pool_is_accepted() -> None:
    """A pool that wants no instance is done with its launch template: nothing runs the old image."""
    simulated = Fleet(dict.fromkeys(REGIONS, OLD), idle={("default", region) for region in REGIONS})
    log: list[str] = []
    assert ["done"] * 3 == [result.outcome for result in with_pools(simulated, log).run(REGIONS)]
    assert f"default@eu-west-1: idle; its next instance runs {NEW[:19]}…" in log


def test_idle_pool_needs_the_new_template() -> None:
    """A pool whose launch template still names the old image would start it again: the wave is rolled back."""
    simulated = Fleet(dict.fromkeys(REGIONS, OLD), idle={("default", "ap-southeast-2")})
    move = with_pools(simulated)
    move.pools = lambda region: [replace(pool, digest=OLD) for pool in simulated.pools(region)]
    with pytest.raises(RolloutFailed, match=r"no healthy worker on .* in default@ap-southeast-2"):
        move.run(("ap-southeast-2",))


def lending(simulated: Fleet, log: list[str] | None = None) -> Rollout:
    """From OLD to NEW, with a reader of the pools that sets their capacity too."""
    move = with_pools(simulated, log)
    move.want = simulated.want
    return move


def test_idle_pool_gets_an_instance_for_its_wave() -> None:
    """The new image is tried where there is no work; afterwards no pool wants more than before."""
    simulated = Fleet(dict.fromkeys(REGIONS, OLD), idle={("default", region) for region in REGIONS})
    log: list[str] = []
    assert ["done"] * 3 == [result.outcome for result in lending(simulated, log).run(REGIONS)]
    assert {0} == set(simulated.wanted.values())
    assert simulated.wanted.keys() == {("default", region) for region in REGIONS}
    assert "default@eu-west-1: idle; one instance for this wave" in log
    assert "default@eu-west-1: its instance is given back" in log


def test_bad_image_is_found_in_an_idle_pool() -> None:
    """An image that does not come up is rolled back at the first idle pool, which gives its instance back."""
    bad = {("ap-southeast-2", NEW): Behaviour(comes_up=False)}
    simulated = Fleet(dict.fromkeys(REGIONS, OLD), bad, idle={("default", "ap-southeast-2")})
    with pytest.raises(RolloutFailed, match=r"no healthy worker on .* in default@ap-southeast-2"):
        lending(simulated).run(REGIONS)
    assert {("default", "ap-southeast-2"): 0} == simulated.wanted


def test_pool_that_has_grown_keeps_its_instances() -> None:
    """Work that came during the wave needs the instances that the pool's own scaling added."""
    simulated = Fleet(dict.fromkeys(REGIONS, OLD), idle={("default", "us-west-2")})
    move = lending(simulated)

    def grow(pool: Pool, instances: int) -> None:
        simulated.want(pool, instances + 2)

    move.want = grow
    move.run(("us-west-2",))
    assert {("default", "us-west-2"): 3} == simulated.wanted


def test_instance_that_cannot_be_given_back_is_reported() -> None:
    """The rollout is done, whatever the cloud says then: the pool's own scaling takes an idle instance away."""
    simulated = Fleet(dict.fromkeys(REGIONS, OLD), idle={("default", "us-west-2")})
    log: list[str] = []
    move = lending(simulated, log)

    def once(pool: Pool, instances: int) -> None:
        if instances == 0:
            raise CiError("throttled")
        simulated.want(pool, instances)

    move.want = once
    assert ["done"] == [result.outcome for result in move.run(("us-west-2",))]
    assert "default@us-west-2: throttled" in log


def test_canary_capacity_is_a_choice() -> None:
    """Without it, an idle pool stays as it is."""
    simulated = Fleet(dict.fromkeys(REGIONS, OLD), idle={("default", "us-west-2")})
    move = lending(simulated)
    move.step = STEP.model_copy(update={"canary_capacity": False})
    move.run(REGIONS)
    assert {} == simulated.wanted


def test_slow_image_is_rolled_back() -> None:
    """Tasks that succeed, and take three times as long as before, end the canary's wave."""
    simulated = fleet(ap_southeast_2=Behaviour(slowdown=3.0))
    with pytest.raises(
        RolloutFailed, match=r"tasks take 3\.0 times as long as before the wave \(median of \d+ runs\)"
    ):
        rollout(simulated).run(REGIONS)
    assert {OLD} == simulated.running("eu-west-1")


@pytest.mark.parametrize(
    "behaviour", [Behaviour(slowdown=1.9), Behaviour(slowdown=9.0, tasks_per_minute=0.0)]
)
def test_little_slower_is_accepted(behaviour: Behaviour) -> None:
    """Nor are a few runs a reason to go back."""
    simulated = fleet(ap_southeast_2=behaviour)
    assert ["done"] * 3 == [result.outcome for result in rollout(simulated).run(REGIONS)]


def test_old_worker_keeps_a_pool_from_idle() -> None:
    """A group may want no instance while an old worker still takes work: the pool is not done."""
    simulated = Fleet(dict.fromkeys(REGIONS, OLD), {("ap-southeast-2", NEW): Behaviour(comes_up=False)})
    move = with_pools(simulated)
    move.pools = lambda region: [replace(pool, wanted=0) for pool in simulated.pools(region)]
    with pytest.raises(RolloutFailed, match=r"no healthy worker on .* in default@ap-southeast-2"):
        move.run(("ap-southeast-2",))


def test_second_pool_is_waited_for() -> None:
    """A healthy worker of one pool says nothing of another pool of the region."""
    slow = {("gpu@ap-southeast-2", NEW): Behaviour(boot_seconds=600)}
    simulated = Fleet(dict.fromkeys(REGIONS, OLD), slow, pool_names=("default", "gpu"))
    with pytest.raises(RolloutFailed, match=r"no healthy worker on .* in gpu@ap-southeast-2"):
        with_pools(simulated).run(REGIONS)


def test_late_second_pool_is_in_time() -> None:
    """A second pool within `ready_minutes` holds the wave until its workers are healthy."""
    slow = {("gpu@ap-southeast-2", NEW): Behaviour(boot_seconds=200)}
    simulated = Fleet(dict.fromkeys(REGIONS, OLD), slow, pool_names=("default", "gpu"))
    assert 3 == len(with_pools(simulated).run(REGIONS))


def with_tools(**changes: object) -> Fleet:
    """Regions with a pool on the platform's image and one on the derived image `tools`."""
    fields: dict[str, object] = {
        "pool_names": ("default", "gpu"),
        "pool_images": {"gpu": "tools"},
        "derived": {"tools": OLD_TOOLS},
    }
    return Fleet(dict.fromkeys(REGIONS, OLD), **(fields | changes))  # type: ignore[arg-type]


def test_pools_move_to_their_own_images() -> None:
    """Each pool ends on its image of the new release, and the workers of both old ones are drained."""
    simulated = with_tools()
    assert ["done"] * 3 == [result.outcome for result in with_pools(simulated).run(REGIONS)]
    assert all({NEW, NEW_TOOLS} == simulated.running(region) for region in REGIONS)
    assert len(simulated.drained) == 12


def test_failing_derived_image_is_rolled_back() -> None:
    """A derived image whose workers do not start takes the whole wave back, each pool to its own old image."""
    broken = {("gpu@ap-southeast-2", NEW_TOOLS): Behaviour(comes_up=False)}
    simulated = with_tools(behaviours=broken)
    with pytest.raises(RolloutFailed, match=r"no healthy worker on .* in gpu@ap-southeast-2 \(tools\)"):
        with_pools(simulated).run(REGIONS)
    simulated.sleep(120)
    assert {OLD, OLD_TOOLS} == simulated.running("ap-southeast-2")


def test_pool_on_the_wrong_image_is_not_ready() -> None:
    """A healthy worker of the new release on the platform's image does not stand for the derived one that its pool names."""
    simulated = with_tools(pool_images={})
    move = with_pools(simulated)
    move.pools = lambda region: [
        replace(pool, image="tools") if pool.name == "gpu" else pool for pool in simulated.pools(region)
    ]
    with pytest.raises(RolloutFailed, match=r"in gpu@ap-southeast-2 \(tools\)"):
        move.run(REGIONS)


def test_pool_without_its_image_is_not_followed() -> None:
    """A pool that names an image which the release lacks takes the wave back with the image's name."""
    simulated = with_tools()
    move = with_pools(simulated)
    move.new = WorkerImages(NEW)
    move.deploy = lambda stack, images: simulated(stack, replace(images, derived={"tools": NEW_TOOLS}))
    with pytest.raises(RolloutFailed, match="the release has no image tools"):
        move.run(("ap-southeast-2",))
