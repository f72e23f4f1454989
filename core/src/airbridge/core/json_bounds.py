"""Bounds of a JSON text that hold before it is parsed: number of values, and depth.

A parser allocates for every value, and a validator reports every fault: a text of a few megabytes can cost gigabytes and
tens of seconds. The scan uses operations on the whole text, which take about a millisecond a megabyte.
"""

from __future__ import annotations

from typing import Final

DEEPEST: Final = 64
_STRUCTURE: Final = b"[]{},"
_NOT_STRUCTURE: Final = bytes(set(range(256)) - set(_STRUCTURE))
_OPENING: Final = frozenset(b"[{")


class OutOfBounds(ValueError):  # noqa: N818 - says what the text is
    """The text has too many values or too many levels."""


def check(text: bytes, values: int, depth: int = DEEPEST) -> None:
    """Raise `OutOfBounds` if `text` has more than `values` values, or is nested more than `depth` levels deep.

    The text need not be JSON: up to its first fault it is counted as a parser would read it.
    """
    # Quotes of a key and of a text for each value.
    quotes = 4 * values
    # Without escaped backslashes and quotes every quote begins or ends a string.
    parts = text.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"', quotes + 1)
    if len(parts) > quotes + 1:
        raise OutOfBounds(f"more than {values} values")
    structure = b"".join(parts[::2]).translate(None, _NOT_STRUCTURE)
    commas = structure.count(b",")
    opened = structure.count(b"[") + structure.count(b"{")
    # A value is the whole text, the first of a container, or follows a comma.
    if commas + opened + 1 > values:
        raise OutOfBounds(f"more than {values} values")
    if opened > depth and _depth(structure) > depth:
        raise OutOfBounds(f"more than {depth} levels")


def _depth(structure: bytes) -> int:
    level = deepest = 0
    for each in structure.translate(None, b","):
        level += 1 if each in _OPENING else -1
        deepest = max(deepest, level)
    return deepest
