"""Slow and hostile clients at limits that they reach: bodies, heads, readers, connections, and what is costly to parse."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from tests.integration.gateway.world import World, running
from tests.security.attacks.bogus_joins import SlowAws, bogus_iam_joins, silent_sts, slow_catalogue
from tests.security.attacks.floods import CONNECTIONS_PER_ADDRESS, FLOOD_ATTACKS, WORK_THREADS
from tests.support.airflow_home import pointed_at
from tests.support.postgres import Postgres


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
