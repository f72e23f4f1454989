"""The header of a task's log, from the ledger."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tests.integration.read_model.conftest import Seed

from airbridge.control_plane import task_locations
from airbridge.executor.ledger import leases


def test_log_header_content(session: Any, seed: Seed) -> None:
    """A claimed item's header has its worker, region and epoch, and the address of its timeline."""
    [row] = seed.task()
    leases.claim(session, row, "worker-1", 60.0, 600.0, {})
    ti = SimpleNamespace(
        dag_id=row.dag_id, run_id=row.run_id, task_id=row.task_id, map_index=-1, try_number=row.try_number
    )
    link, where = task_locations.find(session, ti).header
    assert f"Runs on worker-1 in eu-west-1 (work item {row.id}, epoch 1)" == where.text
    assert link.text.startswith("Timeline: ")
    assert f"/airbridge/timeline?dag={row.dag_id}&run=" in link.text
    assert (row.placed_at, row.claimed_at) == (link.at, where.at)


def test_unclaimed_task_has_timeline_link(session: Any, seed: Seed) -> None:
    """The log of an unclaimed task has only a link to the timeline, which gives the reason."""
    [row] = seed.task()
    ti = SimpleNamespace(
        dag_id=row.dag_id, run_id=row.run_id, task_id=row.task_id, map_index=-1, try_number=row.try_number
    )
    [link] = task_locations.find(session, ti).header
    assert link.text.startswith("Timeline: ")
