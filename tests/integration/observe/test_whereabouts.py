"""What a task's log begins with, as the ledger knows it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tests.integration.observe.conftest import Seed

from airbridge.control_plane import whereabouts
from airbridge.executor.ledger import items


def test_the_opening_names_worker_region_epoch_and_timeline(session: Any, seed: Seed) -> None:
    """A claimed item says where it runs, under which epoch, and the address of its timeline."""
    [row] = seed.task()
    items.claim(session, row, "worker-1", 60.0, 600.0, {})
    ti = SimpleNamespace(
        dag_id=row.dag_id, run_id=row.run_id, task_id=row.task_id, map_index=-1, try_number=row.try_number
    )
    link, where = whereabouts.find(session, ti).opening
    assert f"Runs on worker-1 in eu-west-1 (work item {row.id}, epoch 1)" == where.text
    assert link.text.startswith("Timeline: ")
    assert f"/airbridge/timeline?dag={row.dag_id}&run=" in link.text
    assert (row.placed_at, row.claimed_at) == (link.at, where.at)


def test_a_task_that_nobody_took_has_a_timeline_too(session: Any, seed: Seed) -> None:
    """Its log has nothing but the way to where it says why."""
    [row] = seed.task()
    ti = SimpleNamespace(
        dag_id=row.dag_id, run_id=row.run_id, task_id=row.task_id, map_index=-1, try_number=row.try_number
    )
    [link] = whereabouts.find(session, ti).opening
    assert link.text.startswith("Timeline: ")
