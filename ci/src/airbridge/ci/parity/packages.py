"""The workspace agrees with itself: one version, one range of Python, one Airflow, exact and everywhere."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from airbridge.ci.parity.facts import ROOT, Distribution, Facts
from airbridge.ci.parity.finding import Finding

PINNED = ("apache-airflow", "apache-airflow-core", "apache-airflow-task-sdk")


def check(facts: Facts) -> Iterator[Finding]:
    """All findings in the pyproject files, the Makefile and the changelog."""
    yield from _versions(facts)
    yield from _python(facts)
    yield from _airflow(facts)
    yield from _uv(facts)
    yield from _changelog(facts)
    yield from _cdktf(facts)


def _versions(facts: Facts) -> Iterator[Finding]:
    for distribution in facts.distributions[1:]:
        if distribution.version != facts.version:
            line = distribution.source.line(r"^version\s*=")
            expected = f"{ROOT} says {facts.version}: all packages have one version"
            yield Finding(
                distribution.source.path,
                line,
                "package-version",
                f"version is {distribution.version}",
                expected,
            )


def _python(facts: Facts) -> Iterator[Finding]:
    for distribution in facts.distributions[1:]:
        if (actual := distribution.project.get("requires-python")) != facts.requires_python:
            line = distribution.source.line(r"^requires-python\s*=")
            yield Finding(
                distribution.source.path,
                line,
                "requires-python",
                f"requires-python is {actual}",
                f"must be {facts.requires_python}",
            )
    tools, oldest = facts.root.toml.get("tool", {}), facts.oldest_python
    target = "py" + oldest.replace(".", "")
    if (actual := tools.get("ruff", {}).get("target-version")) != target:
        line = facts.root.line(r"^target-version\s*=")
        yield Finding(
            ROOT,
            line,
            "tool-python",
            f"ruff's target-version is {actual}",
            f"must be {target}, the oldest allowed",
        )
    if (actual := tools.get("mypy", {}).get("python_version")) != oldest:
        line = facts.root.line(r"^python_version\s*=")
        yield Finding(
            ROOT,
            line,
            "tool-python",
            f"mypy's python_version is {actual}",
            f"must be {oldest}, the oldest allowed",
        )


def _airflow(facts: Facts) -> Iterator[Finding]:
    wanted = {name: facts.locked_version(name) for name in PINNED}
    for distribution in facts.distributions:
        for requirement in distribution.requirements:
            if requirement.name in wanted:
                yield from _pin(distribution, requirement, wanted[requirement.name])


def _pin(distribution: Distribution, requirement: Requirement, locked: str) -> Iterator[Finding]:
    if str(requirement.specifier) == f"=={locked}":
        return
    line, actual = (
        distribution.line_of(requirement.name),
        f"asks for {requirement.name}{requirement.specifier}",
    )
    yield Finding(
        distribution.source.path,
        line,
        "airflow-pin",
        actual,
        f"must be {requirement.name}=={locked}, as in uv.lock",
    )


def _uv(facts: Facts) -> Iterator[Finding]:
    makefile = facts.checkout.source("Makefile")
    found = re.search(r"^UV_VERSION\s*:?=\s*(\S+)", makefile.text, re.MULTILINE)
    required = str(facts.root.toml["tool"]["uv"].get("required-version", ""))
    version = found[1] if found else "missing"
    if not found or not SpecifierSet(required).contains(version):
        line = makefile.line(r"^UV_VERSION")
        yield Finding(
            "Makefile", line, "uv-version", f"UV_VERSION is {version}", f"{ROOT} requires {required}"
        )


def _changelog(facts: Facts) -> Iterator[Finding]:
    changelog = facts.checkout.source("CHANGELOG.md")
    heading = re.search(r"^## \[?([^\]\s,]+)", changelog.text, re.MULTILINE)
    line = changelog.line(r"^## ")
    if heading is None or heading[1] != facts.version:
        actual = f"the first heading is {heading[1] if heading else 'missing'}"
        yield Finding(
            changelog.path, line, "changelog", actual, f"must be {facts.version}, the version in {ROOT}"
        )
        return
    section = changelog.text[heading.end() :].split("\n## ")[0]
    for pattern, wanted in (
        (r"Protocol (\d+)", str(facts.protocol)),
        (r"Airflow (\d[\d.]*\d)", facts.locked_version(PINNED[0])),
    ):
        stated = re.search(pattern, section)
        if stated and stated[1] != wanted:
            at = changelog.line(pattern, after=r"^## ")
            yield Finding(changelog.path, at, "changelog", f"says {stated[0]}", f"must be {wanted}")


def _cdktf(facts: Facts) -> Iterator[Finding]:
    """The command line that synthesises and the library must be of one release."""
    path = "infra/package.json"
    if not facts.checkout.has(path):
        return
    package = facts.checkout.source(path)
    content = json.loads(package.text)
    cli = {**content.get("dependencies", {}), **content.get("devDependencies", {})}.get("cdktf-cli")
    library = facts.locked_version("cdktf")
    if cli != library:
        line = package.line(r'"cdktf-cli"')
        yield Finding(
            path, line, "cdktf-version", f"cdktf-cli is {cli}", f"must be {library}, as cdktf in uv.lock"
        )
