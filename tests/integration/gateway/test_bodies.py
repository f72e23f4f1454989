"""Bodies on a running gateway: legitimate ones of tasks pass unchanged, and a refused one fails its task."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pendulum
import pytest
from sqlalchemy import select
from tests.integration.gateway.world import Worker, World, finished, record, xcom
from tests.security.attacks import bodies, gadgets

from airbridge.core.protocol import Grant, RecordResult
from airbridge.executor.ledger.models import Outcome

RICH: dict[str, Any] = {
    "pendulum": pendulum.datetime(2026, 3, 1, 12, tz="Europe/Berlin"),
    "datetime": datetime(2026, 3, 1, 12, tzinfo=UTC),
    "timedelta": timedelta(hours=1, microseconds=5),
    "set": {1, 2, "three"},
    "tuple": (1, ("two", [3.5, None, True])),
    "timezone": pendulum.timezone("Europe/Berlin"),
    "dict": {"nested": {"deeper": [{"set": {(1, 2)}}]}},
    "text": "Größe \N{SNOWMAN}",
}


@pytest.fixture
def granted(world: World) -> tuple[str, Worker, Grant]:
    [item] = world.items()
    worker = world.worker()
    return item, worker, worker.grant(item)


def send(worker: Worker, *records: Any) -> list[RecordResult]:
    return list(worker.exchange(*records).results)


def as_sent(trigger: Any, **deferred: Any) -> dict[str, Any]:
    """Return the body that Airflow's own supervisor sends for a deferral."""
    from airflow.sdk.api.datamodels._generated import TIDeferredStatePayload
    from airflow.sdk.execution_time.comms import DeferTask

    classpath, kwargs = trigger.serialize()
    message = DeferTask(classpath=classpath, trigger_kwargs=kwargs, next_method="resume", **deferred)
    payload = TIDeferredStatePayload(**message.model_dump(exclude_unset=True, exclude={"type"}))
    found: dict[str, Any] = json.loads(payload.model_dump_json())
    return found


def test_rich_kwargs_survive_a_deferral(world: World, granted: tuple[str, Worker, Grant]) -> None:
    """pendulum, datetime, timedelta, set, tuple and time zone come back as they were, Decimal as Airflow's text."""
    from airflow.models.trigger import Trigger
    from airflow.providers.standard.triggers.temporal import DateTimeTrigger

    item, worker, grant = granted
    moment = pendulum.now("Europe/Berlin").add(days=1)
    body = as_sent(
        DateTimeTrigger(moment=moment),
        next_kwargs={**RICH, "decimal": Decimal("1.5")},
        trigger_timeout=timedelta(minutes=5),
    )
    [result] = send(worker, record(grant, 1, "PATCH", "task-instances/{ti}/state", body))
    assert 204 == result.status, result.body
    task = world.task(item)
    assert ("deferred", "resume") == (task.state, task.next_method)
    assert {**RICH, "decimal": "1.5"} == task.next_kwargs
    with world.metadata.session() as session:
        trigger = session.get(Trigger, task.trigger_id)
        assert moment == trigger.kwargs["moment"]


@pytest.mark.parametrize(
    "value",
    [
        (1, 2),
        {"a": {"b": [1, 2.5, None, True, "x"]}},
        {1, 2},
        datetime(2026, 3, 1, tzinfo=UTC),
        pendulum.datetime(2026, 3, 1, tz="Europe/Berlin"),
        date(2026, 3, 1),
        timedelta(seconds=5),
        Decimal("1.25"),
        pendulum.timezone("Europe/Berlin"),
        json.dumps({"text": "that is JSON"}),
        # above 64 bits
        10**30,
    ],
    ids=str,
)
def test_task_sdk_xcom_round_trips(world: World, granted: tuple[str, Worker, Grant], value: Any) -> None:
    """A value that the Task SDK can write is stored, and read back as it was."""
    from airflow.serialization.serde import deserialize, serialize

    _, worker, grant = granted
    written, read = send(
        worker,
        xcom(grant, 1, "value", serialize(value)),
        record(
            grant, 2, "GET", f"xcoms/{grant.ti['dag_id']}/{grant.ti['run_id']}/{grant.ti['task_id']}/value"
        ),
    )
    assert (201, 200) == (written.status, read.status), written.body
    assert value == deserialize(json.loads(read.body or "")["value"])


def test_xcom_of_user_class_is_stored(granted: tuple[str, Worker, Grant]) -> None:
    """A class of the DAG's own is for tasks to decode; the control plane keeps it as JSON."""
    _, worker, grant = granted
    value = {"__classname__": "my_dags.models.Order", "__version__": 1, "__data__": {"id": 7}}
    [result] = send(worker, xcom(grant, 1, "order", value))
    assert 201 == result.status, result.body


