"""Two schedulers at once."""

from __future__ import annotations

import pytest
from tests.acceptance.runs import run_with_trouble
from tests.support.platform import running


@pytest.mark.timeout(500)
def test_two_schedulers_commit_every_task_once() -> None:
    """A hundred tasks under two schedulers: each succeeds at its first try, begins once and is committed once."""
    with running(schedulers=2, slots=16) as platform:
        troubled = run_with_trouble(platform, "hundred", lambda: None, seconds=0.2)
        troubled.check(100)
        assert {1} == {task["try_number"] for task in troubled.run.tasks}
        assert len(troubled.notes) == 100
        owners = platform.query(
            "SELECT DISTINCT queued_by_job_id FROM task_instance WHERE dag_id = 'hundred'"
        )
        assert 1 <= len(owners) <= 2
