"""A strict region: what its supervisors take out of messages, and what the gateway refuses whatever is sent."""

from __future__ import annotations

import json
from typing import Any

import pytest
from airflow.sdk.execution_time.comms import (
    DeferTask,
    PutVariable,
    SetRenderedFields,
    SetXCom,
    SucceedTask,
    TaskState,
    TriggerDagRun,
)
from tests.unit.control_plane.test_rules import BODIES, SCOPES, TASK, policy

from airbridge.control_plane.gateway.auth.residency import Residency
from airbridge.control_plane.gateway.auth.task_permissions import Call, Denied, judge, judge_trigger
from airbridge.control_plane.gateway.triggers.events import Failed, Fired
from airbridge.core.protocol import TRIGGER_EVENT, Record
from airbridge.core.residency import xcoms
from airbridge.core.residency.settings import WITHHELD, Kept
from airbridge.core.residency.xcoms import Form, ObjectName, StoredXCom
from airbridge.edge_worker._airflow import strict

STRICT = Residency({(TASK.region, TASK.pool): Kept(strict=True, inline_bytes=0)})
CANARY = "canary5e1f"
NOW = "2026-01-01T00:00:00Z"
STATE = f"task-instances/{TASK.ti_id}/state"
XCOM = f"xcoms/{TASK.dag_id}/{TASK.run_id}/{TASK.task_id}/return_value"
REFERENCE = StoredXCom(
    TASK.region, ObjectName.of(TASK.dag_id, TASK.run_id, TASK.item_id, "ab" * 32), 9, Form.JSON
).encode()
DEFERRED = {
    "state": "deferred",
    "classpath": "acme.triggers.OrderTrigger",
    "next_method": "go",
}
EVENTS: dict[str, dict[str, Any]] = {
    "payload": {"payload": {"__type": "dict", "__var": {"payload": CANARY}}},
    "xcoms": {"payload": {}, "state": "success", "xcoms": {"return_value": CANARY}},
    "skips": {"payload": {}, "state": "success", "xcoms": {xcoms.SKIP_KEY: {"skipped": [CANARY]}}},
}
OUTLET = {"dest_asset_key": {"name": "a", "uri": "x-a://a"}, "extra": {"k": CANARY}}


def ask(method: str, path: str, body: object, residency: Residency = STRICT) -> Call | Denied:
    record = {
        "item_id": TASK.item_id,
        "epoch": 1,
        "seq": 1,
        "method": method,
        "path": path,
        "query": f"map_index={TASK.map_index}" if path == XCOM else "",
        "body": json.dumps(body),
        "recorded_at": NOW,
    }
    return judge(Record.model_validate(record), TASK, SCOPES, policy(), bodies=BODIES, residency=residency)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PATCH", STATE, DEFERRED),
        ("PATCH", STATE, {"state": "success", "end_date": NOW, "rendered_map_index": CANARY}),
        ("PATCH", STATE, {"state": "success", "end_date": NOW, "outlet_events": [OUTLET]}),
        ("PUT", f"task-instances/{TASK.ti_id}/rtif", {"sql": CANARY}),
        ("PUT", "variables/etl_state_x", {"val": CANARY}),
        ("POST", "dag-runs/cleanup/r", {"conf": {"k": CANARY}}),
        ("POST", XCOM, CANARY),
        ("POST", XCOM, 1),
        ("POST", XCOM, None),
    ],
    ids=["deferral", "map_index", "asset", "rendered", "variable", "conf", "xcom", "number", "null"],
)
def test_gateway_refuses_values(method: str, path: str, body: object) -> None:
    """Each call with a value is refused, whatever the worker is; nothing of the value is in the reason."""
    denied = ask(method, path, body)
    assert isinstance(denied, Denied)
    assert CANARY not in denied.detail
    assert denied.rule == f"residency of region {TASK.region}"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PATCH", STATE, {"state": "success", "end_date": NOW}),
        ("PATCH", STATE, {"state": "up_for_retry", "end_date": NOW}),
        ("PUT", f"task-instances/{TASK.ti_id}/rtif", {"sql": WITHHELD}),
        ("POST", XCOM, REFERENCE),
    ],
    ids=["success", "retry", "rendered", "reference"],
)
def test_gateway_takes_states_and_references(method: str, path: str, body: object) -> None:
    """States, withheld fields and references to the task's own objects pass."""
    assert isinstance(ask(method, path, body), Call), ask(method, path, body)


