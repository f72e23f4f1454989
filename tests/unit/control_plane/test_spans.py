"""Spans from events: ids that are the same every time, parents that are always there, times that are true."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from airbridge.control_plane.tracing.spans import Span, Task, WorkEvent, of_event
from airbridge.executor.placement.workloads import root_span_id

NOW = datetime(2026, 1, 31, tzinfo=UTC)
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
ITEM = "6f2c1c1e-0000-4000-8000-000000000001"


def task(traceparent: str = f"00-{TRACE}-{root_span_id(ITEM)}-01") -> Task:
    return Task(
        ITEM, "ti", "dag", "run", "task", -1, 1, "eu-west-1", "default", {"traceparent": traceparent}, NOW
    )


def happened(event: str, **values: Any) -> WorkEvent:
    said: dict[str, Any] = {
        "id": 7,
        "uid": None,
        "event": event,
        "at": NOW + timedelta(seconds=2),
        "began_at": None,
        "actor": "ledger",
        "source": "control",
        "worker_id": "w",
        "epoch": 1,
        "skew_seconds": None,
        "detail": {},
    }
    return WorkEvent(**{**said, **values})


def spans(event: str, **values: Any) -> list[Span]:
    return list(of_event(task(), happened(event, **values)))


def test_settled_item_yields_parent_span() -> None:
    """A settled item yields its commit and its task span; the task span has no parent in a trace of its own."""
    commit, root = spans("item.settled", detail={"outcome": "success"})
    assert ("commit", root.span_id) == (commit.name, commit.parent_id)
    assert ("task", None, NOW, NOW + timedelta(seconds=2)) == (
        root.name,
        root.parent_id,
        root.began_at,
        root.ended_at,
    )
    assert {int(TRACE, 16)} == {commit.trace_id, root.trace_id}


def test_span_id_is_deterministic() -> None:
    """Exported twice, by whatever process, it has the same id; two events have two."""
    assert spans("item.sent") == spans("item.sent")
    assert spans("item.sent")[0].span_id != spans("item.sent", id=8)[0].span_id


def test_span_times_are_skew_corrected() -> None:
    """A worker's reading is corrected by a skew that means something, and left alone where it is noise."""
    [far] = spans("task.ended", source="edge", uid="u", skew_seconds=300.0, began_at=NOW)
    assert NOW + timedelta(seconds=2 - 300) == far.ended_at
    assert 300.0 == far.attributes["airbridge.clock_skew_seconds"]
    [near] = spans("task.ended", source="edge", uid="u", skew_seconds=0.02, began_at=NOW)
    assert (NOW, NOW + timedelta(seconds=2)) == (near.began_at, near.ended_at)


def test_trouble_is_an_error() -> None:
    """A refusal's span has the status error, with the reason as its description."""
    [span] = spans("claim.refused", detail={"reason": "parity", "why": "too old"})
    assert span.failed == "refused to w: parity (too old)"


@pytest.mark.parametrize("traceparent", ["", "00-zz-00-01", f"00-{'0' * 32}-{'0' * 16}-00", "nonsense"])
def test_no_span_without_trace_context(traceparent: str) -> None:
    """A work item of no trace is left out rather than exported wrongly."""
    assert [] == list(of_event(task(traceparent), happened("item.sent")))
