"""The gateway's decisions, without a socket or a database."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import exc as sql

from airbridge.control_plane.exceptions import Unavailable
from airbridge.control_plane.gateway.audit import Denial, DenialLog, Rates
from airbridge.control_plane.gateway.calls import Call, Denied, judge
from airbridge.control_plane.gateway.database import transient
from airbridge.control_plane.gateway.fencing import fence
from airbridge.control_plane.gateway.lanes import Lane
from airbridge.control_plane.identity.scopes import Scopes
from airbridge.control_plane.parity import Parity
from airbridge.control_plane.policy import Access, AirflowPolicy, Ruling, TaskFacts
from airbridge.executor.ledger.models import ItemState, Outcome, WorkItemRow
from airbridge.executor.protocol import Record, RefusalReason, Versions

TI = "00000000-0000-0000-0000-00000000000a"
TASK = TaskFacts(
    item_id="00000000-0000-0000-0000-000000000001",
    ti_id=TI,
    dag_id="dag",
    run_id="manual__2026-01-01T00:00:00+00:00",
    task_id="task",
    map_index=-1,
    region="eu-west-1",
    pool="default",
    worker="w1",
    queue="eu-west-1",
)
XCOM = f"xcoms/dag/{TASK.run_id}/task"
EVERYTHING = Scopes.parse(
    ["task_instances:*", "connections:*", "variables:*", "xcoms:*", "assets:*", "dag_runs:*"]
)


def asked(method: str, path: str, query: str = "") -> Record:
    return Record(
        item_id=UUID(TASK.item_id),
        epoch=1,
        seq=1,
        method=method,
        path=path,
        query=query,
        recorded_at=datetime.now(UTC),
    )


@pytest.mark.parametrize(
    ("method", "path", "query", "allowed"),
    [
        ("PATCH", f"task-instances/{TI}/state", "", True),
        ("PATCH", f"task-instances/{TI.upper()}/state", "", True),
        ("PATCH", "task-instances/00000000-0000-0000-0000-00000000000b/state", "", False),
        ("PATCH", "task-instances/x/state", "", False),
        ("PUT", f"task-instances/{TI}/state", "", False),
        ("PATCH", f"task-instances/{TI}/run", "", False),
        ("PUT", f"task-instances/{TI}/heartbeat", "", False),
        ("GET", "task-instances/count", "dag_id=other", True),
        ("GET", "task-instances/states", "dag_id=other", True),
        ("GET", f"task-reschedules/{TI}/start_date", "try_number=1", True),
        ("GET", "connections/any", "", True),
        ("GET", "connections/with/slash", "", True),
        ("PUT", "connections/any", "", False),
        ("DELETE", "variables/any", "", True),
        ("GET", "xcoms/other/run/task/key", "", True),
        ("GET", "xcoms/other/run/task/key/item/0", "", True),
        ("GET", "xcoms/other/run/task/key/slice", "start=1", True),
        ("POST", f"{XCOM}/key", "", True),
        ("POST", f"{XCOM.replace(':', '%3A').replace('+', '%2B')}/key", "", True),
        ("POST", f"{XCOM}/key", "map_index=-1", True),
        ("POST", f"{XCOM}/key", "map_index=0", False),
        ("POST", f"{XCOM}/key", "map_index=", False),
        ("POST", f"{XCOM}/key", "map_index=-1&map_index=0", False),
        ("POST", "xcoms/dag/other/task/key", "", False),
        ("POST", "xcoms/dag%2Fmanual/x/task/key", "", False),
        ("POST", "dag-runs/other/run", "", True),
        ("POST", "dag-runs/other/run/clear", "", True),
        ("GET", "dag-runs/other/run/state", "", True),
        ("GET", "dag-runs/count", "dag_id=x", True),
        ("DELETE", "dag-runs/other/run", "", False),
        ("GET", "assets/by-name", "name=x", True),
        ("GET", "asset-events/by-asset-alias", "name=x", True),
        ("GET", "health", "", False),
        ("GET", "", "", False),
        ("GET", "connections/", "", False),
        ("GET", "variables/x\n", "", True),
    ],
)
def test_a_task_may_call_what_the_table_lists_and_what_is_its_own(
    method: str, path: str, query: str, allowed: bool
) -> None:
    """The table of calls, row by row, with ways around it."""
    assert isinstance(judge(asked(method, path, query), TASK, EVERYTHING, AirflowPolicy()), Call) == allowed


def test_a_mapped_task_writes_its_own_index_only() -> None:
    """The map index stands in the query, and must be the task's."""
    from dataclasses import replace

    mapped = replace(TASK, map_index=3)
    assert isinstance(
        judge(asked("POST", f"{XCOM}/k", "map_index=3"), mapped, EVERYTHING, AirflowPolicy()), Call
    )
    assert isinstance(judge(asked("POST", f"{XCOM}/k"), mapped, EVERYTHING, AirflowPolicy()), Denied)


def test_scopes_narrow_calls_by_name_and_region() -> None:
    """A worker's token may be narrower than the table."""
    narrow = Scopes.parse(["connections:read eu_* region=eu-*", "xcoms:read"])
    policy = AirflowPolicy()
    assert isinstance(judge(asked("GET", "connections/eu_db"), TASK, narrow, policy), Call)
    assert isinstance(judge(asked("GET", "connections/us_db"), TASK, narrow, policy), Denied)
    assert isinstance(judge(asked("GET", "variables/x"), TASK, narrow, policy), Denied)


