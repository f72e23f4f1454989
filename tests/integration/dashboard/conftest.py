"""One api-server a module, over a platform that was written into its database."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from tests.support import api_server, fleet
from tests.support.airflow_home import Metadata, pointed_at
from tests.support.api_server import ApiServer
from tests.support.fleet import Fleet
from tests.support.postgres import Postgres


@dataclass(frozen=True)
class Site:
    """The server, what its database holds, and the database itself."""

    server: ApiServer
    fleet: Fleet
    metadata: Metadata


@pytest.fixture(scope="module")
def site(
    postgres: Postgres, postgres_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """A real api-server with users of every role."""
    name = postgres.create(postgres_template)
    directory = tmp_path_factory.mktemp("dashboard")
    with pointed_at(postgres.url(name)) as metadata:
        with metadata.session() as session:
            written = fleet.seed(session)
        settings = fleet.settings(directory)
        with api_server.serve(postgres.url(name), directory / "home", settings=settings) as server:
            yield Site(server, written, metadata)
    postgres.drop(name)
