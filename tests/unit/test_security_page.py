"""The security page claims nothing that is not there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()


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


def test_every_threat_has_a_control_and_a_test() -> None:
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


def test_the_links_lead_somewhere() -> None:
    """Pages and pictures that are linked to are in the repository."""
    for target in re.findall(r"\]\(([^)#]+)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
