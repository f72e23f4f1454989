"""Attacks by the bodies of a task's calls: code in the gateway, scheduler, API server and triggerer; other teams' assets."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.security.attacks import gadgets
from tests.security.attacks.registry import Result, attack

DATE_TIME = "airflow.providers.standard.triggers.temporal.DateTimeTrigger"
# 2100-01-01: the trigger does not fire while the test runs.
MOMENT = {"__type": "datetime", "__var": 4_102_444_800.0}
SETTLING_SECONDS = 0.3
"""A process that an attack starts needs a moment to leave its mark."""


def deferral(**changes: Any) -> dict[str, Any]:
    """Return the body of a deferral as the Task SDK sends it."""
    return {
        "state": "deferred",
        "classpath": DATE_TIME,
        "trigger_kwargs": gadgets.encoded({"moment": MOMENT, "end_from_trigger": False}),
        "next_method": "resume",
        "next_kwargs": gadgets.encoded({}),
        **changes,
    }


def success(**changes: Any) -> dict[str, Any]:
    """Return the body of a success."""
    return {"state": "success", "end_date": datetime.now(UTC).isoformat(), **changes}


def forward(world: Any, method: str, path: str, body: Any, query: str = "") -> tuple[str, str]:
    """Send one call of a task of its own; return the item's id and what the gateway answered."""
    from tests.integration.gateway.world import record

    [item] = world.items()
    grant = world.worker().grant(item)
    ti = grant.ti
    path = path.format(ti=ti["id"], own=f"{ti['dag_id']}/{ti['run_id']}/{ti['task_id']}")
    worker = world.workers[-1]
    [result] = worker.exchange(record(grant, 1, method, path, body, query)).results
    return item, f"{result.status} {result.body or ''}"


def send_state(world: Any, body: dict[str, Any]) -> tuple[str, str]:
    """Report a state; return the item's id and the answer."""
    return forward(world, "PATCH", "task-instances/{ti}/state", body)


def _trigger_rows(world: Any, item: str) -> list[Any]:
    """Return the triggers that the item's task waits for, decoded as the triggerer does."""
    from airflow.models.trigger import Trigger

    trigger_id = world.task(item).trigger_id
    with world.metadata.session() as session:
        row = session.get(Trigger, trigger_id) if trigger_id else None
        return [] if row is None else [(row.classpath, row.encrypted_kwargs)]


def _run_as_triggerer(world: Any, item: str) -> None:
    """Do what Airflow's `TriggerRunner.create_triggers` does with the item's trigger, its harm included."""
    from airflow.models.trigger import Trigger
    from airflow.serialization.serialized_objects import smart_decode_trigger_kwargs
    from airflow.utils.module_loading import import_string

    for classpath, kwargs in _trigger_rows(world, item):
        trigger_class = import_string(classpath)
        decoded = Trigger._decrypt_kwargs(kwargs)
        trigger_class(**{key: smart_decode_trigger_kwargs(each) for key, each in decoded.items()})


def _ran(world: Any, marker: Path, body: dict[str, Any], *, in_triggerer: bool = False) -> Result:
    item, answer = send_state(world, body)
    if in_triggerer:
        _quietly(lambda: _run_as_triggerer(world, item))
    time.sleep(SETTLING_SECONDS)
    harm = "code of the task ran in the control plane" if marker.exists() else ""
    return Result(harm, answer)


def _quietly(run: Callable[[], Any]) -> None:
    try:
        run()
    except Exception as error:  # noqa: BLE001 - whatever a hostile value does to Airflow
        print("the attacked process met", type(error).__name__)


@attack(row=1)
def exception_in_next_kwargs(world: Any, directory: Path) -> Result:
    """`TaskDeferred(kwargs=...)` with an exception of the class `builtins.exec`: decoded by Airflow's route in the gateway."""
    marker = directory / "marker"
    return _ran(world, marker, deferral(next_kwargs=gadgets.exception(marker)))


@attack(row=1)
def nested_exception_in_next_kwargs(world: Any, directory: Path) -> Result:
    """The same inside of a dict, a tuple and a list."""
    marker = directory / "marker"
    inner = {"__type": "tuple", "__var": [[gadgets.builtin_exception(marker)]]}
    return _ran(world, marker, deferral(next_kwargs={"__type": "dict", "__var": {"key": inner}}))


