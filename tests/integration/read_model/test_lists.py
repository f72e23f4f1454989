"""The four lists of the read model, on both databases."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.integration.read_model.conftest import Seed

from airbridge.control_plane.read_model import gateways, overview, regions, work, workers
from airbridge.control_plane.read_model.history import changes
from airbridge.control_plane.read_model.history.changes import EventFilter
from airbridge.control_plane.read_model.paging import PageRequest
from airbridge.control_plane.read_model.platform import Platform
from airbridge.control_plane.read_model.regions import Health
from airbridge.control_plane.read_model.standing import Standing
from airbridge.control_plane.read_model.work import WorkFilter
from airbridge.control_plane.read_model.workers import WorkerFilter
from airbridge.core.compatibility import Verdict
from airbridge.core.protocol import ItemKind, Versions
from airbridge.core.regions import Limit, Team
from airbridge.executor.ledger import events, items, leases
from airbridge.executor.ledger import gateways as ledger_gateways
from airbridge.executor.ledger.models import ItemState, Outcome, WorkItemRow

OLD = Versions(airbridge="0.0.9", airflow="3.0.4", task_sdk="1.0.4", python="3.11.7")


def test_an_empty_platform_has_its_regions(session: Any, platform: Platform) -> None:
    """Every region of the catalogue is listed, the home region marked, idle while it has no workers."""
    found = regions.listing(session, platform)
    assert [("us-east-1", True), ("eu-west-1", False)] == [(each.name, each.home) for each in found]
    assert {Health.IDLE} == {each.health for each in found}
    assert ["default", "gpu"] == [pool.pool for pool in found[1].pools]


def test_region_counts(session: Any, platform: Platform, seed: Seed) -> None:
    """Waiting, running, slots and standings are those of the database, and backlog per slot is waiting / slots."""
    seed.gateway()
    rows = seed.task(count=3)
    seed.worker(slots=(1, 4))
    leases.claim(session, rows[0], "worker-1", 60.0, 600.0, {})
    leases.settle(session, rows[1], Outcome.FAILED, "failed")
    session.flush()

    eu = regions.listing(session, platform)[1]
    pool = eu.pools[0]
    assert (1, 1, 4, 1) == (eu.waiting, eu.running, eu.slots, eu.slots_used)
    assert 0.25 == pool.backlog_per_slot
    assert (1, 1) == (pool.settled, pool.failed)
    assert {Standing.SERVING: 1} == pool.workers
    assert (Health.HEALTHY, 1) == (eu.health, eu.alive)


@pytest.mark.parametrize(
    ("worker", "health"),
    [
        ({}, Health.HEALTHY),
        ({"heard": timedelta(minutes=10)}, Health.CUT_OFF),
        ({"versions": OLD}, Health.NO_WORKERS),
        ({"heard": timedelta(seconds=23)}, Health.STALE),
        ({"heard": timedelta(seconds=21)}, Health.HEALTHY),
        ({"wanted": "draining"}, Health.DRAINING),
        ({"queue_error": "no credentials"}, Health.NO_QUEUE),
        ({"wanted": "revoked"}, Health.NO_WORKERS),
        ({"heard": timedelta(minutes=10), "state": "stopping"}, Health.NO_WORKERS),
    ],
)
def test_a_regions_health(
    session: Any, platform: Platform, seed: Seed, worker: dict[str, Any], health: Health
) -> None:
    """With work waiting, a region is as healthy as its only worker, and an unhealthy one has a reason."""
    seed.gateway()
    seed.task()
    seed.worker(**worker)
    eu = regions.listing(session, platform)[1]
    assert health == eu.health
    assert bool(eu.why) is (health is not Health.HEALTHY)


def waits_long(session: Any, rows: list[WorkItemRow]) -> None:
    for row in rows:
        row.placed_at -= timedelta(minutes=15)
    session.flush()


@pytest.mark.parametrize(
    "held_back",
    [
        pytest.param(
            {"limits": (Limit(name="erp", max_running=1, pools=("eu-west-1",)),)}, id="limit-of-the-pool"
        ),
        pytest.param({"limits": (Limit(name="crm", max_running=1),)}, id="limit-of-the-task"),
        pytest.param({"teams": (Team(name="default", quota={"eu-west-1": 1}),)}, id="quota"),
    ],
)
def test_work_that_is_held_back_is_no_fault(
    session: Any, platform: Platform, seed: Seed, held_back: dict[str, Any]
) -> None:
    """Work that waits for a limit or a quota does not degrade a pool with free slots; other work that waits does."""
    platform = replace(platform, catalogue=platform.catalogue.model_copy(update=held_back))
    seed.gateway()
    seed.worker()
    first, *others = seed.task(count=4)
    for row in (first, *others):
        row.limits = "crm"
    leases.claim(session, first, "worker-1", 60.0, 600.0, {})
    waits_long(session, others)
    [pool, _] = regions.listing(session, platform)[1].pools
    assert pool.health is Health.HEALTHY
    assert pool.oldest_waiting_since == others[0].placed_at
    assert pool.oldest_ready_since is None

    leases.settle(session, first, Outcome.SUCCESS)
    [pool, _] = regions.listing(session, platform)[1].pools
    assert pool.health is Health.DEGRADED
    assert pool.oldest_ready_since == others[0].placed_at


def test_draining_region_without_work(session: Any, platform: Platform, seed: Seed) -> None:
    """A drain is no fault of the region, with or without waiting work."""
    seed.gateway()
    seed.worker(wanted="draining")
    eu = regions.listing(session, platform)[1]
    assert (Health.DRAINING, "no worker takes new work: 1 draining") == (eu.health, eu.pools[0].why)


def test_queue_error_is_quoted(session: Any, platform: Platform, seed: Seed) -> None:
    """The error of a worker's poll is on the worker and its region; another worker that can receive keeps the region serving."""
    seed.gateway()
    seed.worker("worker-1", queue_error="Unable to locate credentials")
    eu = regions.listing(session, platform)[1]
    expected = "1 worker cannot receive from its queue: Unable to locate credentials"
    assert (Health.NO_QUEUE, expected, 0) == (eu.health, eu.pools[0].why, eu.slots)
    worker = workers.get(session, platform, "worker-1")
    assert worker is not None
    assert (Standing.NO_QUEUE, "Unable to locate credentials") == (worker.standing, worker.why)
    seed.worker("worker-2")
    eu = regions.listing(session, platform)[1]
    assert (Health.DEGRADED, expected, 8) == (eu.health, eu.pools[0].why, eu.slots)


