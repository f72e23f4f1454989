"""Wrong values, by the kind of the right one."""

from __future__ import annotations

import re
from collections.abc import Iterator


def wrong(form: str, value: str) -> Iterator[tuple[str, str]]:
    """Kind and text of the wrong values for a value of a form."""
    if form == "digest" or re.fullmatch(r"(?:sha256:)?[0-9a-f]{40,}", value):
        yield from _digests(value)
    elif re.search(r"[<>=!~]", value):
        yield from _ranges(value)
    elif re.search(r"\d", value):
        yield from _versions(value)
    else:
        yield "other", f"{value}x" if value else "x"
    yield "emptied", ""


def _digests(value: str) -> Iterator[tuple[str, str]]:
    yield "swapped", value[:-1] + ("0" if value[-1] != "0" else "1")
    prefix, _, digits = value.rpartition(":")
    yield "reversed", f"{prefix}:{digits[::-1]}" if prefix else digits[::-1]
    yield "truncated", value[:-1]
    yield "short", value[: len(value) // 2]
    if digits.upper() != digits:
        yield "upper case", f"{prefix}:{digits.upper()}" if prefix else digits.upper()


def _ranges(value: str) -> Iterator[tuple[str, str]]:
    yield "widened", ">=0"
    yield "lower bound alone", re.sub(r"[<>=!~]+(\d)", r">=\1", value.split(",", maxsplit=1)[0], count=1)
    yield "other", re.sub(r"\d+(?=\D*$)", lambda found: str(int(found[0]) + 1), value)


def _versions(value: str) -> Iterator[tuple[str, str]]:
    yield "last number higher", re.sub(r"\d+(?=\D*$)", lambda found: str(int(found[0]) + 1), value)
    yield "first number higher", re.sub(r"\d+", lambda found: str(int(found[0]) + 1), value, count=1)
    if "." in value:
        yield "truncated", value.rpartition(".")[0]
        yield "wildcard", value.rpartition(".")[0] + ".*"
    yield "pre-release", f"{value}rc1"
    yield "longer", f"{value}.1"
