"""Hypothesis strategies over Airflow 3.0.4's two serialisation grammars: every type, every class, well formed and not."""

from __future__ import annotations

import json
from functools import cache
from typing import Any, Final

from hypothesis import strategies as st

# Names that would run code, read files or reach the database if a decoder imported or called them.
DANGEROUS_CLASSES: Final = (
    *(
        "builtins.exec",
        "builtins.eval",
        "subprocess.Popen",
        "os.system",
        "os.mkdir",
        "importlib.import_module",
    ),
    *(
        "airflow.models.dag.DAG",
        "airflow.sdk.definitions.connection.Connection",
        "airflow.exceptions.AirflowException",
    ),
    *(
        "airflow.serialization.serde.deserialize",
        "airflow.providers.standard.triggers.file.FileDeleteTrigger",
    ),
    *(
        "airflow.sdk.definitions.asset.Asset",
        "airflow.sdk.definitions.param.Param",
        "tests.security.grammar.json",
    ),
)
RESERVED: Final = (
    "__type",
    "__var",
    "__classname__",
    "__version__",
    "__data__",
    "__id__",
    "__source",
    "_dict",
    "__class",
)
TIMEZONES: Final = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Etc/GMT+5",
    "../../../etc/passwd",
    "no/where",
)


@cache
def types() -> tuple[str, ...]:
    """Return every name under ``__type`` that Airflow defines, and some that it does not."""
    from airflow.serialization.enums import DagAttributeTypes

    return (
        *(each.value for each in DagAttributeTypes),
        "START_TRIGGER_ARGS",
        "airflow.timetables.simple.NullTimetable",
        "x",
    )


@cache
def classes() -> tuple[str, ...]:
    """Return every class that serde decodes by itself, and dangerous ones that a setting or a decoder may let through."""
    from airflow.serialization import serde

    return (*sorted(serde._extra_allowed), *sorted(serde._deserializers), *DANGEROUS_CLASSES)


keys = st.one_of(
    st.sampled_from(("a", "b", "moment", "conn_id", "extra", "kwargs")),
    st.sampled_from(RESERVED),
    st.text(max_size=4),
)
numbers = st.one_of(
    st.integers(-10, 10),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    # 253402300799 is the last second of the year 9999, -62135596800 the first of the year 1: the bounds of datetime.
    st.sampled_from((0, 1e12, -1e12, 253402300799.0, 1e300, -62135596800, 86400, 10**400)),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=6), st.sampled_from(TIMEZONES))


def _template(kind: str, inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return what Airflow decodes under a type: the shape that reaches the type's own code."""
    classpath = st.sampled_from(DANGEROUS_CLASSES)
    encoded_dict = st.dictionaries(keys, inner, max_size=3).map(
        lambda each: {"__type": "dict", "__var": each}
    )
    exception = st.builds(
        _exception, st.one_of(classpath, st.just("ValueError")), st.lists(inner, max_size=2), encoded_dict
    )
    found: dict[str, st.SearchStrategy[Any]] = {
        "dict": st.dictionaries(keys, inner, max_size=4),
        "set": st.lists(inner, max_size=3),
        "tuple": st.lists(inner, max_size=3),
        "datetime": numbers,
        "timedelta": numbers,
        "timezone": st.one_of(st.sampled_from(TIMEZONES), st.integers(-90000, 90000)),
        "relativedelta": st.dictionaries(
            st.sampled_from(("days", "months", "hours", "year", "weekday", "dt1", "leapdays", "seconds")),
            st.one_of(st.integers(-3, 3000), st.floats(-9, 9), st.lists(st.integers(-1, 7), max_size=2)),
            max_size=3,
        ),
        "airflow_exc_ser": exception,
        "base_exc_ser": exception,
        "base_trigger": st.builds(
            lambda path, each: {"__type": "tuple", "__var": [path, each]}, classpath, encoded_dict
        ),
        "param": st.builds(lambda path, each: {"__class": path, "default": each}, classpath, inner),
        "connection": st.fixed_dictionaries({"conn_id": st.just("c"), "conn_type": st.just("http")}),
        "asset": st.fixed_dictionaries(
            {
                "name": st.just("n"),
                "uri": st.just("s3://b/k"),
                "group": st.just("asset"),
                "extra": encoded_dict,
            }
        ),
        "asset_alias": st.just({"name": "n", "group": "asset"}),
        "asset_any": st.just({"objects": []}),
        "asset_all": st.just({"objects": []}),
        "asset_ref": st.just({"name": "n"}),
        "asset_unique_key": st.just({"name": "n", "uri": "u"}),
        "asset_alias_unique_key": st.just({"name": "n"}),
        "asset_event_accessors": st.just({"_dict": []}),
        "task_instance_key": st.just({"dag_id": "d", "task_id": "t", "run_id": "r"}),
        "simple_task_instance": encoded_dict,
        "task_context": st.dictionaries(keys, inner, max_size=3),
        "xcomref": st.just({}),
        "dag": st.just({"dag_id": "d"}),
        "operator": st.just({"task_id": "t"}),
        "arg_not_set": st.one_of(st.none(), inner),
        "k8s.V1Pod": st.just({"metadata": {}}),
        "task_callback_request": st.just("{}"),
        "dag_callback_request": st.just("{}"),
    }
    return found.get(kind, inner)


def _exception(name: str, args: list[Any], kwargs: Any) -> dict[str, Any]:
    return {"__type": "dict", "__var": {"exc_cls_name": name, "args": args, "kwargs": kwargs}}


def of_type(kind: str, inner: st.SearchStrategy[Any] = scalars) -> st.SearchStrategy[Any]:
    """Return encodings of one type, well formed as far as Airflow looks."""
    return _template(kind, inner).map(lambda var: {"__type": kind, "__var": var})


def _encodings(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.sampled_from(types()).flatmap(lambda kind: of_type(kind, inner)),
        st.sampled_from(("dict", "tuple", "set", "datetime", "timedelta")).flatmap(
            lambda kind: of_type(kind, inner)
        ),
        st.builds(
            lambda name, version, data: {"__classname__": name, "__version__": version, "__data__": data},
            st.sampled_from(classes()),
            st.integers(0, 2),
            inner,
        ),
        st.lists(inner, max_size=3),
        st.dictionaries(keys, inner, max_size=4),
        st.dictionaries(st.sampled_from(RESERVED), inner, max_size=4),
        inner.map(json.dumps),
    )


@cache
def values() -> st.SearchStrategy[Any]:
    """Return JSON values of both grammars, nested."""
    return st.recursive(scalars, _encodings, max_leaves=8)


@cache
def kwargs() -> st.SearchStrategy[Any]:
    """Return kwargs of a deferral: mostly encoded dicts, so that what stands in them is looked at."""
    members = st.dictionaries(keys, values(), max_size=3)
    return st.one_of(
        members.map(lambda each: {"__type": "dict", "__var": each}),
        st.dictionaries(st.sampled_from(("a", "b")), values(), min_size=1, max_size=2).map(
            lambda each: {"__type": "dict", "__var": each}
        ),
        values(),
        values().map(json.dumps),
    )
