"""The pipelines: actions by commit, permissions named, and no version that the sources do not have."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from packaging.specifiers import SpecifierSet

from airbridge.ci.checkout import Source
from airbridge.ci.parity.facts import Facts
from airbridge.ci.parity.finding import Finding
from airbridge.ci.parity.inventory import registry
from airbridge.ci.parity.inventory.registry import Action

_USES = re.compile(r"^\s*(?:-\s+)?uses:\s*(?P<what>[^\s#]+)(?P<comment>\s+#\s*\S+)?\s*")
_COMMIT = re.compile(r"@[0-9a-f]{40}$")


def check(facts: Facts) -> Iterator[Finding]:
    """All findings in .github."""
    known = registry.load(facts.checkout).action
    used: set[str] = set()
    for path in (
        *facts.checkout.glob(".github/workflows/*.yml"),
        *facts.checkout.glob(".github/actions/*/action.yml"),
    ):
        source = facts.checkout.source(path)
        for number, line in enumerate(source.lines, start=1):
            yield from _uses(source, number, line)
            yield from _registered(known, source, number, line)
            used |= {found["what"].partition("@")[0]} if (found := _USES.match(line)) else set()
            yield from _python(facts, source, number, line)
            yield from _uv(source, number, line)
        if "/workflows/" in path and not re.search(r"^permissions:", source.text, re.MULTILINE):
            yield Finding(
                path, 1, "workflow-permissions", "has no permissions of its own", "must say them; {} for none"
            )
    yield from _unused(facts, known, used)


def _uses(source: Source, number: int, line: str) -> Iterator[Finding]:
    found = _USES.match(line)
    if found is None or found["what"].startswith("./"):
        return
    if not _COMMIT.search(found["what"]):
        yield Finding(
            source.path,
            number,
            "action-pin",
            f"uses {found['what']}",
            "must name a commit: owner/action@<40 digits> # version",
        )
    elif not found["comment"]:
        yield Finding(
            source.path,
            number,
            "action-pin",
            f"uses {found['what'][:60]}",
            "must name its version in a comment, for the bot",
        )


def _registered(known: Mapping[str, Action], source: Source, number: int, line: str) -> Iterator[Finding]:
    """Compare with the inventory: a commit can be changed under a comment that stays."""
    found = _USES.match(line)
    if found is None or found["what"].startswith("./"):
        return
    name, _, commit = found["what"].partition("@")
    comment = (found["comment"] or "").strip().lstrip("#").strip()
    if (action := known.get(name)) is None:
        yield Finding(
            source.path, number, "action-unknown", f"uses {name}", f"{registry.FILE} has no such [action]"
        )
    elif (commit, comment) != (action.commit, action.version):
        yield Finding(
            source.path,
            number,
            "action-commit",
            f"{name} is {commit[:12]}… # {comment or 'nothing'}",
            f"{registry.FILE} says {action.commit[:12]}… # {action.version}",
        )


def _unused(facts: Facts, known: Mapping[str, Action], used: set[str]) -> Iterator[Finding]:
    source = facts.checkout.source(registry.FILE)
    for name in sorted(set(known) - used):
        line = source.line(rf'^"{re.escape(name)}" = ')
        yield Finding(registry.FILE, line, "action-unknown", f"has the action {name}", "no workflow uses it")


def _python(facts: Facts, source: Source, number: int, line: str) -> Iterator[Finding]:
    found = re.match(r'^\s*(?:-\s+)?python(?:-version)?:\s*\[?(?P<versions>["\'\d., ]+)\]?\s*(#.*)?$', line)
    for version in re.findall(r"\d+\.\d+(?:\.\d+)?", found["versions"]) if found else ():
        full = version if version.count(".") == 2 else f"{version}.99"
        if not SpecifierSet(facts.requires_python).contains(full):
            yield Finding(
                source.path,
                number,
                "workflow-python",
                f"uses Python {version}",
                f"must be {facts.requires_python}",
            )


def _uv(source: Source, number: int, line: str) -> Iterator[Finding]:
    if re.search(r"\bpip install\b.*\buv\b|\bsetup-uv@", line):
        yield Finding(
            source.path,
            number,
            "workflow-uv",
            "installs uv by itself",
            "must call make, whose UV_VERSION is the one version",
        )
