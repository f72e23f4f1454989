"""Regular expressions in the JSON schemas of params, matched under a deadline.

A DAG author writes them; scheduler, api-server and gateway match them when a run is created. Python's `re` may take
exponential time over a few characters, and holds the interpreter's lock meanwhile, so one pattern would stop every region.
"""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, Final

import structlog

log = structlog.get_logger(__name__)

SECONDS: Final = 0.2
# For a while after a match that took too long: a schema may have many such patterns, and a value many properties. What
# people write takes microseconds.
HURRIED_SECONDS: Final = 0.02
HURRY_FOR_SECONDS: Final = 10.0


class Deadline:
    """Time that a match may take: less, for a while, after one that took too long.

    Slow patterns are not remembered: by a long value, one DAG could make a pattern of others slow for ever.
    """

    def __init__(self) -> None:
        self._hurry_until = 0.0

    def seconds(self) -> float:
        """Return how long a match may take now."""
        return HURRIED_SECONDS if time.monotonic() < self._hurry_until else SECONDS

    def missed(self) -> None:
        """Note that a match took too long."""
        self._hurry_until = time.monotonic() + HURRY_FOR_SECONDS


_deadline = Deadline()


def search(pattern: str, text: str) -> Any:
    """Return the first match, or None where there is none or finding out takes too long."""
    import regex

    seconds = _deadline.seconds()
    try:
        # concurrent: other threads run meanwhile; `text` is a str, which nothing changes.
        return regex.search(pattern, text, timeout=seconds, concurrent=True)
    except TimeoutError:
        _deadline.missed()
        log.warning("params.pattern_too_slow", pattern=pattern[:200], seconds=seconds)
        return None


def install() -> None:
    """Have jsonschema match under the deadline in this process. What takes longer does not match, so the value is refused."""
    from jsonschema import _keywords, _legacy_keywords, _utils

    for module in (_keywords, _legacy_keywords, _utils):
        # These modules use no other function of `re`: tests/contract/test_param_patterns.py.
        module.re = SimpleNamespace(search=search)
