"""Check of the statements against uv.lock, the tests that they name and the files generated from them. Offline."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date

from airbridge.ci.advisories import openvex, page
from airbridge.ci.advisories.statements import FILE, Advisories, Advisory, PackageAdvisories, load
from airbridge.ci.checkout import Checkout
from airbridge.ci.images.inventory import normalise
from airbridge.ci.parity.facts import Facts
from airbridge.ci.parity.finding import Finding

#: Days after which the check warns that newer publications are missing.
STALE_DAYS = 120
_GENERATE = "run `airbridge-ci advisories`"


def check(checkout: Checkout) -> list[Finding]:
    """Return every locked version, test and generated file that disagrees with the statements."""
    facts, advisories = Facts(checkout), load(checkout)
    locked = locked_versions(facts)
    findings: set[Finding] = set()
    for package in advisories.package:
        findings |= set(_package(checkout, package, locked))
    findings |= set(_generated(checkout, facts, advisories))
    return sorted(findings)


def locked_versions(facts: Facts) -> dict[str, frozenset[str]]:
    """Return all versions that uv.lock has of each package; it can have several of one."""
    versions: dict[str, set[str]] = {}
    for package in facts.lock.toml["package"]:
        versions.setdefault(normalise(package["name"]), set()).add(str(package.get("version", "")))
    return {name: frozenset(found) for name, found in versions.items()}


def age(advisories: Advisories, today: date) -> tuple[str, bool]:
    """Return a sentence about the file's age, and whether the file is too old."""
    days = (today - advisories.date).days
    text = f"{FILE}: covers publications up to {advisories.date}, {days} days ago"
    if days <= STALE_DAYS:
        return text, False
    return f"{text}, more than {STALE_DAYS}: add newer advisories and raise its date", True


def generated(facts: Facts, advisories: Advisories) -> dict[str, str]:
    """Return the text of every generated file by its path."""
    return {page.FILE: page.text(advisories), openvex.FILE: openvex.text(facts, advisories)}


def _package(
    checkout: Checkout, package: PackageAdvisories, locked: dict[str, frozenset[str]]
) -> Iterator[Finding]:
    for name in package.names:
        if name not in locked:
            yield _finding(
                _place(checkout, package, None),
                "advisory-package",
                f"{name} is not in uv.lock",
                "remove its statements",
            )
        for version in sorted(locked.get(name, ())):
            if version != package.version:
                actual = f"{name} is locked at {version}, the statements are about {package.version}"
                expected = "check each of them against the locked version and correct `version`"
                yield _finding(_place(checkout, package, None), "advisory-version", actual, expected)
            for advisory in package.advisory:
                yield from _advisory(checkout, package, advisory, name, version)


def _advisory(
    checkout: Checkout, package: PackageAdvisories, advisory: Advisory, name: str, version: str
) -> Iterator[Finding]:
    affected = advisory.concerns(version)
    ranges = " or ".join(advisory.affected)
    if affected and advisory.status in {None, "fixed"}:
        actual = f"{name} {version} is in the affected range {ranges}, the status is {advisory.status or 'missing'}"
        expected = "raise the version, or state affected or not_affected with the reason"
        yield _finding(_place(checkout, package, advisory), "advisory-status", actual, expected)
    if not affected and advisory.status == "affected":
        actual = f"{name} {version} is outside of the affected range {ranges}, the status is affected"
        yield _finding(_place(checkout, package, advisory), "advisory-status", actual, "state fixed")
    for test in advisory.tests:
        if not has_test(checkout, test):
            yield _finding(
                _place(checkout, package, advisory),
                "advisory-test",
                f"there is no test {test}",
                "name one that exists",
            )


def has_test(checkout: Checkout, test: str) -> bool:
    """Return whether "path::name" is a test function of the checkout."""
    path, _, name = test.partition("::")
    if not checkout.has(path):
        return False
    return (
        re.search(rf"^(async )?def {re.escape(name)}\(", checkout.source(path).text, re.MULTILINE) is not None
    )


def _generated(checkout: Checkout, facts: Facts, advisories: Advisories) -> Iterator[Finding]:
    for path, text in generated(facts, advisories).items():
        if not checkout.has(path) or checkout.source(path).text != text:
            yield Finding(path, 1, "advisory-page", f"differs from {FILE}", _GENERATE)


def _place(checkout: Checkout, package: PackageAdvisories, advisory: Advisory | None) -> tuple[int, str]:
    """Return the line that a finding is about, and what its text begins with."""
    here = rf'^name = "{re.escape(package.name)}"$'
    source = checkout.source(FILE)
    if advisory is None:
        return source.line(here), ""
    return source.line(rf'^id = "{advisory.id}"$', after=here), f"{advisory.id}: "


def _finding(place: tuple[int, str], check: str, actual: str, expected: str) -> Finding:
    line, prefix = place
    return Finding(FILE, line, check, prefix + actual, expected)
