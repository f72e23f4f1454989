"""Certificates of a minute: renewed at their time, not at every heartbeat."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.gateway.world import Worker, World, running

from airbridge.executor.protocol import RenewCommand


@pytest.fixture
def minutes(world: World, tmp_path: Path) -> Iterator[World]:
    """A gateway over the same database whose certificates last a minute."""
    with running(world.metadata, tmp_path, certificate_lifetime=60.0) as it:
        yield it
        it.close_workers()


def test_a_new_certificate_of_a_minute_needs_no_renewal(minutes: World) -> None:
    """It is dated back for slow clocks; that is not part of its life."""
    worker = Worker(minutes, "eu-west-1", "default", "brief")
    worker.enrol(minutes.join_token())
    commands = worker.beat().commands
    assert [] == [each for each in commands if isinstance(each, RenewCommand)]
