"""The gateway's decisions, without a socket or a database."""

from __future__ import annotations

import asyncio
import json
import threading
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl
from uuid import UUID

import pytest
from sqlalchemy import exc as sql
from tests.unit.executor.catalogues import catalogue

from airbridge.control_plane.exceptions import Unavailable
from airbridge.control_plane.gateway.api.health import Readiness
from airbridge.control_plane.gateway.audit.denials import Denial, DenialLog, Rates
from airbridge.control_plane.gateway.auth.task_permissions import Call, Denied, judge
from airbridge.control_plane.gateway.database import transient
from airbridge.control_plane.gateway.net.thread_pools import ThreadPool
from airbridge.control_plane.gateway.threads import HEARTBEAT_RETRY_SECONDS, ThreadPools
from airbridge.control_plane.gateway.validation.bodies import Bodies
from airbridge.control_plane.gateway.validation.triggers import TriggerClasses
from airbridge.control_plane.gateway.work.fencing import fence
from airbridge.control_plane.identity.scopes import Scopes
from airbridge.control_plane.parity import MAX_CACHED, Parity
from airbridge.control_plane.policy.decisions import Access, AirflowPolicy, Ruling, TaskFacts
from airbridge.control_plane.read_model.platform import Platform
from airbridge.core.protocol import Record, RefusalReason, Versions
from airbridge.executor.ledger.models import ItemState, Outcome, WorkItemRow

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


BODIES = Bodies(TriggerClasses(frozenset()))
WELL_FORMED = {
    "state": json.dumps({"state": "failed", "end_date": datetime.now(UTC).isoformat()}),
    "key": "1",
    "k": "1",
    "any": json.dumps({"val": "1", "description": None}),
    "run": "{}",
}
"""Bodies by the last segment of the path."""


