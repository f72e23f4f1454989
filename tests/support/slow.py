"""Pytest plugin: ``--slow`` runs tests marked `slow` too, which are skipped without it.

Slow is a test that takes minutes for what the chaos suite or a proof shows as well. The nightly run gives the option.
"""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--slow``."""
    parser.addoption("--slow", action="store_true", help="run tests marked slow, too")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line("markers", "slow(shown_by): takes minutes, for what `shown_by` shows as well")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip slow tests unless they are asked for."""
    if config.getoption("slow"):
        return
    for item in items:
        marker = item.get_closest_marker("slow")
        if marker is not None:
            item.add_marker(pytest.mark.skip(reason=f"slow (--slow runs it); also shown by {marker.args[0]}"))