def test_a_policy_has_the_last_word_and_knows_what_is_asked() -> None:
    """The policy sees action, name, DAG and run, and its message reaches the task."""
    seen: list[Access] = []

    class No:
        def judge(self, task: TaskFacts, access: Access) -> Ruling:
            seen.append(access)
            return Ruling(False, "policy: no rule", "rule 7")

    assert judge(asked("GET", "xcoms/d/r/t/k"), TASK, EVERYTHING, No()) == Denied("rule 7", "policy: no rule")
    assert seen == [Access("xcoms:read", "k", "d", "r")]


def row(**changes: Any) -> WorkItemRow:
    return WorkItemRow(**{"state": ItemState.CLAIMED, "epoch": 2, "worker_id": "w1", **changes})


@pytest.mark.parametrize(
    ("found", "epoch", "reason", "held_once"),
    [
        (row(), 2, None, True),
        (None, 2, RefusalReason.UNKNOWN_ITEM, False),
        (row(), 1, RefusalReason.STALE_EPOCH, False),
        (row(), 3, RefusalReason.STALE_EPOCH, False),
        (row(worker_id="w2"), 2, RefusalReason.NOT_HOLDER, False),
        (row(state=ItemState.PLACED, worker_id=None), 2, RefusalReason.NOT_HOLDER, False),
        (row(state=ItemState.SETTLED, outcome=Outcome.SUCCESS), 2, RefusalReason.SETTLED, True),
        (row(state=ItemState.SETTLED, outcome=Outcome.LOST), 2, RefusalReason.LOST, True),
        (row(state=ItemState.SETTLED, outcome=Outcome.CANCELLED), 2, RefusalReason.CANCELLED, True),
        (
            row(state=ItemState.SETTLED, outcome=Outcome.LOST, worker_id="w2"),
            2,
            RefusalReason.NOT_HOLDER,
            False,
        ),
    ],
)
def test_the_fence(
    found: WorkItemRow | None, epoch: int, reason: RefusalReason | None, held_once: bool
) -> None:
    """Worker, epoch and state decide together who may write."""
    judged = fence(found, "w1", epoch)
    assert (judged.reason, judged.held_once) == (reason, held_once)


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "worth_a_retry"),
    [
        (sql.OperationalError("x", {}, Exception()), True),
        (sql.InterfaceError("x", {}, Exception()), True),
        (sql.TimeoutError(), True),
        (sql.DBAPIError("x", {}, Exception(), connection_invalidated=True), True),
        (caused(ValueError(), sql.OperationalError("x", {}, Exception())), True),
        (sql.IntegrityError("x", {}, Exception()), False),
        (sql.ProgrammingError("x", {}, Exception()), False),
        (ValueError(), False),
    ],
)
def test_what_may_be_retried(error: Exception, worth_a_retry: bool) -> None:
    """A database that is away or busy may be asked again; a wrong statement may not."""
    assert transient(error) == worth_a_retry


def test_a_full_lane_sheds_load_and_recovers() -> None:
    """One request too many is told to come back; when one leaves there is room again."""

    async def scene() -> None:
        lane = Lane("test", threads=1, requests=1)
        async with lane.admit():
            with pytest.raises(Unavailable):
                async with lane.admit():
                    pass
        async with lane.admit():
            assert await lane.run(lambda: 7) == 7
        lane.close()

    asyncio.run(scene())


def test_strangers_cannot_fill_the_audit_table() -> None:
    """Denials of strangers get rows in a burst, then at a steady rate; those of known callers have a rate of their own."""
    now = [0.0]
    denials = DenialLog(Rates(), monotonic=lambda: now[0])
    stranger = Denial("request.refused", "anonymous", "127.0.0.1:1", None, None, {})
    known = Denial("request.refused", "operator:ann", "127.0.0.1:1", None, None, {})
    assert sum(denials.admit(stranger) for _ in range(1000)) == Rates().strangers_burst
    assert denials.admit(known)
    now[0] = 1.0
    assert sum(denials.admit(stranger) for _ in range(1000)) == Rates().strangers


def test_without_a_matrix_a_worker_must_be_of_the_same_release() -> None:
    """The strictest rule holds where no file says more."""
    parity = Parity.load(None)
    same = Versions(airbridge=parity.control_plane, airflow="3.0.4", task_sdk="1.0.4", python="3.12.1")
    assert parity.judge(same).may_claim
    for changes in ({"airbridge": "0.0.9"}, {"airflow": "3.0.5"}, {"task_sdk": "1.0.5"}, {"protocol": 2}):
        assert not parity.judge(same.model_copy(update=changes)).may_enrol


def test_versions_are_judged_once_and_each_by_its_own() -> None:
    """A fleet says the same at every heartbeat: what was found is remembered, and is no other version's verdict."""
    parity = Parity.load(None)
    same = Versions(airbridge=parity.control_plane, airflow="3.0.4", task_sdk="1.0.4", python="3.12.1")
    other = same.model_copy(update={"airflow": "2.10.0"})
    assert parity.judge(same) is parity.judge(same.model_copy())
    assert parity.judge(same).may_claim
    assert not parity.judge(other).may_claim
    assert parity.judge(same).may_claim


def test_a_worker_must_run_an_image_of_the_releases_in_force() -> None:
    """With digests given, right versions are not enough; a worker that names no image is refused too."""
    current, before = "sha256:" + 64 * "a", "sha256:" + 64 * "b"
    parity = Parity.load(None, (current, before))
    own = Versions(airbridge=parity.control_plane, airflow="3.0.4", task_sdk="1.0.4", python="3.12.1")
    for image in (current, before):
        assert parity.judge(own.model_copy(update={"image": image})).may_claim
    for image in (None, "sha256:" + 64 * "c"):
        judgement = parity.judge(own.model_copy(update={"image": image}))
        assert not judgement.may_enrol
        assert current in judgement.detail
