"""Treatment of each call of the Task SDK's client."""

from __future__ import annotations

from uuid import UUID

import pytest
from tests.unit.edge_worker.test_journal_file import grant

from airbridge.edge_worker.proxy.protocol import Call
from airbridge.edge_worker.proxy.routes import Kind, classify

TI = UUID(int=1001)
OTHER = UUID(int=5)
GRANT = grant(1).model_copy(
    update={"ti": {"dag_id": "d", "run_id": "manual__2025-01-01T00:00:00+00:00", "task_id": "t"}}
)
RUN = "manual__2025-01-01T00:00:00+00:00"

TABLE = [
    ("PATCH", f"task-instances/{TI}/run", "", Kind.RUN, 200),
    ("PUT", f"task-instances/{TI}/heartbeat", "", Kind.HEARTBEAT, 204),
    ("PATCH", f"task-instances/{TI}/state", "", Kind.FINAL, 204),
    ("PATCH", f"/task-instances/{str(TI).upper()}/state", "", Kind.FINAL, 204),
    ("PUT", f"task-instances/{TI}/rtif", "", Kind.DEFERRED, 201),
    ("PATCH", f"task-instances/{TI}/skip-downstream", "", Kind.DEFERRED, 204),
    ("PATCH", f"task-instances/{OTHER}/state", "", Kind.PASSED, 200),
    ("PATCH", "task-instances/nonsense/state", "", Kind.PASSED, 200),
    ("POST", f"xcoms/d/{RUN}/t/return_value", "", Kind.DEFERRED, 201),
    ("POST", f"xcoms/d/{RUN.replace('+', '%2B')}/t/return_value", "map_index=3", Kind.DEFERRED, 201),
    ("POST", f"xcoms/d/{RUN}/t/return_value", "mapped_length=3", Kind.PASSED, 201),
    ("POST", f"xcoms/d/{RUN}/other/return_value", "", Kind.PASSED, 201),
    ("DELETE", f"xcoms/d/{RUN}/t/return_value", "", Kind.DEFERRED, 200),
    ("GET", f"xcoms/d/{RUN}/t/return_value", "", Kind.READ, 200),
    ("HEAD", f"xcoms/d/{RUN}/up/return_value", "", Kind.READ, 200),
    ("GET", "connections/aws_default", "", Kind.READ, 200),
    ("GET", "variables/a", "", Kind.READ, 200),
    ("PUT", "variables/a", "", Kind.PASSED, 201),
    ("DELETE", "variables/a", "", Kind.PASSED, 204),
    ("POST", "dag-runs/d/r", "", Kind.PASSED, 204),
    ("POST", "dag-runs/d/r/clear", "", Kind.PASSED, 204),
    ("GET", "dag-runs/d/r/state", "", Kind.READ, 200),
    ("POST", "something/new", "", Kind.PASSED, 200),
    ("CONNECT", "example.com:443", "", Kind.UNKNOWN, 200),
    ("POST", "", "", Kind.PASSED, 200),
]


@pytest.mark.parametrize(("method", "path", "query", "kind", "accepted"), TABLE)
def test_calls_are_routed_by_table(method: str, path: str, query: str, kind: Kind, accepted: int) -> None:
    """Writes without a caller that acts on them are deferred; those that a task must see are passed; the rest is read."""
    route = classify(Call(1, method, path, query), GRANT)
    assert (route.kind, route.accepted) == (kind, accepted)
