"""Placement of tasks, and the error for tasks that cannot be placed."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from tests.unit.executor.catalogues import catalogue

from airbridge.core import near
from airbridge.core.exceptions import ConfigurationError, PlacementError
from airbridge.executor.ledger.backlogs import Backlog
from airbridge.executor.placement.placement import Decision, Placement
from airbridge.executor.settings import Settings

SETTINGS = Settings.read(
    {"regions_file": "/r.toml", "secrets_dir": "/s", "stop_after": "500", "fallback_after": "30"}.get
)


def decide(
    queue: str | None = "default",
    config: dict[str, Any] | None = None,
    load: dict[tuple[str, str], Backlog] | None = None,
) -> Decision:
    return Placement(catalogue(), SETTINGS).decide(queue, config, load or {})


def place(queue: str | None = "default", config: dict[str, Any] | None = None, **load: Backlog) -> str:
    return str(
        decide(queue, config, {(name.replace("_", "-"), "default"): it for name, it in load.items()}).place
    )


# --- Queues


def test_unplaced_task_goes_home() -> None:
    """Airflow's default queue means: the default pool of the home region."""
    assert place("default") == "us-east-1"


def test_the_default_queue_can_be_set() -> None:
    """A deployment may send such tasks elsewhere."""
    settings = replace(SETTINGS, default_queue="gpu@eu-west-1")
    assert str(Placement(catalogue(), settings).default) == "gpu@eu-west-1"


def test_wrong_default_queue_is_refused() -> None:
    """A wrong default queue is a configuration error when the executor starts, not when a task is queued."""
    with pytest.raises(
        ConfigurationError, match=r"\[airbridge\] default_queue: .*'eu-west-2'; did you mean 'eu-west-1'"
    ):
        Placement(catalogue(), replace(SETTINGS, default_queue="eu-west-2"))


@pytest.mark.parametrize("queue", ["eu-west-1", "gpu@eu-west-1"])
def test_a_queue_names_region_and_pool(queue: str) -> None:
    """`region` is its default pool; `pool@region` is another."""
    assert place(queue) == queue


def test_airflows_default_queue_counts_unset() -> None:
    """The value of [operators] default_queue is no choice of the task's author."""
    placement = Placement(catalogue(), SETTINGS, unset_queues=("default", "main"))
    assert str(placement.decide("main", None, {}).place) == "us-east-1"


@pytest.mark.parametrize(
    ("queue", "message"),
    [
        ("eu-west-2", "queue 'eu-west-2' is served by nobody: there is no region 'eu-west-2'; did you mean 'eu-west-1'? regions: us-east-1, eu-west-1"),
        ("celery", "queue 'celery' is served by nobody: there is no region 'celery'; regions: us-east-1, eu-west-1"),
        ("gpus@eu-west-1", "region 'eu-west-1' has no pool 'gpus'; did you mean 'gpu'? its pools: default, gpu"),
        ("gpu@us-east-1", "queue 'gpu@us-east-1' is served by nobody: region 'us-east-1' has no pool 'gpu'; its pools: default"),
        ("@eu-west-1", "queue '@eu-west-1' is malformed; it must be 'region' or 'pool@region'"),
        ("gpu@", "queue 'gpu@' is malformed; it must be 'region' or 'pool@region'"),
    ],
)  # fmt: skip
def test_unserved_queue_is_refused(queue: str, message: str) -> None:
    """The message names the wrong queue and the valid ones."""
    with pytest.raises(PlacementError) as caught:
        decide(queue)
    assert message in str(caught.value)


# --- Hints


def test_a_task_goes_near_its_data() -> None:
    """The region that holds the data runs the task."""
    decision = decide(config=near("s3://eu-data/2026"))
    assert str(decision.place) == "eu-west-1"
    assert decision.why == "near s3://eu-data/2026"


def test_task_goes_to_named_region() -> None:
    """`region:NAME` is a hint too."""
    assert place(config=near("region:eu-west-1")) == "eu-west-1"


def test_an_explicit_queue_overrides_hints() -> None:
    """A queue is a demand, a hint a wish."""
    assert place("us-east-1", near("s3://eu-data")) == "us-east-1"


def test_most_of_the_data_wins() -> None:
    """Of several hints, the region that most of them point to wins."""
    assert place(config=near("s3://us-data", "s3://eu-data/a", "s3://shared/eu")) == "eu-west-1"


def test_the_earlier_hint_breaks_a_tie() -> None:
    """With as many hints for each region, the first hint counts more."""
    assert place(config=near("s3://us-data", "s3://eu-data")) == "us-east-1"
    assert place(config=near("s3://eu-data", "s3://us-data")) == "eu-west-1"