@attack(row=1)
def trigger_in_next_kwargs(world: Any, directory: Path) -> Result:
    """A trigger of the class `subprocess.Popen` among the kwargs."""
    marker = directory / "marker"
    return _ran(
        world, marker, deferral(next_kwargs={"__type": "dict", "__var": {"key": gadgets.trigger(marker)}})
    )


@attack(row=1)
def encoding_with_another_key(world: Any, directory: Path) -> Result:
    """An encoding with a key more than it has: Airflow does not look at it."""
    marker = directory / "marker"
    body = deferral(next_kwargs={"__type": "dict", "__var": {"key": gadgets.trigger(marker)}, "more": 1})
    return _ran(world, marker, body)


@attack(row=2)
def popen_as_trigger(world: Any, directory: Path) -> Result:
    """A trigger that serialises itself as `subprocess.Popen`: the triggerer calls it."""
    marker = directory / "marker"
    kwargs = gadgets.encoded({"args": ["touch", str(marker)]})
    body = deferral(classpath="subprocess.Popen", trigger_kwargs=kwargs)
    return _ran(world, marker, body, in_triggerer=True)


@attack(row=2)
def exception_in_trigger_kwargs(world: Any, directory: Path) -> Result:
    """An exception among the kwargs of a good trigger: decoded by the triggerer, and by the API server that shows it."""
    marker = directory / "marker"
    body = deferral(trigger_kwargs={"__type": "dict", "__var": {"moment": gadgets.exception(marker)}})
    return _ran(world, marker, body, in_triggerer=True)


@attack(row=2)
def twice_encoded_trigger_kwargs(world: Any, directory: Path) -> Result:
    """A value that becomes an exception when the triggerer decodes it for the second time."""
    marker = directory / "marker"
    inner = gadgets.twice(gadgets.exception(marker))
    body = deferral(trigger_kwargs={"__type": "dict", "__var": {"moment": inner}})
    return _ran(world, marker, body, in_triggerer=True)


@attack(row=2)
def trigger_kwargs_as_text(world: Any, directory: Path) -> Result:
    """Kwargs as text, which Airflow takes for encrypted ones unless they begin with a brace."""
    marker = directory / "marker"
    text = json.dumps({"__type": "dict", "__var": {"moment": gadgets.exception(marker)}})
    return _ran(world, marker, deferral(trigger_kwargs=text), in_triggerer=True)


@attack(row=2)
def trigger_that_deletes_files(world: Any, directory: Path) -> Result:
    """A provider's own trigger that deletes a file, which in the triggerer is one of the control plane's."""
    victim = directory / "signing.key"
    victim.write_text("key")
    classpath = "airflow.providers.standard.triggers.file.FileDeleteTrigger"
    kwargs = gadgets.encoded({"filepath": str(victim), "poke_interval": 1})
    item, answer = send_state(world, deferral(classpath=classpath, trigger_kwargs=kwargs))
    return Result(
        "the triggerer is told to delete a file of its own" if _trigger_rows(world, item) else "", answer
    )


@attack(row=2)
def trigger_with_a_foreign_connection(world: Any, directory: Path) -> Result:
    """A trigger that runs SQL under a connection which the policy does not let the task read."""
    classpath = "airflow.providers.common.sql.triggers.sql.SQLExecuteQueryTrigger"
    kwargs = gadgets.encoded({"sql": "select 1", "conn_id": "payroll_db", "hook_params": None})
    with world.under(NARROW):
        item, answer = send_state(world, deferral(classpath=classpath, trigger_kwargs=kwargs))
    return Result(
        "the triggerer is told to use a forbidden connection" if _trigger_rows(world, item) else "", answer
    )


@attack(row=1)
def next_kwargs_that_no_scheduler_loads(world: Any, directory: Path) -> Result:
    """Kwargs that do not decode to a dict: every later load of the task instance fails."""
    body = deferral(next_kwargs={"__type": "set", "__var": ["a"]})
    item, answer = send_state(world, body)
    try:
        _ = world.task(item).next_kwargs
    except ValueError as error:
        return Result(f"the task instance cannot be loaded: {error}", answer)
    return Result("", answer)


@attack(row=1)
def trigger_kwargs_by_xcom(world: Any, directory: Path) -> Result:
    """An XCom that is an encoded exception: as a mapped trigger's kwarg it would be decoded in the triggerer."""
    marker = directory / "marker"
    return _stored_xcom(world, marker, gadgets.exception(marker))


