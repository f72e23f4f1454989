"""`kill -9` in the middle of a run: the run ends as it should, nothing is committed twice, nothing hangs."""

from __future__ import annotations

import pytest
from tests.acceptance.runs import run_with_trouble
from tests.support.platform import LocalPlatform

pytestmark = pytest.mark.timeout(500)

# A killed scheduler counts as dead after `scheduler_health_check_threshold` (120 s here); what it had queued, and not yet
# placed, is then taken over at the next check for orphans.
TAKEN_OVER_SECONDS = 300.0


@pytest.mark.parametrize(
    "victim", ["scheduler", pytest.param("gateway", marks=pytest.mark.slow("make chaos")), "aws"]
)
def test_a_killed_process_is_survived(platform: LocalPlatform, victim: str) -> None:
    """Scheduler, gateway or the queues' process killed: every task succeeds, at its first try."""
    troubled = run_with_trouble(
        platform, "fifty", lambda: _kill(platform, victim), timeout_seconds=TAKEN_OVER_SECONDS
    )
    troubled.check(50)
    assert {1} == {task["try_number"] for task in troubled.run.tasks}
    assert len(troubled.notes) == 50


@pytest.mark.slow("make chaos")
def test_a_killed_worker_is_survived(platform: LocalPlatform) -> None:
    """A worker killed with tasks running: those are reported failed when it is back, and retried; the rest is untouched."""
    troubled = run_with_trouble(platform, "fifty", lambda: _kill(platform, "worker-us-east-1-default-1"))
    troubled.check(50)
    assert max(task["try_number"] for task in troubled.run.tasks) >= 2
    assert {1} == {
        task["try_number"] for task in troubled.run.tasks if int(task["task_id"].rpartition("_")[2]) % 2
    }


def _kill(platform: LocalPlatform, component: str) -> None:
    platform.kill(component)
    platform.wait_ready(120)
