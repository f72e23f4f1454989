"""Mutants of every registered place: values, entries, steps and lines, from the inventory itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.parity_mutants.operators import wrong
from tests.parity_mutants.overlay import Overlay

from airbridge.ci.parity.inventory import registry

#: Files of which each line is an entry: one that is gone or stands twice changes what is meant.
ENTRIES = (
    "compatibility.toml",
    "ci/rollout.toml",
    "images/debs.toml",
    "images/release-keys.toml",
    "infra/environments/prod.toml",
    "infra/environments/staging.toml",
    "infra/environments/prod.release.json",
)
_PROSE = (".md", ".py", ".html", ".js", ".mjs", ".css")


@dataclass(frozen=True)
class Mutant:
    """A planted disagreement: its kind, the file and line, and the files as they are then."""

    kind: str
    path: str
    line: int
    shown: str
    changes: dict[str, str | None]


def generate(project: Overlay) -> Iterator[Mutant]:
    """All mutants of the registered places."""
    known = registry.load(project)
    # What the inventory itself states is compared at each place.
    for path in (path for path in project.tracked() if path != registry.FILE):
        text = project.source(path).text
        for place in known.place:
            if place.covers(path):
                for found in place.expression.finditer(text):
                    yield from _values(path, text, found, place.form)
        for held in known.held:
            if held.covers(path):
                yield from _held(path, text, held)
        for entry in known.lines:
            if entry.covers(path):
                yield from _lines(path, text, entry.lines)
    yield from _of_files(project, known)


def _of_files(project: Overlay, known: registry.Registry) -> Iterator[Mutant]:
    for path in ENTRIES:
        yield from _entries(path, project.source(path).text)
    for path in project.glob(".github/workflows/*.yml"):
        yield from _workflow(path, project.source(path).text)
    for path in known.seal:
        yield from _sealed(path, project.source(path).text)


def mutant(kind: str, path: str, text: str, start: int, end: int, new: str) -> Mutant:
    """A mutant that replaces one piece of a text."""
    line = text.count("\n", 0, start) + 1
    shown = f"{text[start:end][:50]!r} -> {new[:50]!r}"
    return Mutant(kind, path, line, shown, {path: text[:start] + new + text[end:]})


def _values(path: str, text: str, found: re.Match[str], form: str) -> Iterator[Mutant]:
    start, end = found.span("value")
    for kind, value in wrong(form, found["value"]):
        if value != found["value"] and not _same(found["value"], value):
            yield mutant(f"value {kind}", path, text, start, end, value)
    if not path.endswith(_PROSE):
        yield from _line(path, text, found.start())


def _same(old: str, new: str) -> bool:
    """Return whether a form ends before the change: `3.12*` for `3.12` is the same statement."""
    return old.strip() == new.strip()


def _line(path: str, text: str, at: int) -> Iterator[Mutant]:
    start, end = text.rfind("\n", 0, at) + 1, text.find("\n", at) + 1 or len(text)
    yield mutant("line removed", path, text, start, end, "")
    yield mutant("line twice", path, text, start, end, text[start:end] * 2)


def _held(path: str, text: str, held: registry.Held) -> Iterator[Mutant]:
    for found in held.expression.finditer(text):
        for value in re.finditer(
            r"(?:sha256:)?[0-9a-f]{40,64}|[<>=!~]+[\d.*]+(?:,[<>=!~]+[\d.*]+)*|v?\d+\.\d+\.\d+", found[0]
        ):
            start = found.start() + value.start()
            for kind, new in wrong("", value[0]):
                if new == value[0]:
                    continue
                yield mutant(f"value {kind}", path, text, start, start + len(value[0]), new)
        if held.by != "release-signature":
            yield from _line(path, text, found.start())


def _lines(path: str, text: str, required: tuple[str, ...]) -> Iterator[Mutant]:
    for line in required:
        at = text.index(line)
        start, end = text.rfind("\n", 0, at) + 1, text.find("\n", at) + 1 or len(text)
        yield mutant("check removed", path, text, start, end, "")
        yield mutant("check commented out", path, text, at, at, "# ")
        yield mutant("check without effect", path, text, end - 1, end - 1, " || true")


def _entries(path: str, text: str) -> Iterator[Mutant]:
    at = 0
    for line in text.splitlines(keepends=True):
        if re.match(r'^\s*"?[\w-]+"?\s*[=:]|^\[', line):
            yield mutant("entry removed", path, text, at, at + len(line), "")
            yield mutant("key twice", path, text, at, at + len(line), line * 2)
        at += len(line)


_EDITS: tuple[tuple[str, str, Callable[[re.Match[str]], str]], ...] = (
    ("step removed", r"^ +- (?:run|uses|name): .*\n", lambda _: ""),
    ("step never runs", r"^( +)- (run|uses): ", lambda found: f"{found[1]}- if: false\n{found[1]}  {found[2]}: "),
    ("failure ignored", r"^( +)- (run|uses): ", lambda found: f"{found[1]}- continue-on-error: true\n{found[1]}  {found[2]}: "),
    ("command without effect", r"^( +(?:- )?run: (?!\|).*)$", lambda found: f"{found[1]} || true"),
    ("more permissions", r"^( +contents: )read$", lambda found: f"{found[1]}write"),
    ("all permissions", r"^( +)permissions:\n(?: +[a-z-]+: \w+\n)+", lambda found: f"{found[1]}permissions: write-all\n"),
    ("all permissions", r"^permissions: \{\}$", lambda _: "permissions: write-all"),
    ("needs removed", r"^    needs: .*\n", lambda _: ""),
    ("environment removed", r"^    environment: .*\n", lambda _: ""),
    ("condition removed", r"^    if: .*\n", lambda _: ""),
    ("runs nothing of a matrix", r'\["3\.11", "3\.12"\]', lambda _: '["3.12"]'),
    ("other trigger", r"^  (?:push|pull_request|schedule|workflow_call|workflow_dispatch):", lambda _: "  issues:"),
    ("job renamed", r"^  ([a-z]+):\n(?=    )", lambda found: f"  {found[1]}s:\n"),
    ("target of make removed", r"(make (?:\w[\w-]* )*)[\w-]+(?=\n)", lambda found: found[1] + "help"),
    ("key twice", r"^(    runs-on: .*\n)", lambda found: found[1] * 2),
)  # fmt: skip


def _workflow(path: str, text: str) -> Iterator[Mutant]:
    for kind, pattern, edit in _EDITS:
        for found in re.finditer(pattern, text, re.MULTILINE):
            if (new := edit(found)) != found[0]:
                yield mutant(kind, path, text, found.start(), found.end(), new)


def _sealed(path: str, text: str) -> Iterator[Mutant]:
    """Of a long file a spread: values of every kind."""
    digests = list(re.finditer(r"sha256:[0-9a-f]{64}|sha512-[\w+/=]{60,}", text))
    versions = list(re.finditer(r'^version = "([^"]+)"', text, re.MULTILINE))
    for found in digests[:: max(1, len(digests) // 12)]:
        for kind, new in wrong("digest", found[0]):
            yield mutant(f"lock {kind}", path, text, found.start(), found.end(), new)
    for found in versions[:: max(1, len(versions) // 12)]:
        for kind, new in wrong("", found[1]):
            # A `~` of Debian's versions is no range.
            if new != found[1]:
                yield mutant(f"lock {kind}", path, text, *found.span(1), new)
    for found in re.finditer(r"^\[\[package\]\]\n(?:.+\n)+", text, re.MULTILINE):
        if found.start() % 17 == 0:
            yield mutant("lock entry removed", path, text, found.start(), found.end(), "")
            yield mutant(
                "lock entry twice", path, text, found.start(), found.end(), found[0] + "\n" + found[0]
            )
    if not digests:
        yield mutant("content changed", path, text, len(text), len(text), " ")