@attack(row=1)
def class_in_a_string_of_json(world: Any, directory: Path) -> Result:
    """An XCom that is text with a class in it: `XComModel.deserialize_value` decodes it in the scheduler."""
    text = json.dumps({"__classname__": "airflow.models.dag.DAG", "__version__": 0, "__data__": {}})
    return _stored_xcom(world, directory / "marker", text)


def _stored_xcom(world: Any, marker: Path, value: Any) -> Result:
    from airflow.models.xcom import XComModel
    from sqlalchemy import select

    item, answer = forward(world, "POST", "xcoms/{own}/hostile", value)
    dag_id = world.row(item).dag_id
    with world.metadata.session() as session:
        stored = session.scalars(select(XComModel).where(XComModel.dag_id == dag_id)).all()
    return Result("the value is stored where the control plane decodes it" if stored else "", answer)


# --- Assets -----------------------------------------------------------------------------------------

NARROW = """
schema = 1
[[rule]]
name = "run-everywhere"
dags = ["*"]
queues.claim = ["*"]
"""


def _assets(world: Any) -> tuple[str, str, Any]:
    """Make an asset of another team's and one that the attacker's task declares; return their marks and the operator."""
    from airflow.models.asset import AssetActive, AssetModel
    from airflow.providers.standard.operators.empty import EmptyOperator
    from airflow.sdk import Asset

    mark = uuid4().hex[:8]
    payroll, own = f"payroll-{mark}", f"s3://own/{mark}"
    with world.metadata.session() as session:
        for name, uri in ((payroll, f"s3://payroll/{mark}"), (f"own-{mark}", own)):
            session.add(AssetModel(name=name, uri=uri, group="asset", extra={}))
            session.flush()
            session.add(AssetActive(name=name, uri=uri))
        session.commit()

    def operator(**arguments: Any) -> Any:
        return EmptyOperator(outlets=[Asset(name=f"own-{mark}", uri=own)], **arguments)

    return payroll, own, operator


def _changes(world: Any, name: str) -> int:
    from airflow.models.asset import AssetEvent, AssetModel
    from sqlalchemy import func, select

    query = (
        select(func.count()).select_from(AssetEvent).join(AssetModel, AssetModel.id == AssetEvent.asset_id)
    )
    with world.metadata.session() as session:
        return int(session.scalar(query.where(AssetModel.name == name)))


def _report_outlets(world: Any, operator: Any, **body: Any) -> str:
    from tests.integration.gateway.world import record

    [item] = world.items(operator=operator)
    worker = world.worker()
    grant = worker.grant(item)
    [result] = worker.exchange(
        record(grant, 1, "PATCH", "task-instances/{ti}/state", success(**body))
    ).results
    return f"{result.status} {result.body or ''}"


@attack(row=10)
def foreign_asset_by_name_with_own_uri(world: Any, directory: Path) -> Result:
    """A change of "payroll" by its name, with the URI of an own asset beside it that Airflow does not look at."""
    payroll, own, operator = _assets(world)
    outlet = {"name": payroll, "uri": own, "type": "AssetNameRef"}
    with world.under(NARROW):
        answer = _report_outlets(world, operator, task_outlets=[outlet])
    return Result("another team's asset was changed" if _changes(world, payroll) else "", answer)


@attack(row=10)
def foreign_name_created_by_alias(world: Any, directory: Path) -> Result:
    """An event of an alias that is nobody's makes an asset with another team's name and an own URI."""
    payroll, own, operator = _assets(world)
    key = {"name": payroll, "uri": own}
    event = {"source_alias_name": "alias", "dest_asset_key": key, "extra": {}}
    outlet = {"name": "alias", "uri": None, "type": "AssetAlias"}
    with world.under(NARROW):
        answer = _report_outlets(world, operator, task_outlets=[outlet], outlet_events=[event])
    return Result("an asset of another team's name was changed" if _changes(world, payroll) else "", answer)


@attack(row=10)
def foreign_asset_read_with_own_uri(world: Any, directory: Path) -> Result:
    """A read of "payroll" by its name, with an own URI in the query that Airflow does not look at."""
    from urllib.parse import urlencode

    from tests.integration.gateway.world import record

    payroll, own, operator = _assets(world)
    with world.under(NARROW):
        [item] = world.items(operator=operator)
        worker = world.worker()
        query = urlencode({"name": payroll, "uri": own})
        asked = record(worker.grant(item), 1, "GET", "assets/by-name", query=query)
        [result] = worker.exchange(asked).results
    return Result(
        "another team's asset was read" if result.status == 200 else "", f"{result.status} {result.body}"
    )
