"""Inert values: those whose deserialisation in the control plane imports nothing and calls nothing of a task's choosing.

Two encodings of Airflow 3.0.4 meet here. `check_kwargs` is for ``airflow.serialization.serialized_objects`` (``__type``,
``__var``), which Airflow decodes in the gateway, the scheduler, the API server and the triggerer. `check_xcom` is for
``airflow.serialization.serde`` (``__classname__``), which it decodes in tasks; the control plane stores it undecoded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Final
from zoneinfo import available_timezones

from airbridge.core.violations import Place, Violation

TYPE: Final = "__type"
VAR: Final = "__var"
CLASSNAME: Final = "__classname__"
VERSION: Final = "__version__"
DATA: Final = "__data__"
# Keys by which one of Airflow's two decoders distinguishes an encoded value from a dict.
RESERVED: Final = frozenset({TYPE, VAR, CLASSNAME})

# 0001-01-02 UTC in seconds: a day inside of what a datetime can be, in any time zone.
_EARLIEST: Final = -62_135_510_400.0
# 9999-12-31 UTC.
_LATEST: Final = 253_402_214_400.0
# The longest timedelta: 999,999,999 days.
_LONGEST_SECONDS: Final = 86_399_999_913_600.0
_LARGEST_OFFSET: Final = 86_399
_LARGEST_RELATIVE: Final = 10**9
_NAME_BYTES: Final = 250
_CLASS: Final = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+", re.ASCII)


def check_kwargs(value: Any, place: Place) -> None:
    """Check the kwargs of a trigger or of the method after it: an encoded dict, or an empty one. Raises `Violation`.

    An encrypted string, which Airflow's model takes too, would be decrypted and decoded unseen. Anything but a dict at
    the top would keep the scheduler from loading the task instance (`MutableDict` takes dicts alone).
    """
    if value == {}:
        return
    if not isinstance(value, dict) or value.get(TYPE) != "dict":
        raise Violation(place, _describe(value), "a dict, encoded as Airflow's BaseSerialization does")
    _check_encoded(value, place)


def kwargs_of(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the members of kwargs that `check_kwargs` let pass, still encoded."""
    members: Mapping[str, Any] = value.get(VAR, {})
    return members


def check_plain(value: Any, place: Place) -> None:
    """Check a value that Airflow never decodes: JSON in which no encoding of Airflow's stands. Raises `Violation`."""
    for each, where in _walk(value, place):
        if isinstance(each, dict) and (CLASSNAME in each or {TYPE, VAR} <= each.keys()):
            raise Violation(where, _describe(each), "plain JSON: no encodings of Airflow's")


def check_xcom(value: Any, place: Place) -> None:
    """Check an XCom: JSON as the Task SDK writes it. Raises `Violation`.

    Classes may be named, for only tasks decode them. Inside of a string that is JSON they may not: the scheduler decodes
    that (``XComModel.deserialize_value``) where an XCom is a kwarg of a trigger that a mapped task starts from.
    """
    _check_classes(value, place)
    if isinstance(value, str) and value.lstrip()[:1] in {"[", "{"}:
        check_plain(_json_inside(value, place), place)


# --- BaseSerialization ------------------------------------------------------------------------------


def _check_encoded(value: Any, place: Place) -> None:
    if value is None or isinstance(value, str | int | float):
        return
    if isinstance(value, list):
        for index, each in enumerate(value):
            _check_encoded(each, place.index(index))
        return
    kind = value.get(TYPE)
    if value.keys() != {TYPE, VAR}:
        raise Violation(
            place, f"a dict with the keys {_names(value)}", f"an encoding: {TYPE} and {VAR} alone"
        )
    check = _TYPES.get(kind) if isinstance(kind, str) else None
    if check is None:
        raise Violation(place, f"the type {kind!r}", f"the types {', '.join(sorted(_TYPES))}")
    check(value[VAR], place)


def _dict(value: Any, place: Place) -> None:
    if not isinstance(value, dict):
        raise Violation(place, _describe(value), "a dict's members")
    for key, each in value.items():
        # The triggerer decodes a dict that has such a key a second time (smart_decode_trigger_kwargs).
        if key in RESERVED:
            raise Violation(place, f"the key {key!r}", "keys that are not those of an encoding")
        _check_encoded(each, place.key(key))


def _tuple(value: Any, place: Place) -> None:
    if not isinstance(value, list):
        raise Violation(place, _describe(value), "a list of members")
    _check_encoded(value, place)


def _set(value: Any, place: Place) -> None:
    _tuple(value, place)
    for index, each in enumerate(value):
        if not _hashable(each):
            raise Violation(place.index(index), _describe(each), "members that can be hashed")


def _hashable(value: Any) -> bool:
    if isinstance(value, list):
        return False
    if not isinstance(value, dict):
        return True
    if value.get(TYPE) == "tuple":
        return all(_hashable(each) for each in value[VAR])
    return value.get(TYPE) in {"datetime", "timedelta"}


def _datetime(value: Any, place: Place) -> None:
    if not _is_number(value) or not _EARLIEST <= value <= _LATEST:
        raise Violation(place, _describe(value), "seconds since 1970, of a year from 1 to 9999")