def fire(body: object, residency: Residency = STRICT) -> Call | Denied | None:
    record = {
        "item_id": TASK.item_id,
        "epoch": 1,
        "seq": 1,
        "method": "POST",
        "path": TRIGGER_EVENT,
        "query": "",
        "body": json.dumps(body),
        "recorded_at": NOW,
    }
    return judge_trigger(Record.model_validate(record), TASK, residency)


@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)
def test_gateway_refuses_events(event: dict[str, Any]) -> None:
    """What a trigger's event has, XComs by reference included, does not leave a strict region, and is not in the reason."""
    assert isinstance(fire({"event": event}, Residency()), Call)
    denied = fire({"event": event})
    assert isinstance(denied, Denied)
    assert CANARY not in denied.detail
    assert (denied.rule, denied.fails) == (f"residency of region {TASK.region}", True)


def test_gateway_takes_states_of_triggers() -> None:
    """A trigger may end its task, and may fail; the traceback of a failure is left out."""
    ended = fire({"event": {"payload": {}, "state": "success", "xcoms": None}})
    assert isinstance(ended, Call)
    assert ended.fired == Fired({}, "success")
    failed, quoted = fire({"failure": [CANARY]}), fire({"failure": [CANARY]}, Residency())
    assert isinstance(failed, Call)
    assert failed.fired == Failed()
    assert isinstance(quoted, Call)
    assert quoted.fired == Failed((CANARY,))


def test_malformed_event_is_not_quoted() -> None:
    """A malformed event is quoted in the reason of an open region, and not of a strict one."""
    body = {"event": {"payload": {}, "state": CANARY}}
    quoted, silent = fire(body, Residency()), fire(body)
    assert isinstance(quoted, Denied)
    assert CANARY in quoted.detail
    assert isinstance(silent, Denied)
    assert CANARY not in silent.detail


@pytest.mark.parametrize(
    "body",
    [{"failure": [CANARY]}, *({"event": event} for event in EVENTS.values())],
    ids=["failure", *EVENTS],
)
def test_events_are_taken_out(body: dict[str, Any]) -> None:
    """A trigger's process sends no value: what is refused later never left the host."""
    withheld = strict.withhold_event(body)
    assert CANARY not in json.dumps(withheld)
    assert isinstance(fire(withheld), Call if "failure" in body else Denied)
    assert isinstance(fire(withheld, Residency()), Call)


def test_refusal_quotes_nothing() -> None:
    """A refused body is quoted in the reason of an open region, and not of a strict one."""
    body = {"state": CANARY}
    quoted, silent = ask("PATCH", STATE, body, Residency()), ask("PATCH", STATE, body)
    assert isinstance(quoted, Denied)
    assert CANARY in quoted.detail
    assert isinstance(silent, Denied)
    assert CANARY not in silent.detail
    forged = {**REFERENCE, "__data__": {**REFERENCE["__data__"], "object": CANARY}}
    denied = ask("POST", XCOM, forged)
    assert isinstance(denied, Denied)
    assert CANARY not in denied.detail


MESSAGES: dict[str, Any] = {
    "rendered": SetRenderedFields(rendered_fields={"sql": CANARY}),
    "xcom": SetXCom(key="k", value=CANARY, dag_id="d", run_id="r", task_id="t"),
    "variable": PutVariable(key="k", value=CANARY, description=CANARY),
    "conf": TriggerDagRun(dag_id="d", run_id="r", conf={"k": CANARY}),
    "deferral": DeferTask(
        classpath="a.B", trigger_kwargs={"k": CANARY}, next_method="go", next_kwargs={"k": CANARY}
    ),
    "asset": SucceedTask(end_date=NOW, task_outlets=[], outlet_events=[OUTLET], rendered_map_index=CANARY),
    "map_index": TaskState(state="failed", end_date=NOW, rendered_map_index=CANARY),
}


@pytest.mark.parametrize("what", MESSAGES)
def test_values_are_taken_out(what: str) -> None:
    """A supervisor sends none of it: what is refused later never left the host."""
    assert CANARY in MESSAGES[what].model_dump_json()
    assert CANARY not in strict.withhold(MESSAGES[what]).model_dump_json()


def test_references_and_skips_stay() -> None:
    """A reference, and the scheduler's list of skipped tasks, are sent as they are."""
    for key, value in (("k", REFERENCE), (xcoms.SKIP_KEY, {"skipped": ["t"]})):
        message = SetXCom(key=key, value=value, dag_id="d", run_id="r", task_id="t")
        assert strict.withhold(message) == message
