"""Gadgets in serialised DAGs: what a DAG author's process sends to be stored, so that the control plane decodes it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

POPEN = "subprocess.Popen"


def _encoded(kind: str, value: Any) -> dict[str, Any]:
    return {"__type": kind, "__var": value}


def _exception(kind: str, name: str) -> dict[str, Any]:
    members = {"exc_cls_name": name, "args": [["id"]], "kwargs": _encoded("dict", {})}
    return _encoded(kind, _encoded("dict", members))


def _trigger(classpath: str) -> dict[str, Any]:
    return {"classpath": classpath, "kwargs": {"args": ["id"]}}


EXCEPTION = _exception("airflow_exc_ser", "builtins.exec")
BUILTIN = _exception("base_exc_ser", "exec")
TRIGGER = _encoded("base_trigger", _encoded("tuple", [POPEN, _encoded("dict", {})]))
PARAM = {"__class": "subprocess.getoutput", "default": "id", "description": None, "schema": None}


def _dag(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda data: data["dag"].update(fields)


METADATA = "http://169.254.169.254/latest/"


def _schema(**schema: Any) -> Callable[[dict[str, Any]], None]:
    return _dag(params=[["p", {**PARAM, "__class": "airflow.sdk.definitions.param.Param", "schema": schema}]])


WATCHED = {
    "__type": "asset", "name": "a", "uri": "a", "group": "asset", "extra": {},
    "watchers": [{"name": "w", "trigger": _trigger(POPEN)}],
}  # fmt: skip
WATCHED_VALUE = _encoded("asset", {key: value for key, value in WATCHED.items() if key != "__type"})


def _task(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda data: data["dag"]["tasks"][0]["__var"].update(fields)


def _starts(classpath: str, **fields: Any) -> Callable[[dict[str, Any]], None]:
    arguments = {
        "__type": "START_TRIGGER_ARGS", "trigger_cls": classpath, "trigger_kwargs": None, "next_method": "execute",
        "next_kwargs": None, "timeout": None,
    }  # fmt: skip
    return _task(start_trigger_args=arguments, **fields)


GADGETS: dict[str, Callable[[dict[str, Any]], None]] = {
    "exception in access_control": _dag(access_control=EXCEPTION),
    "exception in default_args": _dag(default_args=_encoded("dict", {"retries": EXCEPTION})),
    "builtin exception in executor_config": _task(executor_config=BUILTIN),
    "exception in a field of no operator": _task(whatever=EXCEPTION),
    "exception in partial_kwargs": _task(_is_mapped=True, partial_kwargs={"x": EXCEPTION}),
    "exception in expand_input": _task(expand_input={"type": "dict-of-lists", "value": EXCEPTION}),
    "exception in op_kwargs_expand_input": _task(op_kwargs_expand_input={"type": "x", "value": [EXCEPTION]}),
    "exception in operator_class": _task(operator_class={"x": EXCEPTION}),
    "exception in an inlet": _task(inlets=[EXCEPTION]),
    "exception in a param's default": _dag(params=[["p", {**PARAM, "__class": "airflow.sdk.definitions.param.Param", "default": EXCEPTION}]]),
    "exception in next_kwargs": lambda data: (
        _starts("airflow.providers.standard.triggers.temporal.DateTimeTrigger")(data),
        data["dag"]["tasks"][0]["__var"]["start_trigger_args"].update(next_kwargs=EXCEPTION),
    )[0],
    "exception in a task group": lambda data: data["dag"]["task_group"].update(tooltip=EXCEPTION),
    "exception in a mapped task group": lambda data: data["dag"]["task_group"].update(
        is_mapped=True, expand_input={"type": "dict-of-lists", "value": EXCEPTION}
    ),
    "trigger in a field": _task(whatever=TRIGGER),
    "trigger in outlets": _task(outlets=[TRIGGER]),
    "trigger to start from": _starts(POPEN, start_from_trigger=True),
    "trigger to start from by mapping": _starts(
        POPEN, _is_mapped=True, expand_input={"type": "list-of-dicts", "value": []}, _expand_input_attr="expand_input"
    ),
    # The module is a provider's, but the name is an import in it and no trigger.
    "another name of a trigger's module": _starts(
        "airflow.providers.standard.triggers.temporal.asyncio", start_from_trigger=True
    ),
    "trigger of the author's own": _starts("dags.evil.Trigger", start_from_trigger=True),
    "watcher of an inlet": _task(inlets=[WATCHED_VALUE]),
    "watcher of a schedule": _dag(
        timetable=_encoded("airflow.timetables.simple.AssetTriggeredTimetable", {"asset_condition": WATCHED})
    ),
    "watcher in a nested condition": _dag(
        timetable=_encoded(
            "airflow.timetables.simple.AssetTriggeredTimetable",
            {"asset_condition": {"__type": "asset_all", "objects": [{"__type": "asset_any", "objects": [WATCHED]}]}},
        )
    ),
    "param of another class": _dag(params=[["p", PARAM]]),
    "param of another class in a task": _task(params=[["p", PARAM]]),
    "param in a value": _task(whatever=_encoded("param", PARAM)),
    "param whose schema is fetched": _dag(
        params=[["p", {**PARAM, "__class": "airflow.sdk.definitions.param.Param",
                       "schema": _encoded("dict", {"$ref": "http://169.254.169.254/latest/"})}]]
    ),
    # Draft 3's validator fetches the address of a schema in `disallow` or `type`, for a reference within it.
    "param whose schema of draft 3 is fetched": _schema(
        **{"$schema": "http://json-schema.org/draft-03/schema#", "disallow": [{"properties": {"a": {"$ref": "#/y"}}}]}
    ),
    "param with an address in its schema": _schema(type=[{"id": METADATA, "properties": {"a": {"$ref": "#/y"}}}]),
    "param with a file in its schema": _schema(properties={"a": {"$id": "file:///etc/passwd", "$ref": "#/y"}}),
    "param with a draft of the author's own": _schema(**{"$schema": METADATA}),
    "text as a limit of the scheduler": _task(max_active_tis_per_dag="x"),
    "text as a limit of a mapped task": _task(partial_kwargs={"max_active_tis_per_dagrun": "x"}),
    "number that no column holds": _task(priority_weight=2**31),
    "timetable of another class": _dag(timetable=_encoded(POPEN, {})),
    "another name of a timetable's module": _dag(timetable=_encoded("airflow.timetables.base.TYPE_CHECKING", {})),
    "timetable of no plugin": _dag(timetable=_encoded("dags.evil.Timetable", {})),
    "connection": _task(whatever=_encoded("connection", {"conn_id": "x", "uri": "http://x"})),
    "callback request": _task(whatever=_encoded("task_callback_request", "{}")),
    "context": _task(whatever=_encoded("task_context", {})),
    "task instance": _task(whatever=_encoded("simple_task_instance", _encoded("dict", {}))),
    "unknown type": _task(whatever=_encoded("invented", {})),
    "list as a type": _task(whatever={"__type": ["dict"], "__var": {}}),
    "source elsewhere": _dag(fileloc="/proc/self/environ"),
    "source beside": lambda data: data["dag"].update(fileloc=data["dag"]["fileloc"] + "/../../secret"),
    "relative source elsewhere": _dag(relative_fileloc="../../etc/passwd"),
    "script as a link": _dag(owner_links={"me": "javascript:alert(1)"}),
    "key of Python's own": _task(__class__="x"),
    "key of Python's own in the DAG": _dag(__class__="x"),
    "method replaced": _task(expand_start_from_trigger="x"),
    "dependencies replaced": _task(deps=["x"]),
    "something else as a task": lambda data: data["dag"]["tasks"].append(EXCEPTION),
    "old version": lambda data: data.update(__version=1),
}  # fmt: skip
"""Changes to a serialised DAG, each of which has the control plane import, call, read or show something of the author's choosing."""


def planted(data: dict[str, Any], gadget: str) -> dict[str, Any]:
    """Return a copy of a serialised DAG with a gadget in it."""
    changed = copy.deepcopy(data)
    GADGETS[gadget](changed)
    return changed
