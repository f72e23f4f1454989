"""Platforms that modules share, one at a time; tests that need another one start it with `tests.support.platform.running`.

A platform takes a minute of CPU to start and a fifth of a core when idle. So tests that share one run after each other, and it
ends when the next test needs it no more. Tests marked `slow` need `--slow`, as `make test SLOW=1` and the proofs give it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import pytest
from tests.acceptance.operator_settings import AIRFLOW, WORKER
from tests.support.collector import Collector, collecting
from tests.support.platform import LocalPlatform, running
from tests.support.wheels import Index

SHARED: Final = ("platform", "plain_platform")
"""Fixtures whose platforms are shared, in the order in which they run."""

_started: Final[dict[str, ExitStack]] = {}


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line("markers", "shared_platform: set here, on every test that uses one")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of shared platforms and bring those of each together; the order is kept otherwise."""
    items.sort(key=_position)
    for item in items:
        if _position(item) < len(SHARED):
            item.add_marker("shared_platform")


def _position(item: pytest.Item) -> int:
    needs = getattr(item, "fixturenames", ())
    return next((number for number, name in enumerate(SHARED) if name in needs), len(SHARED))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """End the shared platforms that this test does not use. A second attempt of a test still finds its own."""
    for name in [name for name in _started if name not in getattr(item, "fixturenames", ())]:
        _started.pop(name).close()


@contextmanager
def _shared(name: str, **choices: Any) -> Iterator[LocalPlatform]:
    with ExitStack() as stack:
        started = stack.enter_context(running(**choices))
        _started[name] = stack
        yield started
    _started.pop(name, None)


@pytest.fixture(scope="session")
def platform() -> Iterator[LocalPlatform]:
    """Two regions with a worker each, EdgeExecutor as the default and LocalExecutor beside it, and settings of an operator's own."""
    with _shared("platform", airflow=AIRFLOW, worker_env=WORKER) as started:
        yield started


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    """The receiver of the plain platform's traces."""
    with collecting() as started:
        yield started


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """The plain platform's package index: two versions of a package, which no other place has."""
    found = Index(tmp_path_factory.mktemp("index"))
    found.add("tiny", "1.0")
    found.add("tiny", "2.0")
    return found


@pytest.fixture(scope="session")
def plain_platform(index: Index, collector: Collector) -> Iterator[LocalPlatform]:
    """A platform with AirBridge's executor alone: another one would need Airflow's JWT secret in the scheduler."""
    settings = {
        "airbridge.package_index": "none",
        "airbridge.package_find_links": str(index.folder),
        "airbridge.traces_endpoint": collector.endpoint,
    }
    with _shared("plain_platform", airflow=settings) as started:
        yield started
