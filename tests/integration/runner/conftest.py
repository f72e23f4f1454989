"""One runner for all tests of this folder: a zygote takes seconds to load Airflow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.runner.world import World


@pytest.fixture(scope="session")
def shared_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("runner"))
    yield world
    world.close()


@pytest.fixture
def world(shared_world: World) -> World:
    shared_world.api.__init__()  # type: ignore[misc] # a clean API for every test
    return shared_world


@pytest.fixture
def own_world(tmp_path: Path) -> Iterator[World]:
    """A runner that a test may break."""
    world = World(tmp_path)
    yield world
    world.close()
