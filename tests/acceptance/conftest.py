"""One platform for the whole suite; tests that need another one start it with `tests.support.platform.running`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.support.platform import BOTH_EXECUTORS, LocalPlatform, running


@pytest.fixture(scope="session")
def platform() -> Iterator[LocalPlatform]:
    """Two regions with a worker each, EdgeExecutor as the default and LocalExecutor beside it."""
    with running(airflow=BOTH_EXECUTORS) as started:
        yield started
