"""uv.lock fulfils the pyproject files. Offline: the lock records what it was made from."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from airbridge.ci.images.inventory import normalise
from airbridge.ci.parity.facts import LOCK, Distribution, Facts
from airbridge.ci.parity.finding import Finding

_REGISTRY = "https://pypi.org/simple"
_FILES = "https://files.pythonhosted.org/"
_SHA256 = re.compile(r"sha256:[0-9a-f]{64}")
_RELOCK = "run `uv lock`"


def check(facts: Facts) -> Iterator[Finding]:
    """All findings in uv.lock."""
    yield from _header(facts)
    yield from _members(facts)
    for distribution in facts.distributions:
        yield from _room(facts, distribution)
    yield from _groups(facts)
    yield from _constraints(facts)
    yield from _hashes(facts)


def _header(facts: Facts) -> Iterator[Finding]:
    locked = SpecifierSet(str(facts.lock.toml.get("requires-python", "")))
    if locked != SpecifierSet(facts.requires_python):
        line = facts.lock.line(r"^requires-python")
        yield Finding(
            LOCK,
            line,
            "lock-python",
            f"requires-python is {locked}",
            f"must be {facts.requires_python}; {_RELOCK}",
        )
    options, uv = facts.lock.toml.get("options", {}), facts.root.toml["tool"]["uv"]
    for key in ("exclude-newer", "exclude-newer-package"):
        actual, expected = options.get(key), uv.get(key)
        if actual != expected:
            line = facts.lock.line(rf"^\[?(options\.)?{key}\b")
            yield Finding(
                LOCK,
                line,
                "lock-era",
                f"{key} differs from pyproject.toml: {_difference(actual, expected)}",
                _RELOCK,
            )


def _difference(actual: object, expected: object) -> str:
    if isinstance(actual, Mapping) and isinstance(expected, Mapping):
        keys = [key for key in sorted({*actual, *expected}) if actual.get(key) != expected.get(key)]
        return ", ".join(f"{key} is {actual.get(key)} and must be {expected.get(key)}" for key in keys)
    return f"it is {actual} and must be {expected}"


def _members(facts: Facts) -> Iterator[Finding]:
    actual = set(facts.lock.toml.get("manifest", {}).get("members", ()))
    expected = {distribution.name for distribution in facts.distributions}
    if actual != expected:
        line = facts.lock.line(r"^members = ")
        names = ", ".join(sorted(actual ^ expected))
        yield Finding(LOCK, line, "lock-members", f"the workspace's members differ: {names}", _RELOCK)


def _room(facts: Facts, distribution: Distribution) -> Iterator[Finding]:
    entry = facts.locked.get(distribution.name)
    if entry is None:
        return
    if entry.get("version") != distribution.version:
        line, actual = facts.lock_line(distribution.name), f"{distribution.name} is {entry.get('version')}"
        yield Finding(
            LOCK,
            line,
            "lock-version",
            actual,
            f"{distribution.source.path} says {distribution.version}; {_RELOCK}",
        )
    yield from _twice(distribution)
    recorded = {_key(item) for item in entry.get("metadata", {}).get("requires-dist", ())}
    asked = {_requirement(requirement) for requirement in distribution.requirements}
    for name, specifier, extra in sorted(asked - recorded):
        line = (
            facts.lock_line(distribution.name, "requires-dist")
            if recorded
            else facts.lock_line(distribution.name)
        )
        wants = f"{name}{specifier}{f' (extra {extra})' if extra else ''}"
        yield Finding(
            LOCK,
            line,
            "lock-outdated",
            f"{distribution.name} is locked without {wants}",
            f"{distribution.source.path} asks for it; {_RELOCK}",
        )
    for name, specifier, _ in sorted(recorded - asked):
        if name not in {asked_name for asked_name, _, _ in asked - recorded}:
            line = facts.lock.line(rf'name = "{name}"', after=rf'^name = "{distribution.name}"$')
            actual = f"{distribution.name} is locked with {name}{specifier}"
            yield Finding(
                LOCK,
                line,
                "lock-outdated",
                actual,
                f"{distribution.source.path} does not ask for it; {_RELOCK}",
            )
    yield from _satisfied(facts, distribution)


def _twice(distribution: Distribution) -> Iterator[Finding]:
    """A requirement or a constraint that a file has twice: the two may come to differ."""
    source = distribution.source
    for text, count in Counter(
        re.findall(r'^ +"([a-zA-Z0-9._-]+(?:\[[\w,]+\])?[<>=!~][^"]*)",', source.text, re.MULTILINE)
    ).items():
        if count > 1:
            line = source.line(re.escape(f'"{text}"'))
            yield Finding(
                source.path, line, "requirement-twice", f"asks {count} times for {text}", "must ask once"
            )


def _groups(facts: Facts) -> Iterator[Finding]:
    """The workspace's dependency groups are those that the lock was made from."""
    root = facts.distributions[0]
    recorded = facts.locked.get(root.name, {}).get("metadata", {}).get("requires-dev", {})
    asked = facts.root.toml.get("dependency-groups", {})
    for group in sorted({*recorded, *asked}):
        locked = {_key(item) for item in recorded.get(group, ())}
        wanted = {_requirement(Requirement(text)) for text in asked.get(group, ()) if isinstance(text, str)}
        for name, specifier, _ in sorted(wanted ^ locked):
            here = (name, specifier) in {(each, range_) for each, range_, _ in wanted}
            line = (
                facts.root.line(rf'"{re.escape(name)}(?=[\[<>=!~;" ])')
                if here
                else facts.lock_line(root.name)
            )
            path = facts.root.path if here else LOCK
            actual = f"group {group} {'asks for' if here else 'is locked with'} {name}{specifier}"
            yield Finding(
                path,
                line,
                "lock-outdated",
                actual,
                f"{LOCK if here else facts.root.path} does not have it; {_RELOCK}",
            )


