"""One gateway a module: each test brings its own workers, DAG and work items."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import structlog
from tests.integration.gateway.world import World, running
from tests.support.airflow_home import pointed_at
from tests.support.postgres import Postgres


@pytest.fixture(scope="module")
def world(
    postgres: Postgres, postgres_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """A running gateway over a fresh metadata database on Postgres."""
    # Rich tracebacks show local variables, which takes longer than a client waits.
    plain = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(
        processors=[structlog.processors.add_log_level, plain],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    )
    name = postgres.create(postgres_template)
    with (
        pointed_at(postgres.url(name)) as metadata,
        running(metadata, tmp_path_factory.mktemp("gateway")) as it,
    ):
        yield it
    postgres.drop(name)
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def _no_connection_outlives_its_test(world: World) -> Iterator[None]:
    yield
    world.close_workers()