def test_replicated_data_prefers_live_workers() -> None:
    """Of regions that hold the same data, one with live workers is chosen."""
    assert place(config=near("s3://shared/both"), eu_west_1=Backlog(slots=4, workers_alive=1)) == "eu-west-1"


def test_replicated_data_prefers_shorter_wait() -> None:
    """Of regions with live workers, the one with less work for each slot is chosen."""
    busy, idle = Backlog(placed=40, slots=8, workers_alive=2), Backlog(claimed=1, slots=2, workers_alive=1)
    assert place(config=near("s3://shared/both"), us_east_1=busy, eu_west_1=idle) == "eu-west-1"


def test_pool_can_be_selected() -> None:
    """`pool` picks the pool, and leaves out regions that do not have it."""
    assert place(config=near("s3://shared/both", pool="gpu")) == "gpu@eu-west-1"


def test_region_without_workers_is_chosen() -> None:
    """Data in one region only waits for workers there: they may be scaled from zero."""
    assert place(config=near("s3://eu-data"), us_east_1=Backlog(slots=8, workers_alive=1)) == "eu-west-1"


def test_fallbacks_are_places_in_order() -> None:
    """Fallbacks keep the task's pool where the region has it, and leave out where the task is already."""
    hints = near(
        "region:eu-west-1", pool="gpu", fallback=["eu-west-1", "us-east-1", "gpu@eu-west-1"], fallback_after=5
    )
    decision = decide(config=hints)
    assert [str(each) for each in decision.fallback] == ["us-east-1"]
    assert decision.fallback_after == 5


def test_settings_fill_what_hints_leave_out() -> None:
    """Hints that a task leaves out come from the deployment's settings."""
    decision = decide()
    assert decision.fallback_after == 30
    assert (decision.disconnect.lost_after, decision.disconnect.stop_after) == (900, 500)
    assert decision.disconnect.replace is True
    assert decision.warm is True


def test_task_sets_own_disconnect_policy() -> None:
    """Every part of the policy can be set for one task; a deployment's stop_after never exceeds its lost_after."""
    policy = decide(config=near(lost_after=60, replace=False)).disconnect
    assert (policy.lost_after, policy.stop_after, policy.replace) == (60, 60, False)
    assert decide(config=near(warm=False)).warm is False


def test_other_executors_configuration_is_left_alone() -> None:
    """Keys of executor_config that are not ours do not matter."""
    assert place(config={"pod_override": object()}) == "us-east-1"


@pytest.mark.parametrize(
    ("hints", "message"),
    [
        ("eu-west-1", "executor_config['airbridge'] is 'eu-west-1'; it must be a mapping"),
        ({"naer": []}, "executor_config['airbridge']['naer'] is not known; did you mean 'near'? known hints: "),
        ({"near": "s3://eu-data"}, "executor_config['airbridge']['near'] is 's3://eu-data': must be a list; write ['s3://eu-data']"),
        ({"near": ["eu-west-1"]}, "executor_config['airbridge']['near'][0] is 'eu-west-1': must be data, such as s3://bucket/prefix, or region:NAME"),
        ({"near": ["region:"]}, "names no region; write region:NAME"),
        ({"near": ["region:eu-west-9"]}, "there is no region 'eu-west-9'; did you mean 'eu-west-1'?"),
        ({"near": ["s3://eu-dat/x"]}, "hint 's3://eu-dat/x' is data that no region holds; did you mean 's3://eu-data'?"),
        ({"fallback": ["mars"]}, "executor_config['airbridge']['fallback']: queue 'mars' is served by nobody"),
        ({"fallback_after": -1}, "executor_config['airbridge']['fallback_after'] is -1: input should be greater than 0"),
        ({"fallback_after": 1e12}, "['fallback_after'] is 1000000000000.0: input should be less than or equal to 315360000"),
        ({"fallback_after": float("inf")}, "['fallback_after'] is inf: input should be"),
        ({"disconnect": {"lost_after": 1e12}}, "['lost_after'] is 1000000000000.0: input should be less than or equal to 315360000"),
        ({"disconnect": {"stop_after": float("nan")}}, "['stop_after'] is nan: input should be"),
        ({"near": ["s3://eu-data"], "sizes": {"s3://eu-data": 1e300}}, "['sizes']['s3://eu-data'] is 1e+300: input should be less than or equal to 1073741824"),
        ({"near": ["s3://eu-data"], "hours": 1e300}, "['hours'] is 1e+300: input should be less than or equal to 87600"),
        ({"fallback_after": "soon"}, "executor_config['airbridge']['fallback_after'] is 'soon'"),
        ({"disconnect": {"lost": 3}}, "executor_config['airbridge']['disconnect']['lost'] is not known; did you mean 'lost_after'?"),
        ({"disconnect": {"stop_after": 1000}}, "['stop_after'] is 1000; it must be at most lost_after (900)"),
        ({"pool": "gpu"}, "pool 'gpu' is served by nobody: region 'us-east-1' has no pool 'gpu'"),
        ({"near": ["region:us-east-1"], "pool": "gpu"}, "region 'us-east-1' has no pool 'gpu'"),
    ],
)  # fmt: skip
def test_a_wrong_hint_is_refused(hints: Any, message: str) -> None:
    """The message names the hint, its value and what would be right."""
    with pytest.raises(PlacementError) as caught:
        decide(config={"airbridge": hints})
    assert message in str(caught.value)


