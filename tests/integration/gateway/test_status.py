"""Status and timelines that operators read through the gateway."""

from __future__ import annotations

from tests.integration.gateway.world import World, finished

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
