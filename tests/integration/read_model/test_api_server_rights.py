"""Every page of the dashboard, read with the database rights of the api-server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text
from tests.integration.read_model.conftest import Seed
from tests.support.airflow_home import Metadata

from airbridge.control_plane.read_model import gateways, overview, regions, tasks, work, workers
from airbridge.control_plane.read_model.history import audit_log, changes
from airbridge.control_plane.read_model.platform import Platform
from airbridge.executor.ledger.audit import Filter
from airbridge.executor.service_secrets import Service

READS: dict[str, Callable[[Any, Platform], Any]] = {
    "overview": overview.take,
    "regions": regions.listing,
    "workers": workers.listing,
    "work": lambda session, platform: work.listing(session, work.WorkFilter()),
    "gateways": lambda session, platform: gateways.listing(session),
    "changes": lambda session, platform: changes.listing(session),
    "audit": lambda session, platform: audit_log.listing(session, Filter()),
    "missing": lambda session, platform: tasks.missing(session, "dag", "run", "task"),
}


@pytest.mark.parametrize("page", READS)
def test_page_is_readable(postgres_metadata: Metadata, platform: Platform, page: str) -> None:
    """The api-server's role has the rights that the page needs."""
    with postgres_metadata.session() as session:
        seed = Seed(session)
        seed.worker()
        seed.task()
        session.flush()
        session.execute(text(f"SET LOCAL ROLE {Service.API_SERVER.role}"))
        READS[page](session, platform)
        session.rollback()