def asked(method: str, path: str, query: str = "") -> Record:
    return Record(
        item_id=UUID(TASK.item_id),
        epoch=1,
        seq=1,
        method=method,
        path=path,
        query=query,
        body=WELL_FORMED.get(path.rpartition("/")[2]) if method in {"PUT", "PATCH", "POST"} else None,
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
def test_task_calls_follow_permission_table(method: str, path: str, query: str, allowed: bool) -> None:
    """The table of calls, row by row, with ways around it."""
    assert (
        isinstance(judge(asked(method, path, query), TASK, EVERYTHING, AirflowPolicy(), bodies=BODIES), Call)
        == allowed
    )


@pytest.mark.parametrize(
    "query",
    ["name=ä", "name=%C3%A4", "name=%ff", "a=1;name=x", "name=x&other=1&other=", "&&name=a+b%20c", "name=%"],
)
def test_airflow_gets_the_judged_query(query: str) -> None:
    """Airflow's framework reads from the forwarded query what was judged, whatever the sender's encoding was."""
    call = judge(asked("GET", "assets/by-name", query), TASK, EVERYTHING, AirflowPolicy(), bodies=BODIES)
    assert isinstance(call, Call)
    # As Starlette's HTTPConnection does.
    read = parse_qsl(call.query.encode().decode("latin-1"), keep_blank_values=True)
    assert parse_qsl(query, keep_blank_values=True) == read


def test_mapped_task_writes_own_index() -> None:
    """The map index stands in the query, and must be the task's."""
    from dataclasses import replace

    mapped = replace(TASK, map_index=3)
    assert isinstance(
        judge(asked("POST", f"{XCOM}/k", "map_index=3"), mapped, EVERYTHING, AirflowPolicy(), bodies=BODIES),
        Call,
    )
    assert isinstance(
        judge(asked("POST", f"{XCOM}/k"), mapped, EVERYTHING, AirflowPolicy(), bodies=BODIES), Denied
    )


@pytest.mark.parametrize(("map_index", "query"), [(3, "map_index=3"), (-1, "map_index=-1")])
def test_deletion_without_index_is_of_own(map_index: int, query: str) -> None:
    """A deletion that names no map index is that of the task's own XCom, and of no other task's."""
    from dataclasses import replace

    task = replace(TASK, map_index=map_index)
    call = judge(asked("DELETE", f"{XCOM}/k"), task, EVERYTHING, AirflowPolicy(), bodies=BODIES)
    assert isinstance(call, Call)
    assert query == call.query
    for path, given in (
        (f"{XCOM}/k", "map_index=7"),
        (f"{XCOM}/k", "map_index="),
        ("xcoms/dag/r/other/k", ""),
    ):
        other = judge(asked("DELETE", path, given), task, EVERYTHING, AirflowPolicy(), bodies=BODIES)
        assert isinstance(other, Denied)


def test_scopes_narrow_task_calls() -> None:
    """A worker's token may be narrower than the table."""
    narrow = Scopes.parse(["connections:read eu_* region=eu-*", "xcoms:read"])
    policy = AirflowPolicy()
    assert isinstance(judge(asked("GET", "connections/eu_db"), TASK, narrow, policy, bodies=BODIES), Call)
    assert isinstance(judge(asked("GET", "connections/us_db"), TASK, narrow, policy, bodies=BODIES), Denied)
    assert isinstance(judge(asked("GET", "variables/x"), TASK, narrow, policy, bodies=BODIES), Denied)


def test_policy_decides_on_task_calls() -> None:
    """The policy sees action, name, DAG and run, and its message reaches the task."""
    seen: list[Access] = []

    class No:
        def judge(self, task: TaskFacts, access: Access) -> Ruling:
            seen.append(access)
            return Ruling(False, "policy: no rule", "rule 7")

    assert judge(asked("GET", "xcoms/d/r/t/k"), TASK, EVERYTHING, No(), bodies=BODIES) == Denied(
        "rule 7", "policy: no rule"
    )
    assert seen == [Access("xcoms:read", "k", "d", "r")]


def row(**changes: Any) -> WorkItemRow:
    return WorkItemRow(**{"state": ItemState.CLAIMED, "epoch": 2, "worker_id": "w1", **changes})


@pytest.mark.parametrize(
    ("found", "epoch", "reason", "was_holder"),
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
    found: WorkItemRow | None, epoch: int, reason: RefusalReason | None, was_holder: bool
) -> None:
    """Worker, epoch and state decide together who may write."""
    judged = fence(found, "w1", epoch)
    assert (judged.reason, judged.was_holder) == (reason, was_holder)


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
    """Errors of an unavailable or busy database are transient; those of a wrong statement are not."""
    assert transient(error) == worth_a_retry


def test_every_connection_has_a_place_for_a_heartbeat() -> None:
    """As many heartbeats wait as the gateway takes connections; one more is to come again later than other requests."""

    async def scene() -> None:
        threads = ThreadPools.of(4, connections=3)
        async with threads.heartbeats.admit(), threads.heartbeats.admit(), threads.heartbeats.admit():
            assert threads.heartbeats.admitted == 3
            with pytest.raises(Unavailable) as refused:
                await threads.heartbeats.run(lambda: None)
        assert refused.value.retry_after == HEARTBEAT_RETRY_SECONDS
        threads.close()

    asyncio.run(scene())


def test_full_thread_pool_sheds_load() -> None:
    """One request too many is refused; a request that was admitted runs all its work under one place."""

    async def scene() -> None:
        threads = ThreadPool("test", threads=1, requests=1, retry_after=3.0)
        async with threads.admit() as admitted:
            with pytest.raises(Unavailable) as refused:
                await threads.run(lambda: 7)
            assert refused.value.retry_after == 3.0
            assert [await admitted.run(lambda: 7) for _ in range(2)] == [7, 7]
        assert await threads.run(lambda: 7) == 7
        threads.close()

    asyncio.run(scene())


def test_readiness_is_checked_once() -> None:
    """Any number of callers at the same time cost one check; one that goes away does not end it for the others."""
    checks: list[int] = []
    released = threading.Event()

    def check() -> str | None:
        checks.append(1)
        released.wait(10)
        return "the database is away"

    async def scene() -> list[Any]:
        threads = ThreadPool("test", threads=1, requests=1)
        readiness = Readiness(threads, check)
        callers = [asyncio.create_task(readiness.why_not()) for _ in range(50)]
        await asyncio.sleep(0.01)
        callers[0].cancel()
        released.set()
        answers = await asyncio.gather(*callers[1:], readiness.why_not())
        threads.close()
        return answers

    assert asyncio.run(scene()) == ["the database is away"] * 50
    assert checks == [1]


def test_anonymous_denials_are_rate_limited() -> None:
    """Denials of unauthenticated callers get rows in a burst, then at a steady rate; those of known callers have a separate rate."""
    now = [0.0]
    denials = DenialLog(Rates(), monotonic=lambda: now[0])
    stranger = Denial("request.refused", "anonymous", "127.0.0.1:1", None, None, {})
    known = Denial("request.refused", "operator:ann", "127.0.0.1:1", None, None, {})
    assert sum(denials.admit(stranger) for _ in range(1000)) == Rates().anonymous_burst
    assert denials.admit(known)
    now[0] = 1.0
    assert sum(denials.admit(stranger) for _ in range(1000)) == Rates().anonymous


def test_same_release_without_matrix() -> None:
    """Without a matrix file only exactly the same versions may claim."""
    parity = Parity.load(None)
    same = Versions(airbridge=parity.control_plane, airflow="3.0.4", task_sdk="1.0.4", python="3.12.1")
    assert parity.judge(same).may_claim
    for changes in ({"airbridge": "0.0.9"}, {"airflow": "3.0.5"}, {"task_sdk": "1.0.5"}, {"protocol": 2}):
        assert not parity.judge(same.model_copy(update=changes)).may_enrol


def test_judgements_are_cached_by_version() -> None:
    """A judgement is cached by the full set of versions, and reused for no other set."""
    parity = Parity.load(None)
    same = Versions(airbridge=parity.control_plane, airflow="3.0.4", task_sdk="1.0.4", python="3.12.1")
    other = same.model_copy(update={"airflow": "2.10.0"})
    assert parity.judge(same) is parity.judge(same.model_copy())
    assert parity.judge(same).may_claim
    assert not parity.judge(other).may_claim
    assert parity.judge(same).may_claim


def test_judgement_of_json_is_the_same() -> None:
    """Versions as JSON get the judgement of the versions; only accepted texts are cached, and a bounded number of them."""
    parity = Parity.load(None)
    same = Versions(airbridge=parity.control_plane, airflow="3.0.4", task_sdk="1.0.4", python="3.12.1")
    text, refused = same.model_dump_json(), same.model_copy(update={"airflow": "2.10.0"}).model_dump_json()
    assert parity.judge_json(text) is parity.judge_json(text) is parity.judge(same)
    assert not parity.judge_json(refused).may_claim
    for spaces in range(2 * MAX_CACHED):
        assert parity.judge_json(text + " " * spaces).may_claim
    assert refused not in parity._judged
    assert len(parity._judged) == MAX_CACHED


def test_refused_versions_are_not_cached_for_lists() -> None:
    """Workers that report ever new versions do not fill the memory of those who list them."""
    parity = Parity.load(None)
    platform = Platform(catalogue(), parity)
    same = Versions(airbridge=parity.control_plane, airflow="3.0.4", task_sdk="1.0.4", python="3.12.1")
    assert platform.judge(same.model_dump()).may_claim
    for number in range(10):
        changes = {"airbridge": f"0.0.{number}"}
        assert not platform.judge(same.model_copy(update=changes).model_dump()).may_claim
    assert len(platform._judged) == 1


def test_worker_image_must_be_released() -> None:
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