@pytest.mark.parametrize(
    ("method", "path", "body", "place"),
    [
        (
            "PATCH",
            "task-instances/{ti}/state",
            bodies.deferral(next_kwargs=gadgets.encoded({"a": [gadgets.exception(Path("/x"))]})),
            "next_kwargs.a[0]: the type 'airflow_exc_ser'",
        ),
        ("PATCH", "task-instances/{ti}/state", {"state": "queued"}, "state: 'queued'"),
        ("PATCH", "task-instances/{ti}/state", [1], "state: None"),
        ("PUT", "task-instances/{ti}/rtif", {"f": {"__classname__": "x.Y"}}, "rendered_fields.f: "),
        ("PUT", "task-instances/{ti}/rtif", {"f": "a\x00b"}, "rendered_fields.f: text with a NUL"),
    ],
)
def test_refused_body_fails_its_task(
    world: World,
    granted: tuple[str, Worker, Grant],
    method: str,
    path: str,
    body: Any,
    place: str,
) -> None:
    """The attempt ends as failed with the rule in the ledger, the timeline and the audit trail; success comes too late."""
    item, worker, grant = granted
    refused, late = send(worker, record(grant, 1, method, path, body), finished(grant, 2))
    message = json.loads(refused.body or "")["detail"]["message"]
    assert 403 == refused.status
    assert message.startswith(f"body: {place}"), message
    assert "allowed: " in message
    assert 409 == late.status
    row = world.row(item)
    assert ("failed", Outcome.FAILED) == (world.task(item).state, row.outcome)
    assert message in row.detail
    [event] = [each for each in world.events("call.denied") if each.item_id == item]
    assert message == event.detail["why"]
    [audited] = world.audited("call.denied", item_id=item)
    assert audited.rule.startswith("body: ")


def test_refused_body_gets_same_answer_again(granted: tuple[str, Worker, Grant]) -> None:
    """A record that is sent again gets the answer that it got: nothing is applied twice, nothing is audited twice."""
    _, worker, grant = granted
    hostile = xcom(grant, 1, "hostile", gadgets.exception(Path("/x")))
    [first] = send(worker, hostile)
    [again] = send(worker, hostile)
    assert (403, first.body) == (again.status, again.body)


@pytest.mark.parametrize(
    "text",
    [
        '{"state": "failed", "state": "success", "end_date": "2026-01-01T00:00:00Z"}',
        '{"a": NaN}',
        '{"a": 1e999}',
        "[" * 5000,
        '"\\ud800"',
        "",
        # a byte order mark, which some parsers skip
        "\ufeff1",
    ],
)
def test_ambiguous_json_is_refused(world: World, granted: tuple[str, Worker, Grant], text: str) -> None:
    """Repeated keys, numbers that JSON does not have, lone surrogates and endless nesting are refused before they are used."""
    item, worker, grant = granted
    said = xcom(grant, 1, "k", 1).model_copy(update={"body": text})
    result, _ = send(worker, said, finished(grant, 2))
    assert 403 == result.status, result.body
    assert "failed" == world.task(item).state


def test_deepest_kwargs_are_decoded(world: World, granted: tuple[str, Worker, Grant]) -> None:
    """Kwargs nested as deeply as the validator allows are decoded by Airflow too."""
    item, worker, grant = granted
    value: Any = 1
    # Each encoding takes two levels of JSON: with the body's own they stay within the validator's 100.
    for _ in range(48):
        value = {"__type": "dict", "__var": {"k": value}}
    body = bodies.deferral(next_kwargs=value)
    [result] = send(worker, record(grant, 1, "PATCH", "task-instances/{ti}/state", body))
    assert 204 == result.status, result.body
    assert world.task(item).next_kwargs["k"]


def test_configured_trigger_class_is_allowed() -> None:
    """A class of `[airbridge] trigger_classes` passes; its module's others do not."""
    from airbridge.control_plane.gateway.validation.bodies import Bodies, Route
    from airbridge.control_plane.gateway.validation.triggers import TriggerClasses
    from airbridge.core.violations import Violation

    checker = Bodies(TriggerClasses.installed(["acme.triggers.OrderTrigger"]))
    checker.check(Route.STATE, json.dumps(bodies.deferral(classpath="acme.triggers.OrderTrigger")))
    with pytest.raises(Violation, match="trigger class"):
        checker.check(Route.STATE, json.dumps(bodies.deferral(classpath="acme.triggers.Popen")))


def test_stored_bodies_reach_no_trigger_table(world: World, granted: tuple[str, Worker, Grant]) -> None:
    """A refused deferral leaves no trigger behind."""
    from airflow.models.trigger import Trigger

    _, worker, grant = granted
    with world.metadata.session() as session:
        before = len(session.scalars(select(Trigger.id)).all())
    send(
        worker, record(grant, 1, "PATCH", "task-instances/{ti}/state", bodies.deferral(classpath="os.system"))
    )
    with world.metadata.session() as session:
        assert before == len(session.scalars(select(Trigger.id)).all())
