"""Certificates of a minute: renewed at their time, not at every heartbeat."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.gateway.world import Worker, World, running

from airbridge.core.protocol import RenewCommand


@pytest.fixture
def minutes(world: World, tmp_path: Path) -> Iterator[World]:
    """A gateway over the same database whose certificates last a minute."""
    with running(world.metadata, tmp_path, certificate_lifetime=60.0) as it:
        yield it
        it.close_workers()


def test_new_short_certificate_needs_no_renewal(minutes: World) -> None:
    """A new certificate is not due for renewal: its backdating, for slow clocks, is not part of its lifetime."""
    worker = Worker(minutes, "eu-west-1", "default", "brief")
    worker.enrol(minutes.join_token())
    commands = worker.beat().commands
    assert [] == [each for each in commands if isinstance(each, RenewCommand)]
