"""Tracing on, over the whole platform and a real OTLP receiver; `make traces` proves the same of 200 tasks and 60 s."""

from __future__ import annotations

import pytest
from tests.chaos import traces


@pytest.mark.slow("make traces")
def test_every_task_has_connected_trace() -> None:
    """From place to commit, no span without its parent, and what ended in a cut is reported after it: times are true."""
    fair, cut = traces.prove(tasks=16, cut_seconds=8.0, task_seconds=2.0)
    assert fair.ok, fair
    assert cut.ok, cut
    assert cut.ended_in_the_cut == cut.reported_after_it > 0, cut
