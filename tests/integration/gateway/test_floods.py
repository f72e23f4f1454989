"""Slow and hostile clients at limits that they reach: bodies, heads, readers, connections, and what is costly to parse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import pytest
from tests.integration.gateway.world import SLOW_PUSHES, World, running, xcom
from tests.security.attacks.bogus_joins import SlowAws, bogus_iam_joins, silent_sts, slow_catalogue
from tests.security.attacks.floods import CONNECTIONS_PER_ADDRESS, FLOOD_ATTACKS, WORK_THREADS
from tests.support.airflow_home import pointed_at
from tests.support.postgres import Postgres

from airbridge.control_plane.gateway.threads import OPERATOR_THREADS
from airbridge.executor.ledger import leases


@pytest.fixture(scope="module")
def world(
    postgres: Postgres, postgres_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """A gateway without rates, so that the attacks reach the limits behind them."""
    name = postgres.create(postgres_template)
    with (
        pointed_at(postgres.url(name)) as metadata,
        running(
            metadata,
            tmp_path_factory.mktemp("gateway"),
            gateway_threads=WORK_THREADS,
            gateway_requests_per_second=0.0,
            gateway_max_connections_per_address=CONNECTIONS_PER_ADDRESS,
        ) as it,
    ):
        yield it
    postgres.drop(name)


@pytest.mark.parametrize("attack", FLOOD_ATTACKS, ids=lambda attack: attack.__name__)
def test_flood(world: World, attack: Callable[[World], None]) -> None:
    """Workers and operators are served at the first try; what is refused costs little."""
    attack(world)


def test_joins_that_wait_for_aws(
    postgres: Postgres, postgres_template: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Joins by role wait in threads of their own."""
    name = postgres.create(postgres_template)
    with (
        silent_sts() as sts,
        pointed_at(postgres.url(name)) as metadata,
        running(
            metadata,
            tmp_path_factory.mktemp("gateway"),
            slow_catalogue(sts),
            gateway_requests_per_second=0.0,
        ) as world,
    ):
        bogus_iam_joins(SlowAws(world, sts))
        world.close_workers()
    postgres.drop(name)


def test_claims_do_not_wait_behind_results(world: World) -> None:
    """A result that waits for a locked row holds its thread, and a claim is granted meanwhile."""
    held, free = world.items(count=2)
    reporting, claiming = world.worker(), world.worker()
    grant = reporting.grant(held)
    with world.metadata.session() as session, ThreadPoolExecutor(1) as threads:
        leases.lock(session, [held])
        waits = threads.submit(reporting.exchange, xcom(grant, 1, "k", "1"))
        with pytest.raises(TimeoutError):
            waits.result(timeout=0.5)
        assert claiming.grant(free).item_id == UUID(free)
        session.rollback()
        assert [each.status for each in waits.result(timeout=10).results] == [201]


def test_revocations_do_not_wait_behind_pushes(world: World) -> None:
    """As many slow pushes as operators have threads: a worker is revoked meanwhile."""
    worker = world.worker()
    token = world.access_token("dags:push", "workers:revoke")
    SLOW_PUSHES.clear()
    with ThreadPoolExecutor(OPERATOR_THREADS) as threads, world.operator(token) as operator:
        operator.timeout = 60
        pushes = [
            threads.submit(operator.put, f"/operator/v1/dags/bundle-{n}", content=b"slow")
            for n in range(OPERATOR_THREADS)
        ]
        try:
            with pytest.raises(TimeoutError):
                pushes[0].result(timeout=1)
            revoked = operator.post(
                f"/operator/v1/workers/{worker.name.worker}/revoke", json={"comment": "x"}, timeout=5
            )
            assert revoked.status_code == 200
        finally:
            SLOW_PUSHES.set()
        assert [each.result(timeout=10).status_code for each in pushes] == [200] * OPERATOR_THREADS
