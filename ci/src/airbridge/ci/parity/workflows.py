"""The pipelines: actions by commit, permissions named, and no version that the sources do not have."""

from __future__ import annotations

import re
from collections.abc import Iterator

from packaging.specifiers import SpecifierSet

from airbridge.ci.checkout import Source
from airbridge.ci.parity.facts import Facts
from airbridge.ci.parity.finding import Finding

_USES = re.compile(r"^\s*(?:-\s+)?uses:\s*(?P<what>[^\s#]+)(?P<comment>\s+#\s*\S+)?")
_COMMIT = re.compile(r"@[0-9a-f]{40}$")


def check(facts: Facts) -> Iterator[Finding]:
    """All findings in .github."""
    for path in (
        *facts.checkout.glob(".github/workflows/*.yml"),
        *facts.checkout.glob(".github/actions/*/action.yml"),
    ):
        source = facts.checkout.source(path)
        for number, line in enumerate(source.lines, start=1):
            yield from _uses(source, number, line)
            yield from _python(facts, source, number, line)
            yield from _uv(source, number, line)
        if "/workflows/" in path and not re.search(r"^permissions:", source.text, re.MULTILINE):
            yield Finding(
                path, 1, "workflow-permissions", "has no permissions of its own", "must say them; {} for none"
            )


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