def _timedelta(value: Any, place: Place) -> None:
    if not _is_number(value) or abs(value) > _LONGEST_SECONDS:
        raise Violation(place, _describe(value), "seconds, of up to 999,999,999 days")


def _timezone(value: Any, place: Place) -> None:
    named = isinstance(value, str) and value in _timezones()
    offset = _is_number(value) and isinstance(value, int) and abs(value) <= _LARGEST_OFFSET
    if not named and not offset:
        raise Violation(place, _describe(value), "the name of a time zone, or an offset in seconds")


def _not_set(value: Any, place: Place) -> None:
    if value is not None:
        raise Violation(place, _describe(value), "null")


_FRACTIONAL: Final = frozenset({"days", "hours", "minutes", "seconds", "microseconds"})
_RELATIVE: Final = _FRACTIONAL | {
    *("year", "month", "day", "hour", "minute", "second", "microsecond", "years", "months", "leapdays")
}


def _relativedelta(value: Any, place: Place) -> None:
    if not isinstance(value, dict):
        raise Violation(place, _describe(value), "a dict of numbers")
    for key, each in value.items():
        if key == "weekday" and _is_weekday(each):
            continue
        whole = key in _RELATIVE and isinstance(each, int)
        number = _is_number(each) and (whole or key in _FRACTIONAL) and abs(each) <= _LARGEST_RELATIVE
        if not number:
            raise Violation(place.key(key), _describe(each), f"numbers for {', '.join(sorted(_RELATIVE))}")


def _is_weekday(value: Any) -> bool:
    """Return whether this is dateutil's weekday: a day from 0, and optionally its occurrence, which is not 0."""
    if not isinstance(value, list) or not 1 <= len(value) <= 2:
        return False
    if any(isinstance(each, bool) or not isinstance(each, int) for each in value):
        return False
    return 0 <= value[0] <= 6 and all(each and abs(each) <= 53 for each in value[1:])


# Allowed values of ``__type``. All others are refused, including those that a later Airflow adds.
_TYPES: Final[Mapping[str, Callable[[Any, Place], None]]] = {
    "dict": _dict,
    "tuple": _tuple,
    "set": _set,
    "datetime": _datetime,
    "timedelta": _timedelta,
    "timezone": _timezone,
    "relativedelta": _relativedelta,
    "arg_not_set": _not_set,
}


# --- serde --------------------------------------------------------------------------------------------


def _check_classes(value: Any, place: Place) -> None:
    for each, where in _walk(value, place):
        if not isinstance(each, dict):
            continue
        if CLASSNAME in each:
            _check_class(each, where)
        elif TYPE in each and VAR in each:
            raise Violation(
                where, f"the type {each[TYPE]!r}"[:100], f"{CLASSNAME} for what is not plain JSON"
            )


def _check_class(value: dict[str, Any], place: Place) -> None:
    name, version = value[CLASSNAME], value.get(VERSION)
    if not value.keys() <= {CLASSNAME, VERSION, DATA}:
        raise Violation(place, f"a class with the keys {_names(value)}", f"{CLASSNAME}, {VERSION} and {DATA}")
    if not isinstance(name, str) or len(name) > _NAME_BYTES or not _CLASS.fullmatch(name):
        raise Violation(place.key(CLASSNAME), _describe(name), "the full name of a class")
    if isinstance(version, bool) or not isinstance(version, int) or version < 0:
        raise Violation(place.key(VERSION), _describe(version), "a whole number")


def _json_inside(text: str, place: Place) -> Any:
    """Return the value that `text` is as JSON, or None."""
    try:
        return json.loads(text, object_pairs_hook=_every_pair)
    except ValueError:
        return None
    except RecursionError:
        raise Violation(place, "a string of JSON that is nested too deeply", "at most 100 levels") from None


def _every_pair(pairs: list[tuple[str, Any]]) -> Any:
    """Return a dict; of a key that is given twice, one for each of its values, for each may be decoded."""
    found = dict(pairs)
    return found if len(found) == len(pairs) else [found, *(value for _, value in pairs)]


# --- Common -------------------------------------------------------------------------------------------


def _walk(value: Any, place: Place) -> Any:
    """Yield every dict and list in `value`, and `value` itself, with its place."""
    waiting = [(value, place)]
    while waiting:
        each, where = waiting.pop()
        yield each, where
        if isinstance(each, dict):
            waiting += [
                (member, where.key(key)) for key, member in each.items() if isinstance(member, dict | list)
            ]
        elif isinstance(each, list):
            waiting += [
                (member, where.index(index))
                for index, member in enumerate(each)
                if isinstance(member, dict | list)
            ]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _describe(value: Any) -> str:
    if isinstance(value, dict):
        return f"a dict with the keys {_names(value)}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return f"{type(value).__name__} {str(value)[:64]!r}"


def _names(value: Mapping[str, Any]) -> str:
    shown = [repr(key[:32]) for key in sorted(value)[:6]]
    return ", ".join(shown) + (", ..." if len(value) > 6 else "") if shown else "(none)"


@cache
def _timezones() -> frozenset[str]:
    return frozenset(available_timezones())
