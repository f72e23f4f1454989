"""How long tasks take beside before, from the pages of Airflow's REST API."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from airbridge.ci.exceptions import ControlPlaneError
from airbridge.ci.rollout.control_plane import OverHttp, Slowdown

SINCE = datetime(2026, 1, 1, tzinfo=UTC)
WORKER = {"id": "w", "region": "eu", "pool": "gpu", "state": "active", "versions": {}}


def run(duration: float | None, task: str = "t") -> dict[str, Any]:
    return {"dag_id": "d", "task_id": task, "duration": duration}


def slowdown(before: list[dict[str, Any]], since: list[dict[str, Any]], queue: str = "eu") -> Slowdown:
    """Return what a control plane finds whose queue has these runs; the requests are checked."""

    def airflow(request: httpx.Request) -> httpx.Response:
        query = request.url.params
        assert (query["state"], query["order_by"], query["limit"]) == ("success", "-end_date", "100")
        assert ("end_date_lte" in query) != ("end_date_gte" in query)
        assert query["queue"] in {"eu", "gpu@eu"}
        found = before if "end_date_lte" in query else since
        return httpx.Response(200, json={"task_instances": found if query["queue"] == queue else []})

    operators = httpx.MockTransport(lambda _: httpx.Response(200, json={"workers": [WORKER]}))
    return OverHttp(
        httpx.Client(transport=operators, base_url="https://gateway"),
        httpx.Client(transport=httpx.MockTransport(airflow), base_url="https://airflow"),
    ).slowdown(["eu"], SINCE)


def test_durations_are_compared_by_task() -> None:
    """A long task that comes more often is no slowdown; each is held against its own runs."""
    before = [*(run(100.0, "long") for _ in range(3)), *(run(9.0, "short") for _ in range(3))]
    since = [*(run(100.0, "long") for _ in range(9)), run(19.0, "short")]
    assert slowdown(before, since) == Slowdown(10, 1.0)
    assert slowdown(before, [run(19.0, "short")]) == Slowdown(1, 2.0)


@pytest.mark.parametrize("queue", ["eu", "gpu@eu"])
def test_every_queue_counts(queue: str) -> None:
    """Runs of the region's queue and of its pools'."""
    assert slowdown(3 * [run(9.0)], [run(29.0)], queue) == Slowdown(1, 3.0)


@pytest.mark.parametrize("before", [[], 2 * [run(9.0)], 9 * [run(9.0, "other")], 3 * [run(None)]])
def test_what_has_no_history_is_not_compared(before: list[dict[str, Any]]) -> None:
    """A new task, one with two earlier runs, and runs without a duration say nothing."""
    assert slowdown(before, 9 * [run(900.0)]) == Slowdown()


def test_short_tasks_are_not_noise() -> None:
    """Ten times a hundredth of a second is no slowdown that anybody notices."""
    found = slowdown(3 * [run(0.01)], [run(0.1)])
    assert found.ratio < 1.1


def test_answer_that_is_none() -> None:
    """An error of the API is the control plane's, with its address."""
    operators = httpx.MockTransport(lambda _: httpx.Response(200, json={"workers": []}))
    failing = httpx.MockTransport(lambda _: httpx.Response(403, json={"detail": "no"}))
    plane = OverHttp(
        httpx.Client(transport=operators, base_url="https://gateway"),
        httpx.Client(transport=failing, base_url="https://airflow"),
    )
    with pytest.raises(ControlPlaneError, match=r"GET https://airflow/.*: 403"):
        plane.slowdown(["eu"], SINCE)
