"""Fixtures shared by the tests of airbridge.ci."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.ci.tree import Tree, plant_tree


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """A copy of the project's own files, released once."""
    return plant_tree(tmp_path / "project")
