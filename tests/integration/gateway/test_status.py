"""Status and timelines that operators read through the gateway."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest
from tests.integration.gateway.world import World, finished

from airbridge.core.protocol import EdgeEvent
from airbridge.executor.ledger.models import WorkItemRow


def test_task_is_found_by_names(world: World) -> None:
    """The timeline of a task that ran has its worker, every step, and its outcome as the cause."""
    [item] = world.items()
    worker = world.worker()
    worker.exchange(finished(worker.grant(item), 1))
    row: WorkItemRow = world.row(item)
    query = {"dag_id": row.dag_id, "run_id": row.run_id, "task_id": row.task_id}
    with world.operator(world.access_token("work:read")) as client:
        found = client.get("/operator/v1/timeline", params=query).json()
        newest = client.get("/operator/v1/timeline", params={**query, "run_id": ""}).json()
    assert ("ended", "success") == (found["cause"]["code"], found["state"])
    assert {"item.placed", "claim.granted", "item.settled"} <= {step["event"] for step in found["steps"]}
    assert newest["run_id"] == row.run_id


def test_unknown_task_is_named(world: World) -> None:
    """The error for a wrong name repeats the requested task, run and DAG."""
    with world.operator(world.access_token("work:read")) as client:
        answer = client.get("/operator/v1/timeline", params={"dag_id": "no", "task_id": "t", "run_id": "r"})
    assert (404, "there is no task 't' in run 'r' of DAG 'no'") == (
        answer.status_code,
        answer.json()["detail"],
    )


def test_timeline_scope_is_per_dag(world: World) -> None:
    """Timelines are granted DAG by DAG; the screen needs a scope of its own."""
    [item] = world.items()
    row = world.row(item)
    query = {"dag_id": row.dag_id, "task_id": row.task_id}
    with world.operator(world.access_token("work:read other-*")) as client:
        assert 403 == client.get("/operator/v1/timeline", params=query).status_code
        assert 403 == client.get("/operator/v1/status").status_code
    with world.operator(world.access_token("platform:read")) as client:
        found = client.get("/operator/v1/status").json()
    assert ["us-east-1", "eu-west-1"] == [region["name"] for region in found["regions"]]
    assert any(each["alive"] for each in found["gateways"])


def test_usage_is_grouped(world: World) -> None:
    """Usage has the slot-seconds of a claim and the CPU time that its worker reported; the lines add up to the total."""
    [item] = world.items()
    worker = world.worker()
    grant = worker.grant(item)
    worker.exchange(finished(grant, 1))
    used = {"cpu_seconds": 2.5, "peak_memory_bytes": 7 * 2**20}
    ended = EdgeEvent(
        uid=uuid4(), event="task.ended", at=datetime.now(UTC), item_id=UUID(item), epoch=1, detail=used
    )
    worker.beat(events=(ended,))
    row: WorkItemRow = world.row(item)
    with world.operator(world.access_token("work:read")) as client:
        found = client.get("/operator/v1/usage", params={"by": "team,dag,region"}).json()
        before = client.get("/operator/v1/usage", params={"until": "2026-01-01T00:00:00Z"}).json()
    [line] = [line for line in found["lines"] if line["dag"] == row.dag_id]
    assert ("default", row.region) == (line["team"], line["region"])
    assert (2.5, 7 * 2**20) == (line["cpu_seconds"], line["peak_memory_bytes"])
    held = (row.settled_at - row.claimed_at).total_seconds() * row.slots
    assert held == pytest.approx(line["slot_seconds"], abs=0.001)
    for name in ("items", "slot_seconds", "cpu_seconds"):
        assert found["total"][name] == pytest.approx(sum(line[name] for line in found["lines"]))
    assert [] == before["lines"]


@pytest.mark.parametrize(
    "query", [{"by": "owner"}, {"by": ""}, {"since": "yesterday"}, {"since": "2026-01-01T00:00:00"}]
)
def test_malformed_usage_query_is_named(world: World, query: dict[str, str]) -> None:
    """The error for a wrong group or time names the parameter."""
    with world.operator(world.access_token("work:read")) as client:
        answer = client.get("/operator/v1/usage", params=query)
    assert 400 == answer.status_code
    assert next(iter(query)) in answer.json()["detail"]


def test_usage_needs_all_dags(world: World) -> None:
    """Usage names every DAG, so a scope for some of them is not enough."""
    with world.operator(world.access_token("work:read team-*")) as client:
        assert 403 == client.get("/operator/v1/usage").status_code
