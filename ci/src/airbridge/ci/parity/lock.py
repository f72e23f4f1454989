"""uv.lock fulfils the pyproject files. Offline: the lock records what it was made from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from airbridge.ci.images.inventory import normalise
from airbridge.ci.parity.facts import LOCK, Distribution, Facts
from airbridge.ci.parity.finding import Finding

_RELOCK = "run `uv lock`"


def check(facts: Facts) -> Iterator[Finding]:
    """All findings in uv.lock."""
    yield from _header(facts)
    yield from _members(facts)
    for distribution in facts.distributions:
        yield from _room(facts, distribution)
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
    for name, package in facts.locked.items():
        if "registry" not in package.get("source", {}):
            continue
        files = [*package.get("wheels", ()), *([package["sdist"]] if "sdist" in package else [])]
        if not files or not all(str(file.get("hash", "")).startswith("sha256:") for file in files):
            line = facts.lock_line(name)
            yield Finding(
                LOCK,
                line,
                "lock-hash",
                f"{name} has a file without a SHA-256",
                f"every file must have one; {_RELOCK}",
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