def test_near_refuses_at_once() -> None:
    """A malformed hint is an error where the DAG file builds it."""
    with pytest.raises(ValueError, match="must be data, such as s3://bucket/prefix, or region:NAME"):
        near("eu-west-1")
    with pytest.raises(ValueError, match=r"must be a list; write \['us-east-1'\]"):
        near(fallback="us-east-1")


def test_near_omits_unset_fields() -> None:
    """A field that `near` is not given is left to the deployment."""
    assert near("s3://a") == {"airbridge": {"near": ["s3://a"]}}
    assert near("region:x", fallback=["y"], replace=False) == {
        "airbridge": {"near": ["region:x"], "fallback": ["y"], "disconnect": {"replace": False}}
    }


def test_protocol_imports_no_executor() -> None:
    """Importing the protocol or `near` brings in neither Airflow's models nor the ledger."""
    code = (
        "import sys; import airbridge.core.protocol; from airbridge.core import near; near('s3://a');"
        "print([m for m in sys.modules if m.startswith(('airflow', 'sqlalchemy', 'airbridge.executor.ledger'))])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


# --- Memory and processors


def sized(slots: int = 4) -> Placement:
    """The usual catalogue, whose pools' slots have 2 GiB and half a core."""
    regions = tuple(
        region.model_copy(
            update={
                "pools": tuple(
                    pool.model_copy(update={"slots": slots, "slot_memory": 2 * 2**30, "slot_cpus": 0.5})
                    for pool in region.pools
                )
            }
        )
        for region in catalogue().regions
    )
    return Placement(catalogue().model_copy(update={"regions": regions}), SETTINGS)


@pytest.mark.parametrize(
    ("config", "pool_slots", "slots"),
    [
        (near(), 1, 1),
        (near(memory="2GiB"), 1, 1),
        (near(memory="5GiB"), 1, 3),
        (near(cpus=2), 1, 4),
        (near(memory="2GiB", cpus=0.5), 3, 3),
        (near(), 9, 9),
    ],
)
def test_slots_follow_what_a_task_asks_for(config: dict[str, Any], pool_slots: int, slots: int) -> None:
    """A task that asks for more than a slot has takes more slots; what it asks for goes to the worker."""
    decision = sized().decide("default", config, {}, pool_slots)
    assert slots == decision.slots
    asked = config["airbridge"]
    assert (asked.get("cpus"), "memory" in asked) == (
        decision.resources.cpus,
        bool(decision.resources.memory),
    )


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (
            near(memory="9GiB"),
            r"memory of 9 GiB \(a slot has 2 GiB\) takes 5 slots of pool 'default', and .* has 4",
        ),
        (near(cpus=2.5), r"cpus of 2.5 \(a slot has 0.5\) takes 5 slots"),
        (
            {"airbridge": {"memory": "4G"}},
            r"\['memory'\] is '4G': must be a size, such as '4GiB'",
        ),
        ({"airbridge": {"memory": 1}}, r"\['memory'\] is 1: "),
        ({"airbridge": {"cpus": 0}}, r"\['cpus'\] is 0: "),
    ],
)
def test_task_that_fits_no_worker_is_refused(config: dict[str, Any], why: str) -> None:
    """It is refused when it is placed, and when its file is published, with the numbers; it would wait for ever."""
    with pytest.raises(PlacementError, match=why):
        sized().decide("default", config, {})


def test_pools_without_sizes_count_no_slots() -> None:
    """Where the catalogue does not say what a slot has, the worker counts for itself."""
    assert 1 == decide(config=near(memory="64GiB")).slots
