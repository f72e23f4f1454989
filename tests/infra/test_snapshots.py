"""The stacks as they were last reviewed. A change shows as the lines that changed.

To accept a change: AIRBRIDGE_ACCEPT_SNAPSHOTS=1 make infra-test, then review the difference in git.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.infra.conftest import Stacks
from tests.infra.summary import summarise

SNAPSHOTS = Path(__file__).with_name("snapshots")


@pytest.mark.parametrize("stack", ["bootstrap", "foundation", "control-plane", "edge-eu-west-1"])
def test_stack_matches_snapshot(local: Stacks, stack: str) -> None:
    """Line by line, so that a difference is as small as the change."""
    file = SNAPSHOTS / f"{stack}.txt"
    summary = summarise(local[stack])
    if os.environ.get("AIRBRIDGE_ACCEPT_SNAPSHOTS"):
        file.write_text(summary)
    assert file.read_text().splitlines() == summary.splitlines()
