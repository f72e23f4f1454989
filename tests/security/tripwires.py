"""Tripwires: Airflow's own decoders run on a value, with every way from data to code replaced by an alarm."""

from __future__ import annotations

import datetime
import decimal
import json
import pkgutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, Final
from unittest import mock


class Tripped(AssertionError):  # noqa: N818 - what happened
    """A value reached code."""


_SINKS: Final = {
    "airflow.serialization.serialized_objects": (
        *("import_string", "decode_asset", "decode_asset_condition", "decode_timetable", "_XComRef", "Asset"),
        *(
            "decode_outlet_event_accessors",
            "AssetAlias",
            "AssetAll",
            "AssetAny",
            "AssetUniqueKey",
            "AssetAliasUniqueKey",
        ),
        *(
            "Connection",
            "SimpleTaskInstance",
            "TaskCallbackRequest",
            "DagCallbackRequest",
            "TaskInstanceKey",
            "Context",
        ),
        *("VariableAccessor", "ConnectionAccessor", "_has_kubernetes"),
    ),
    "airflow.serialization.serialized_objects:SerializedDAG": ("deserialize_dag",),
    "airflow.serialization.serialized_objects:SerializedBaseOperator": ("deserialize_operator",),
    "airflow.serialization.serialized_objects:BaseSerialization": ("_deserialize_param",),
    "airflow.utils.module_loading": ("import_string", "import_module"),
}
"""Everything in the two decoders that is not inert. Patched, not handed in: it is Airflow's code that runs."""


def _wire(name: str, real: Any) -> Any:
    """Return a replacement of a function, or of a class that `isinstance` still works with."""

    def trip(*args: Any, **_kwargs: Any) -> Any:
        raise Tripped(f"{name} was reached with {str(args)[:200]}")

    if not isinstance(real, type):
        return trip
    return type(
        real.__name__, (), {"__new__": trip, "ref": classmethod(trip), "from_json": classmethod(trip)}
    )


@contextmanager
def armed() -> Iterator[None]:
    """Replace the sinks for the block."""
    import airflow.models.trigger
    import airflow.models.xcom  # noqa: F401 - as above
    import airflow.serialization.serialized_objects as decoder

    # Run once before the wires are set: an import that these do lazily is no attack.
    decoder.from_timestamp(0)
    decoder.parse_timezone("Europe/Berlin")
    from airflow.serialization import serde

    with ExitStack() as stack:
        for owner, names in _SINKS.items():
            for name in names:
                target = pkgutil.resolve_name(owner)
                wire = _wire(f"{owner}.{name}", getattr(target, name))
                stack.enter_context(mock.patch.object(target, name, wire))
        stack.enter_context(
            mock.patch.object(serde, "import_string", _wire("serde.import_string", serde.import_string))
        )
        yield


# --- Where the control plane decodes ------------------------------------------------------------------


def decode_next_kwargs(value: Any) -> Any:
    """Do what the gateway's route does, and then each process that loads the task instance. Returns what they get."""
    from airflow.serialization.serialized_objects import BaseSerialization
    from sqlalchemy.ext.mutable import MutableDict

    if not value:
        return None
    found = BaseSerialization.deserialize(value)
    for _ in range(
        2
    ):  # the column's type encodes it again, and what adds the trigger's event does so once more
        found = BaseSerialization.deserialize(json.loads(json.dumps(BaseSerialization.serialize(found))))
        if not isinstance(found, dict):
            raise Tripped(f"a task instance with the next_kwargs {found!r} cannot be loaded")
        MutableDict.coerce("next_kwargs", found)
    return found


def decode_trigger_kwargs(value: Any) -> Any:
    """Do what the triggerer does before it calls the class, and the API server that shows the trigger."""
    from airflow.models.trigger import Trigger
    from airflow.serialization.serialized_objects import smart_decode_trigger_kwargs

    if not value:
        return None  # the triggerer fails such a trigger: it expects an encoded dict
    text = value if isinstance(value, str) else json.dumps(value)
    kwargs = Trigger._decrypt_kwargs(text)
    return {key: smart_decode_trigger_kwargs(each) for key, each in kwargs.items()}


def decode_xcom(value: Any) -> Any:
    """Do what the scheduler would do with an XCom that is a mapped trigger's kwarg, and the triggerer after it.

    3.0.4 starts no mapped task from its trigger (`MappedOperator.expand_start_from_trigger` is False); its code is there.
    """
    from airflow.models.xcom import XComModel
    from airflow.serialization.serialized_objects import BaseSerialization, smart_decode_trigger_kwargs

    found = XComModel.deserialize_value(SimpleNamespace(value=value))
    for each in _every(found):
        if isinstance(each, dict) and "__var" in each:
            smart_decode_trigger_kwargs(BaseSerialization.deserialize(BaseSerialization.serialize(each)))
    return found


def decode_plain(value: Any) -> Any:
    """Decode every value that can be decoded: Airflow 3.0.4 does not decode rendered fields, conf and extras, but might later."""
    from airflow.serialization import serde
    from airflow.serialization.serialized_objects import smart_decode_trigger_kwargs

    for each in _every(value):
        if isinstance(each, dict) and "__var" in each:
            smart_decode_trigger_kwargs(each)
        serde.deserialize(each)
    return value


def _every(value: Any) -> Iterator[Any]:
    yield value
    if isinstance(value, dict):
        for each in value.values():
            yield from _every(each)
    elif isinstance(value, list | tuple | set | frozenset):
        for each in value:
            yield from _every(each)


_INERT: Final = (
    *(type(None), bool, int, float, str, dict, list, tuple, set, frozenset),
    *(datetime.date, datetime.timedelta, datetime.tzinfo, decimal.Decimal),
)


def check_result(value: Any) -> None:
    """Fail if there is anything in a decoded value but values of the standard library, pendulum and dateutil."""
    from airflow.utils.types import ArgNotSet
    from dateutil.relativedelta import relativedelta

    for each in _every(value):
        if not isinstance(each, (*_INERT, relativedelta, ArgNotSet)):
            raise Tripped(f"a {type(each).__module__}.{type(each).__name__} came out")
