"""The security page names only tests, controls and links that exist."""

from __future__ import annotations

import re
from pathlib import Path

from airbridge.executor.service_secrets import Secret, Service, secrets_of

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "explanation" / "security.md").read_text()


def test_every_named_test_exists() -> None:
    """Each threat's test is in a file of that name, and there is exactly one such file."""
    named = sorted(set(re.findall(r"`(test_\w+\.py)::(test_\w+)`", PAGE)))
    assert len(named) > 40
    files = {path.name: [] for path in (ROOT / "tests").rglob("test_*.py")}
    for path in (ROOT / "tests").rglob("test_*.py"):
        files[path.name].append(path)
    missing = [
        f"{file}::{name}"
        for file, name in named
        if not any(
            re.search(rf"^def {name}\(", path.read_text(), re.MULTILINE) for path in files.get(file, [])
        )
    ]
    assert missing == []


def test_threats_have_controls_and_tests() -> None:
    """No row of the tables of threats is left open."""
    threats = PAGE.partition("\n## Threats")[2].partition("\n## ")[0]
    rows = [
        line
        for line in threats.splitlines()
        if line.startswith("|") and not line.startswith(("| ---", "| threat"))
    ]
    assert len(rows) > 20
    for row in rows:
        threat, control, test = (cell.strip() for cell in row.strip("|").split("|"))
        assert all((threat, control, "::test_" in test)), row


def test_table_of_secrets_is_current() -> None:
    """The table of services and their secrets is the one that local mode and the stacks follow."""
    section = PAGE.partition("## Services and their secrets")[2].partition("\n## ")[0]
    lines = re.findall(r"^\|.*\|$", section, re.MULTILINE)
    head, _, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    assert head == ["secret", *Service]
    assert rows == [
        [f"`{secret}`", *("yes" if secret in secrets_of(service) else "no" for service in Service)]
        for secret in Secret
    ]


def test_the_links_lead_somewhere() -> None:
    """Pages and pictures that are linked to are in the repository."""
    for target in re.findall(r"\]\(([^)#]+)", PAGE):
        assert (ROOT / "docs" / "explanation" / target).exists(), target
