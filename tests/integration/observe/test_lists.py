"""The four lists of the read model, on both databases."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from tests.integration.observe.conftest import Seed

from airbridge.control_plane.observe import audit, gateways, regions, screen, work, workers
from airbridge.control_plane.observe.audit import AuditFilter
from airbridge.control_plane.observe.paging import PageRequest
from airbridge.control_plane.observe.platform import Platform
from airbridge.control_plane.observe.regions import Health
from airbridge.control_plane.observe.work import WorkFilter
from airbridge.control_plane.observe.workers import Standing, WorkerFilter
from airbridge.executor.compatibility import Verdict
from airbridge.executor.ledger import events, items
from airbridge.executor.ledger.models import ItemState, Outcome
from airbridge.executor.protocol import Versions

OLD = Versions(airbridge="0.0.9", airflow="3.0.4", task_sdk="1.0.4", python="3.11.7")


def test_an_empty_platform_has_its_regions(session: Any, platform: Platform) -> None:
    """Every region of the catalogue is listed, the home region marked, idle while nobody is there."""
    found = regions.listing(session, platform)
    assert [("us-east-1", True), ("eu-west-1", False)] == [(each.name, each.home) for each in found]
    assert {Health.IDLE} == {each.health for each in found}
    assert ["default", "gpu"] == [pool.pool for pool in found[1].pools]


def test_a_region_counts_its_work_and_its_workers(session: Any, platform: Platform, seed: Seed) -> None:
    """Waiting, running, slots and standings are those of the database, and backlog per slot is waiting / slots."""
    rows = seed.task(count=3)
    seed.worker(slots=(1, 4))
    items.claim(session, rows[0], "worker-1", 60.0, 600.0, {})
    items.settle(session, rows[1], Outcome.FAILED, "failed")
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
        ({"wanted": "draining"}, Health.NO_WORKERS),
        ({"wanted": "revoked"}, Health.NO_WORKERS),
        ({"heard": timedelta(minutes=10), "state": "stopping"}, Health.NO_WORKERS),
    ],
)
def test_a_regions_health(
    session: Any, platform: Platform, seed: Seed, worker: dict[str, Any], health: Health
) -> None:
    """With work waiting, a region is as healthy as the one worker that it has, and says why it is not."""
    seed.task()
    seed.worker(**worker)
    eu = regions.listing(session, platform)[1]
    assert health == eu.health
    assert bool(eu.why) is (health is not Health.HEALTHY)


def test_a_region_that_left_the_catalogue_is_still_shown(
    session: Any, platform: Platform, seed: Seed
) -> None:
    """Work and workers of a region that the catalogue no longer has are not hidden."""
    seed.task(region="ap-south-1")
    found = regions.listing(session, platform)[-1]
    assert ("ap-south-1", False, 1) == (found.name, found.known, found.waiting)


def test_workers_stand_as_the_matrix_the_operator_and_their_heartbeats_say(
    session: Any, platform: Platform, seed: Seed
) -> None:
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
    assert found[2].why.startswith("last heard of")
    assert "kernel update" == found[4].why
    assert [Verdict.ALLOW, Verdict.REFUSE] == [found[0].verdict, found[1].verdict]


def test_workers_are_filtered_and_paged(session: Any, platform: Platform, seed: Seed) -> None:
    """Filters choose, pages divide, and the total counts what was chosen."""
    for number in range(5):
        seed.worker(f"eu-{number}")
    seed.worker("us-1", region="us-east-1")
    page = workers.listing(session, platform, WorkerFilter(text="eu-"), PageRequest(2, 2))
    assert (["eu-2", "eu-3"], 5, 3) == ([each.id for each in page.rows], page.total, page.last)


def test_a_certificate_that_should_have_been_renewed_is_marked(
    session: Any, platform: Platform, seed: Seed
) -> None:
    """A certificate with less than a quarter of its life left is about to end."""
    seed.worker("a", certificate=timedelta(minutes=10))
    seed.worker("b", certificate=timedelta(minutes=20))
    assert [True, False] == [each.certificate_ending for each in workers.listing(session, platform).rows]


def test_work_is_filtered_by_each_field(session: Any, seed: Seed) -> None:
    """State, region, worker, DAG and text choose work items."""
    first, second = seed.task(count=2)
    other = seed.task(region="us-east-1")[0]
    items.claim(session, first, "worker-1", 60.0, 600.0, {})
    items.settle(session, second, Outcome.SUCCESS, "success")
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


def test_audit_is_newest_first_and_filtered(session: Any, seed: Seed) -> None:
    """Events are found by name, by the beginning of a name, and by being about no item."""
    row = seed.task()[0]
    events.record(session, "worker.enrolled", "spiffe://x", region="eu-west-1", worker_id="w")
    session.flush()
    assert ["worker.enrolled", "item.placed"] == [each.event for each in audit.listing(session).rows]
    assert row.id == audit.listing(session, AuditFilter(event="item.*")).rows[0].item_id
    assert ["worker.enrolled"] == [
        each.event for each in audit.listing(session, AuditFilter(identities=True)).rows
    ]


def test_gateways_are_there_while_they_say_so(session: Any, platform: Platform, seed: Seed) -> None:
    """A gateway that has not been seen for a while is not there."""
    seed.gateway()
    assert [True] == [each.alive for each in gateways.listing(session)]
    seed.gateway(seen=timedelta(minutes=2))
    assert [False] == [each.alive for each in screen.take(session, platform).gateways]
