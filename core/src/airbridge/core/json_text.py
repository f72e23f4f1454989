"""JSON text and values within bounds: size, depth, number of values, and text that the database can hold."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any, Final

from airbridge.core import json_bounds
from airbridge.core.violations import Place, Violation

KIB: Final = 1024
# Airflow's deserialiser takes about three frames a level, of Python's 1,000; a dict in a dict is two levels
# of its JSON.
DEEPEST: Final = 100
MOST_VALUES: Final = 500_000
_ELSEWHERE: Final = "put larger values into an object store, and pass on where they are"


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of one body."""

    #: Characters of the JSON text.
    size: int
    depth: int = DEEPEST
    values: int = MOST_VALUES


def read(text: str, place: Place, bounds: Bounds) -> Any:
    """Return the value that `text` is. Raises `Violation`."""
    if len(text) > bounds.size:
        raise Violation(
            place, f"a value of {len(text)} characters of JSON", f"at most {bounds.size}; {_ELSEWHERE}"
        )
    try:
        # Before the parser allocates for them: `_check` counts exactly, and names the place.
        json_bounds.check(text.encode(errors="surrogatepass"), bounds.values, 10 * bounds.depth)
        value = json.loads(text, object_pairs_hook=_distinct, parse_constant=_no_constant)
    except json_bounds.OutOfBounds as error:
        raise Violation(
            place, str(error), f"at most {bounds.values} values and {bounds.depth} levels"
        ) from None
    except RecursionError:
        raise Violation(place, "JSON nested too deeply", f"at most {bounds.depth} levels") from None
    except _NotStrict as error:
        raise Violation(place, str(error), "JSON as of RFC 8259, each key once") from None
    except ValueError as error:
        raise Violation(place, f"text that is not JSON ({error})", "JSON") from None
    _check(value, place, bounds)
    return value


def write(value: Any) -> str:
    """Return the JSON text that Airflow is given: of the value that was checked, so that none is read in another way."""
    return json.dumps(value, allow_nan=False)


class _NotStrict(Exception):  # noqa: N818 - caught in this module alone
    """JSON that parsers read in different ways."""


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _NotStrict("a key that is given twice in one object")
    return found


def _no_constant(name: str) -> None:
    raise _NotStrict(f"the number {name}")


def _check(value: Any, place: Place, bounds: Bounds) -> None:
    """Visit every value, without recursion."""
    waiting: list[tuple[Any, Place, int]] = [(value, place, 1)]
    seen = 0
    while waiting:
        each, where, level = waiting.pop()
        seen += 1
        if seen + len(waiting) > bounds.values:
            raise Violation(place, f"more than {bounds.values} values", f"at most {bounds.values}")
        if isinstance(each, str):
            check_text(each, where)
        elif isinstance(each, float):
            if not math.isfinite(each):
                raise Violation(where, "a number out of range", "finite numbers")
        elif isinstance(each, dict | list):
            if level > bounds.depth:
                raise Violation(where, "a value nested too deeply", f"at most {bounds.depth} levels")
            waiting += _members(each, where, level + 1)


def _members(value: dict[str, Any] | list[Any], place: Place, level: int) -> list[tuple[Any, Place, int]]:
    if isinstance(value, list):
        return [(each, place.index(index), level) for index, each in enumerate(value)]
    for key in value:
        check_text(key, place)
    return [(each, place.key(key), level) for key, each in value.items()]


def check_text(text: str, place: Place) -> None:
    """Refuse what PostgreSQL stores in no text and no JSONB column: NUL, and surrogates without their other half."""
    if "\x00" in text:
        raise Violation(place, "text with a NUL character", "text without NUL")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Violation(place, "text with a lone surrogate", "Unicode text") from None


# NUL and surrogates. A string of Python's holds no pair of surrogates, so that each one in it is alone.
_UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")


def storable_text(text: str) -> str:
    """Return `text` with U+FFFD in place of each character that `check_text` refuses."""
    return _UNSTORABLE.sub("\ufffd", text)


def storable(value: Any) -> Any:
    """Return a JSON value with U+FFFD in place of each character that `check_text` refuses. Recursive: for records of our own."""
    if isinstance(value, str):
        return storable_text(value)
    if isinstance(value, dict):
        return {storable_text(key): storable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [storable(each) for each in value]
    return value
