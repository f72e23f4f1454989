"""The proxy's routes against Airflow's Task Execution API: every route is treated by its kind."""

from __future__ import annotations

import re
from uuid import UUID

from tests.unit.edge_worker.test_journal_file import grant

from airbridge.edge_worker.proxy.protocol import Call
from airbridge.edge_worker.proxy.routes import Kind, classify

GRANT = grant(1).model_copy(update={"ti": {"dag_id": "dag_id", "run_id": "run_id", "task_id": "task_id"}})

EXPECTED = {
    ("PATCH", "task-instances/{}/run"): Kind.RUN,
    ("PUT", "task-instances/{}/heartbeat"): Kind.HEARTBEAT,
    ("PATCH", "task-instances/{}/state"): Kind.FINAL,
    ("PUT", "task-instances/{}/rtif"): Kind.DEFERRED,
    ("PATCH", "task-instances/{}/skip-downstream"): Kind.DEFERRED,
    ("POST", "xcoms/dag_id/run_id/task_id/key"): Kind.DEFERRED,
    ("DELETE", "xcoms/dag_id/run_id/task_id/key"): Kind.DEFERRED,
    ("POST", "dag-runs/dag_id/run_id"): Kind.PASSED,
    ("POST", "dag-runs/dag_id/run_id/clear"): Kind.PASSED,
    ("PUT", "variables/variable_key"): Kind.PASSED,
    ("DELETE", "variables/variable_key"): Kind.PASSED,
}


def test_every_write_has_a_route() -> None:
    """A write that a later Airflow adds fails this test until its treatment is decided."""
    from airflow.api_fastapi.execution_api.routes import execution_api_router

    found = {}
    for route in execution_api_router.routes:
        path = re.sub(r":path\}", "}", getattr(route, "path", "")).lstrip("/")
        path = path.replace("{task_instance_id}", str(UUID(int=1001)))
        path = re.sub(r"\{(\w+)\}", r"\1", path)
        for method in getattr(route, "methods", None) or ():
            kind = classify(Call(1, method, path), GRANT).kind
            if method in {"GET", "HEAD"}:
                assert kind is Kind.READ
            else:
                found[method, path.replace(str(UUID(int=1001)), "{}")] = kind
    assert found == EXPECTED