def test_gateway_down_in_every_region(session: Any, platform: Platform, seed: Seed) -> None:
    """Without a gateway no region with workers is healthy, and the reason is the gateway rather than the workers."""
    seed.gateway(seen=timedelta(seconds=20))
    seed.worker()
    seed.worker("us-1", region="us-east-1", heard=timedelta(seconds=25))
    found = regions.listing(session, platform)
    assert {Health.NO_GATEWAY} == {each.health for each in found}
    assert {"no gateway has run for 20 s: workers cannot claim"} == {
        pool.why for each in found for pool in each.pools if pool.why
    }


def test_stale_worker_serves_no_more(session: Any, platform: Platform, seed: Seed) -> None:
    """After two missed heartbeats a worker is stale: its slots are not offered; later it is silent, or stopped if it announced that."""
    seed.gateway()
    seed.worker("a", heard=timedelta(seconds=23))
    seed.worker("b", heard=timedelta(seconds=91))
    seed.worker("c", heard=timedelta(seconds=23), state="stopping")
    found = workers.listing(session, platform).rows
    assert [Standing.STALE, Standing.SILENT, Standing.STOPPED] == [each.standing for each in found]
    [pool, _gpu] = regions.listing(session, platform)[1].pools
    assert (0, 0) == (pool.slots, pool.alive)
    assert {Standing.STALE: 1, Standing.SILENT: 1, Standing.STOPPED: 1} == pool.workers


def test_removed_region_is_still_shown(session: Any, platform: Platform, seed: Seed) -> None:
    """Work and workers of a region that the catalogue no longer has are not hidden."""
    seed.task(region="ap-south-1")
    found = regions.listing(session, platform)[-1]
    assert ("ap-south-1", False, 1) == (found.name, found.known, found.waiting)


def test_worker_standings(session: Any, platform: Platform, seed: Seed) -> None:
    """Each worker has one standing, with the reason in words."""
    seed.worker("a-serving")
    seed.worker("b-old", versions=OLD)
    seed.worker("c-silent", heard=timedelta(minutes=5))
    seed.worker("d-never", heard=None)
    seed.worker("e-draining", wanted="draining", comment="kernel update")
    seed.worker("f-revoked", wanted="revoked")
    found = workers.listing(session, platform).rows
    assert [
        Standing.SERVING,
        Standing.REFUSED,
        Standing.SILENT,
        Standing.SILENT,
        Standing.DRAINING,
        Standing.REVOKED,
    ] == [each.standing for each in found]
    assert "0.0.9" in found[1].why
    assert found[2].why.startswith("last heartbeat")
    assert "kernel update" == found[4].why
    assert [Verdict.ALLOW, Verdict.REFUSE] == [found[0].verdict, found[1].verdict]