def _constraints(facts: Facts) -> Iterator[Finding]:
    """Constraints and overrides of the workspace are those that the lock was made with."""
    options = facts.root.toml["tool"]["uv"]
    manifest = facts.lock.toml.get("manifest", {})
    for key in ("constraints", "overrides", "build-constraints"):
        setting = (
            f"{key.removesuffix('s').removeprefix('build-')}-dependencies"
            if key != "build-constraints"
            else "build-constraint-dependencies"
        )
        wanted = {_requirement(Requirement(text)) for text in options.get(setting, ())}
        locked = {_key(item) for item in manifest.get(key, ())}
        for name, specifier, _ in sorted(wanted ^ locked):
            here = (name, specifier) in {(each, range_) for each, range_, _ in wanted}
            path, source = (facts.root.path, facts.root) if here else (LOCK, facts.lock)
            line = source.line(rf'"{re.escape(name)}(?=[\[<>=!~;" ])')
            other = LOCK if here else facts.root.path
            yield Finding(
                path,
                line,
                "lock-outdated",
                f"{setting} has {name}{specifier}",
                f"{other} does not; {_RELOCK}",
            )


def _satisfied(facts: Facts, distribution: Distribution) -> Iterator[Finding]:
    for requirement in distribution.requirements:
        version = facts.locked_version(requirement.name)
        if version and not requirement.specifier.contains(version, prereleases=True):
            line = facts.lock_line(normalise(requirement.name))
            actual = f"{requirement.name} is locked at {version}"
            yield Finding(
                LOCK,
                line,
                "lock-unsatisfied",
                actual,
                f"{distribution.source.path} asks for {requirement.specifier}; {_RELOCK}",
            )


def _hashes(facts: Facts) -> Iterator[Finding]:
    counted = Counter(str(package["name"]) for package in facts.lock.toml["package"])
    for package in facts.lock.toml["package"]:
        name, source = str(package["name"]), package.get("source", {})
        if counted[name] > 1:
            yield Finding(
                LOCK,
                facts.lock_line(name),
                "lock-twice",
                f"{name} is locked {counted[name]} times",
                f"must be once; {_RELOCK}",
            )
        if "editable" in source or "virtual" in source:
            continue
        if source.get("registry") != _REGISTRY:
            expected = f"must come from {_REGISTRY}; {_RELOCK}"
            yield Finding(LOCK, facts.lock_line(name), "lock-source", f"{name} comes from {source}", expected)
        files = [*package.get("wheels", ()), *([package["sdist"]] if "sdist" in package else [])]
        for file in files or [{}]:
            if not _SHA256.fullmatch(str(file.get("hash", ""))):
                at = facts.lock.line(re.escape(file["url"])) if file.get("url") else facts.lock_line(name)
                actual = f"{name} has a file without a SHA-256"
                yield Finding(LOCK, at, "lock-hash", actual, f"every file must have one; {_RELOCK}")
            elif not str(file.get("url", "")).startswith(_FILES):
                at = facts.lock.line(re.escape(str(file.get("url", ""))))
                yield Finding(
                    LOCK,
                    at,
                    "lock-source",
                    f"{name} has a file at {file.get('url')}",
                    f"must be at {_FILES}; {_RELOCK}",
                )


_Entry = tuple[str, str, str]


def _key(item: Mapping[str, Any]) -> _Entry:
    marker = str(item.get("marker", ""))
    extra = marker.rpartition("extra == ")[2].strip("'\" )") if "extra ==" in marker else ""
    return normalise(str(item["name"])), _ordered(str(item.get("specifier", "")).split(",")), extra


def _requirement(requirement: Requirement) -> _Entry:
    extra = str(requirement.marker).rpartition("extra == ")[2].strip("'\" )") if requirement.marker else ""
    return normalise(requirement.name), _ordered(str(requirement.specifier).split(",")), extra


def _ordered(parts: Iterable[str]) -> str:
    return ",".join(sorted(part.strip() for part in parts))
