"""Every file against the registry: facts stated otherwise, statements that are gone, and places that nobody registered."""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

from airbridge.ci.checkout import Source
from airbridge.ci.exceptions import CheckoutError, CiError
from airbridge.ci.parity.facts import Facts
from airbridge.ci.parity.finding import Finding
from airbridge.ci.parity.inventory import candidates, registry
from airbridge.ci.parity.inventory.registry import FILE, Registry

_TEXTLESS = (".png", ".jpg", ".ico", ".woff2", ".gz")
_REGISTER = f"register it in {FILE}: as a [[place]] of a fact, or as [[foreign]] with the reason"
_RESEAL = "run `airbridge-ci seal` after a reviewed change"


def check(facts: Facts) -> Iterator[Finding]:
    """All findings in the checkout's files."""
    try:
        known = registry.parse(facts.checkout.source(FILE).text)
    except CiError as error:
        yield Finding(FILE, 1, "inventory-file", str(error).replace("\n", "; "), "must be a valid inventory")
        return
    paths = facts.checkout.tracked()
    yield from missing(facts, known, frozenset(paths))
    for path in paths:
        yield from check_file(facts, known, path)


def missing(facts: Facts, known: Registry, paths: frozenset[str]) -> Iterator[Finding]:
    """Files that the registry names and that are gone."""
    source = facts.checkout.source(FILE)
    named = [entry.file for entry in (*known.place, *known.lines, *known.held)]
    for path in sorted({path for path in (*named, *known.seal) if path and path not in paths}):
        line = source.line(re.escape(f'"{path}"'))
        yield Finding(
            FILE,
            line,
            "inventory-file",
            f"names {path}",
            "there is no such file: restore it, or remove the entry",
        )


def check_file(facts: Facts, known: Registry, path: str) -> Iterator[Finding]:
    """All findings in one file."""
    if path.endswith(_TEXTLESS) or path == FILE:
        return
    try:
        source = facts.checkout.source(path)
    except CheckoutError as error:
        yield Finding(path, 1, "inventory-file", str(error), "must be text, or of a known kind")
        return
    yield from _sealed(known, source)
    yield from _content(facts.checkout.source(FILE).text, path, source.text)


@lru_cache(maxsize=8192)
def _content(inventory: str, path: str, content: str) -> tuple[Finding, ...]:
    """The findings in a text: the same ones for as long as neither it nor the inventory changes."""
    return tuple(_findings(registry.parse(inventory), Source(path, content)))


def _findings(known: Registry, source: Source) -> Iterator[Finding]:
    path, text, covered = source.path, _Text(source), _Spans()
    yield from _stated(known, text, covered)
    yield from _lines(known, source)
    if path in known.seal or _foreign(known, path, text, covered):
        return
    for held in known.held:
        if held.covers(path):
            covered.add_all(held.expression.finditer(source.text))
    for found in candidates.find(source.text):
        if not covered.contain(found.start, found.end):
            actual = f"states {found.text[:80]!r} ({found.kind})"
            yield Finding(path, text.line_at(found.start), "unregistered-place", actual, _REGISTER)


@dataclass(frozen=True)
class _Text:
    source: Source

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *(found.end() for found in re.finditer("\n", self.source.text))]

    def line_at(self, offset: int) -> int:
        return bisect_right(self._starts, offset)


class _Spans:
    """Pieces of a text that the registry accounts for."""

    def __init__(self) -> None:
        self._spans: list[tuple[int, int]] = []

    def add_all(self, found: Iterator[re.Match[str]]) -> None:
        """Account for what was matched."""
        self._spans += [match.span() for match in found]

    def add(self, start: int, end: int) -> None:
        """Account for one piece."""
        self._spans.append((start, end))

    def contain(self, start: int, end: int) -> bool:
        """Return whether one of them holds the whole of it."""
        return any(first <= start and end <= last for first, last in self._spans)


def _stated(known: Registry, text: _Text, covered: _Spans) -> Iterator[Finding]:
    path = text.source.path
    for place in known.place:
        if not place.covers(path):
            continue
        allowed, seen = known.allowed(place), []
        for found in place.expression.finditer(text.source.text):
            covered.add(*found.span())
            seen.append(text.line_at(found.start("value")))
            if found["value"] not in allowed:
                actual = f"states {found['value'] or 'nothing'!r} in {found[0].strip()[:60]!r}"
                yield Finding(path, seen[-1], "fact", actual, f"must be {' or '.join(allowed)}, as in {FILE}")
        if place.times is not None and len(seen) != place.times:
            actual = f"states {' or '.join(allowed)} {len(seen)} times"
            line = seen[-1] if len(seen) > place.times else 1
            yield Finding(
                path, line, "fact-count", actual, f"{FILE} expects {place.times}: {place.pattern[:80]}"
            )


def _foreign(known: Registry, path: str, text: _Text, covered: _Spans) -> bool:
    """Account for what is no fact of ours; return whether that is the whole file."""
    for entry in known.foreign:
        if entry.covers(path):
            if entry.expression is None:
                return True
            covered.add_all(entry.expression.finditer(text.source.text))
    return False


def _lines(known: Registry, source: Source) -> Iterator[Finding]:
    present: Counter[str] | None = None
    for entry in known.lines:
        if not entry.covers(source.path):
            continue
        present = present or Counter(line.strip() for line in source.lines)
        for line, times in Counter(entry.lines).items():
            if present[line] != times:
                actual = f"has {present[line] or 'no'} line {line!r}"
                where = source.line(re.escape(line)) if present[line] else 1
                yield Finding(source.path, where, "required-line", actual, f"must have {times}: {entry.why}")


def _sealed(known: Registry, source: Source) -> Iterator[Finding]:
    if (expected := known.seal.get(source.path)) is None:
        return
    actual = hashlib.sha256(source.text.encode()).hexdigest()
    if actual != expected:
        yield Finding(
            source.path, 1, "seal", f"is {actual[:12]}…", f"{FILE} seals {expected[:12]}…: {_RESEAL}"
        )
