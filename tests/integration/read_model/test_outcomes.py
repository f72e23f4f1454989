"""An attempt that failed and has a try left is a failed attempt: in the counts, in the list, in the timeline and in the log."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from tests.integration.read_model.conftest import Seed

from airbridge.control_plane import _airflow, task_locations
from airbridge.control_plane.read_model import overview, tasks, work
from airbridge.control_plane.read_model.history import event_text
from airbridge.control_plane.read_model.platform import Platform
from airbridge.executor.ledger import clock, events, leases
from airbridge.executor.ledger.models import Outcome, WorkItemRow


def test_retried_failure_counts_as_failed(session: Any, seed: Seed, platform: Platform) -> None:
    """The region's failures and the filter of the work page have it."""
    [row] = seed.task()
    leases.claim(session, row, "worker-1", 60, 600, {})
    leases.settle(session, row, Outcome.FAILED, "up_for_retry", at=clock.now(session))
    session.flush()
    pools = [pool for region in overview.take(session, platform).regions for pool in region.pools]
    assert sum(pool.failed for pool in pools) == 1
    listed = work.listing(session, work.WorkFilter(outcome="failed"))
    assert [each.id for each in listed.rows] == [row.id]


def test_exceptions_of_failed_attempts(session: Any, seed: Seed) -> None:
    """Of a failed attempt the class of its exception is known, from the worker that held it last; of others none is."""
    failed, lost, success = seed.task(count=3)
    for row in (failed, lost, success):
        leases.claim(session, row, "worker-1", 60, 600, {})
        for epoch, name in ((row.epoch, "ValueError"), (row.epoch - 1, "OSError")):
            events.add_once(
                session, [ended(row, epoch, name), ended(row, epoch, "KeyError", source="control")]
            )
    leases.settle(session, failed, Outcome.FAILED, "up_for_retry")
    leases.settle(session, lost, Outcome.LOST, "no heartbeat")
    leases.settle(session, success, Outcome.SUCCESS, "success")
    session.flush()
    items = work.listing(session).rows
    assert len(items) == 3
    assert work.exceptions(session, items) == {failed.id: "ValueError"}
    assert work.exceptions(session, ()) == {}


def ended(row: WorkItemRow, epoch: int, name: str, source: str = "edge") -> dict[str, Any]:
    """Return an event of a task's end, as the gateway writes it."""
    task = {"item_id": row.id, "ti_id": row.ti_id, "epoch": epoch, "detail": {"exception": name}}
    return {
        "at": row.placed_at,
        "event": "task.ended",
        "actor": "w",
        "source": source,
        "uid": str(uuid4()),
    } | task


def test_end_names_the_exception() -> None:
    """The timeline has the class of the exception with which the process ended."""
    assert (
        event_text.of("task.ended", {"exception": "ValueError"}, worker="w")
        == "process ended on w (ValueError)"
    )
    assert event_text.of("task.ended", {}, worker="w") == "process ended on w"
    used = {"cpu_seconds": 0.256, "peak_memory_bytes": 300 << 20}
    assert (
        event_text.of("task.ended", used, worker="w") == "process ended on w, used 0.256 s of CPU and 300 MiB"
    )
    assert (
        event_text.of("task.ended", {"cpu_seconds": "<b>", "peak_memory_bytes": None}, worker="w")
        == "process ended on w"
    )


def test_retried_failure_is_trouble() -> None:
    """The timeline marks it, in the words of every other end."""
    detail = {"outcome": "failed", "reason": "up_for_retry"}
    assert event_text.is_trouble("item.settled", detail)
    assert event_text.of("item.settled", detail) == "ended: failed, to be retried"


@pytest.mark.parametrize(
    ("outcome", "reason", "sentence"),
    [
        ("success", "success", "ended: success"),
        ("success", "deferred", "ended: deferred until its trigger fires"),
        ("success", "up_for_reschedule", "ended: to be started again later"),
        ("success", "skipped", "ended: skipped"),
        ("success", "fired", "ended: fired, its task goes on"),
        ("failed", None, "ended: failed"),
        ("failed", "the process was killed", "ended: failed (the process was killed)"),
        ("lost", "no heartbeat", "ended: lost (no heartbeat)"),
        ("cancelled", None, "ended: cancelled"),
    ],
)
def test_ends_have_one_vocabulary(outcome: str, reason: str | None, sentence: str) -> None:
    """How an attempt ended is a sentence: no state of Airflow's stands beside an outcome of ours that contradicts it."""
    assert event_text.of("item.settled", {"outcome": outcome, "reason": reason}) == sentence


def test_mapped_indexes_are_named(session: Any, seed: Seed) -> None:
    """A task that is not mapped and asked for by an index, and one that does not exist: each error names what would be right."""
    [row] = seed.task()
    names = (row.dag_id, row.run_id, row.task_id)
    assert tasks.missing(session, *names).endswith("is not mapped: leave the map index out")
    assert tasks.missing(session, row.dag_id, row.run_id, "absent").startswith("there is no task 'absent'")
    for index in (0, 1):
        ti = session.get(_airflow.task_instance_model(), row.ti_id)
        ti.map_index = index
        session.flush()
        assert f"give a map index from {index} to {index}" in tasks.missing(session, *names)


def test_log_does_not_repeat_the_state(session: Any, seed: Seed) -> None:
    """What the task reported itself is in its log already; a reason of the control plane's own is added."""
    for detail, notes in (("failed", 0), ("up_for_retry", 0), ("the control plane refused XCom 'x'", 1)):
        [row] = seed.task()
        leases.settle(session, row, Outcome.FAILED, detail)
        session.flush()
        assert len([note for note in [task_locations._note(row)] if note]) == notes
