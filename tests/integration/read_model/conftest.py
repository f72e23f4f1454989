"""The read model over a real metadata database, seeded as the scheduler, the gateway and the workers would."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.integration.gateway import seeding
from tests.integration.gateway.world import CATALOGUE, VERSIONS
from tests.support.airflow_home import Metadata

from airbridge.control_plane.parity import Parity
from airbridge.control_plane.read_model.platform import Platform
from airbridge.core.protocol import Heartbeat, Versions
from airbridge.executor.ledger import clock, workers
from airbridge.executor.ledger.models import GatewayRow, WorkerRow, WorkItemRow


@pytest.fixture
def session(metadata: Metadata) -> Iterator[Any]:
    with metadata.session() as session:
        yield session
        session.rollback()


@pytest.fixture
def platform() -> Platform:
    return Platform(catalogue=CATALOGUE, parity=Parity.load(None))


class Seed:
    """Puts things into the database."""

    def __init__(self, session: Any) -> None:
        self.session = session

    def task(self, *, region: str = "eu-west-1", pool: str = "default", count: int = 1) -> list[WorkItemRow]:
        """Tasks that were placed."""
        tasks = seeding.queued_tasks(self.session, count)
        return seeding.placed_items(self.session, tasks, region=region, pool=pool)

    def worker(
        self,
        name: str = "worker-1",
        *,
        region: str = "eu-west-1",
        pool: str = "default",
        heard: timedelta | None = timedelta(0),
        slots: tuple[int, int] = (0, 8),
        versions: Versions = VERSIONS,
        certificate: timedelta = timedelta(minutes=50),
        **values: Any,
    ) -> WorkerRow:
        """Enrol a worker whose last heartbeat was `heard` ago, with (used, total) slots."""
        now = clock.now(self.session)
        row = workers.enrol(
            self.session,
            worker_id=name,
            region=region,
            pool=pool,
            versions=versions,
            thumbprint="0" * 64,
            certificate_expires_at=now + certificate,
        )
        if heard is not None:
            said = Heartbeat(
                sent_at=datetime.now(UTC), versions=versions, slots_used=slots[0], slots_total=slots[1]
            )
            workers.heartbeat(self.session, name, said)
            # `heartbeat` writes the present time.
            row.last_heartbeat_at = now - heard
        for key, value in values.items():
            setattr(row, key, value)
        self.session.flush()
        return row

    def gateway(self, seen: timedelta = timedelta(0)) -> None:
        """A gateway that was seen that long ago."""
        now = clock.now(self.session)
        self.session.merge(GatewayRow(id="gw", version="0.1.0", started_at=now - seen, seen_at=now - seen))
        self.session.flush()

    def scheduler(self, seen: timedelta = timedelta(0)) -> None:
        """A running scheduler whose last heartbeat was that long ago; an earlier one is replaced."""
        seeding.scheduler(self.session, seen)


@pytest.fixture
def seed(session: Any) -> Seed:
    return Seed(session)