def test_workers_are_filtered_and_paged(session: Any, platform: Platform, seed: Seed) -> None:
    """Filters choose, pages divide, and the total counts what was chosen."""
    for number in range(5):
        seed.worker(f"eu-{number}")
    seed.worker("us-1", region="us-east-1")
    page = workers.listing(session, platform, WorkerFilter(text="eu-"), PageRequest(2, 2))
    assert (["eu-2", "eu-3"], 5, 3) == ([each.id for each in page.rows], page.total, page.last)


def test_overdue_certificate_is_marked(session: Any, platform: Platform, seed: Seed) -> None:
    """A certificate with less than a quarter of its life left is about to end."""
    seed.worker("a", certificate=timedelta(minutes=10))
    seed.worker("b", certificate=timedelta(minutes=20))
    assert [True, False] == [each.certificate_ending for each in workers.listing(session, platform).rows]


def test_work_is_filtered_by_each_field(session: Any, seed: Seed) -> None:
    """State, region, worker, DAG and text choose work items."""
    first, second = seed.task(count=2)
    other = seed.task(region="us-east-1")[0]
    leases.claim(session, first, "worker-1", 60.0, 600.0, {})
    leases.settle(session, second, Outcome.SUCCESS, "success")
    session.flush()

    def ids(**which: Any) -> set[str]:
        return {each.id for each in work.listing(session, WorkFilter(**which)).rows}

    assert {first.id, second.id, other.id} == ids()
    assert {other.id} == ids(region="us-east-1")
    assert {first.id} == ids(state=ItemState.CLAIMED)
    assert {first.id} == ids(worker="worker-1")
    assert {second.id} == ids(open=False)
    assert {second.id} == ids(outcome="success")
    assert {first.id, second.id} == ids(dag_id=first.dag_id)
    assert {other.id} == ids(text=other.dag_id[:10])
    assert set() == ids(text="%")


def test_triggers_have_a_kind(session: Any, seed: Seed) -> None:
    """The trigger of a deferred task has a kind of its own, by which it is chosen or left out."""
    [row] = seed.task()
    leases.claim(session, row, "worker-1", 60.0, 600.0, {})
    leases.settle(session, row, Outcome.SUCCESS, "deferred")
    trigger = items.place_trigger(session, row, 4711)
    session.flush()

    def ids(kind: ItemKind | None) -> set[str]:
        return {each.id for each in work.listing(session, WorkFilter(kind=kind)).rows}

    assert {row.id} == ids(ItemKind.TASK)
    assert {trigger.id} == ids(ItemKind.TRIGGER)
    assert {row.id, trigger.id} == ids(None)
    assert {(row.id, False), (trigger.id, True)} == {
        (each.id, each.is_trigger) for each in work.listing(session).rows
    }


def test_audit_is_newest_first_and_filtered(session: Any, seed: Seed) -> None:
    """Events are found by name, by the beginning of a name, and by being about no item."""
    row = seed.task()[0]
    events.record(session, "worker.enrolled", "spiffe://x", region="eu-west-1", worker_id="w")
    session.flush()
    assert ["worker.enrolled", "item.placed"] == [each.event for each in changes.listing(session).rows]
    assert row.id == changes.listing(session, EventFilter(event="item.*")).rows[0].item_id
    assert ["worker.enrolled"] == [
        each.event for each in changes.listing(session, EventFilter(identities=True)).rows
    ]


def test_gateway_liveness_expires(session: Any, platform: Platform, seed: Seed) -> None:
    """A gateway that has not been seen for a while is not there."""
    seed.gateway()
    assert [True] == [each.alive for each in gateways.listing(session)]
    seed.gateway(seen=timedelta(seconds=13))
    assert [False] == [each.alive for each in overview.take(session, platform).gateways]


def test_stopped_gateway_is_not_up(session: Any, seed: Seed) -> None:
    """A gateway that announced its stop does not count as up for the rest of its liveness interval."""
    seed.gateway()
    ledger_gateways.left(session, "gw")
    assert [False] == [each.alive for each in gateways.listing(session)]
