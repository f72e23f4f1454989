"""The statements as OpenVEX 0.2.0: the same file gives the same bytes. Shipped beside the SBOMs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from airbridge.ci.advisories.statements import Advisories, Advisory, PackageAdvisories
from airbridge.ci.images.inventory import normalise
from airbridge.ci.images.specs import IMAGES
from airbridge.ci.parity.facts import Facts

FILE = "images/vex/airbridge.openvex.json"
_HOME = "https://github.com/airbridge/airbridge"
#: Product of packages that are in no image: tools of development, and the AWS emulator of local mode.
_SOURCE = "pkg:github/airbridge/airbridge"


def text(facts: Facts, advisories: Advisories) -> str:
    """Return the document as JSON."""
    contents = {image.name: packages_of(facts, image.package) for image in IMAGES}
    document = {
        "@context": "https://openvex.dev/ns/v0.2.0",
        "@id": f"{_HOME}/blob/main/{FILE}",
        "author": "AirBridge",
        "role": "Document Creator",
        "timestamp": f"{advisories.date}T00:00:00Z",
        "version": advisories.revision,
        "tooling": "airbridge-ci advisories",
        "statements": [_statement(package, each, contents) for package, each in advisories.statements()],
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def packages_of(facts: Facts, root: str) -> frozenset[str]:
    """Return the names of all packages that `root` requires, itself included, whatever the platform."""
    found: set[tuple[str, str]] = set()
    waiting = [(root, "")]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in found:
            continue
        found.add((name, extra))
        package = facts.locked.get(name, {})
        needs = (
            package.get("optional-dependencies", {}).get(extra, ())
            if extra
            else package.get("dependencies", ())
        )
        for need in needs:
            required = normalise(need["name"])
            waiting += [(required, ""), *((required, wanted) for wanted in need.get("extra", ()))]
    return frozenset(name for name, _ in found)


def _statement(
    package: PackageAdvisories, advisory: Advisory, contents: Mapping[str, frozenset[str]]
) -> dict[str, Any]:
    vulnerability: dict[str, Any] = {"@id": advisory.source, "name": advisory.id}
    if advisory.aliases:
        vulnerability["aliases"] = list(advisory.aliases)
    statement: dict[str, Any] = {
        "vulnerability": vulnerability,
        "products": _products(package, contents),
        "status": advisory.status,
    }
    if advisory.justification:
        statement["justification"] = advisory.justification
    key = "status_notes" if advisory.status == "fixed" else "impact_statement"
    statement[key] = " ".join(part for part in (advisory.impact, advisory.compensation) if part)
    if advisory.action:
        statement["action_statement"] = advisory.action
    return statement


def _products(package: PackageAdvisories, contents: Mapping[str, frozenset[str]]) -> list[dict[str, Any]]:
    within = {
        f"pkg:oci/{image}": [name for name in package.names if name in names]
        for image, names in contents.items()
    }
    if not any(within.values()):
        within = {_SOURCE: list(package.names)}
    return [
        {"@id": product, "subcomponents": [{"@id": f"pkg:pypi/{name}@{package.version}"} for name in names]}
        for product, names in within.items()
        if names
    ]
