"""The generated reference pages are up to date."""

from __future__ import annotations

from functools import cache

import pytest
from ci.scripts import reference

NAMES = (
    "settings",
    "worker-settings",
    "task-settings",
    "environment",
    "secrets-and-rights",
    "cli",
    "cli-worker",
    "cli-ci",
)


@cache
def pages() -> dict[str, str]:
    """Return the pages as the code makes them now."""
    return reference.pages()


@pytest.mark.parametrize("name", [*(f"docs/reference/{name}.md" for name in NAMES), reference.STACKS_SECRETS])
def test_page_is_current(name: str) -> None:
    """The page is what `make docs` would write."""
    assert (reference.ROOT / name).read_text(encoding="utf-8") == pages()[name], "run `make docs`"


def test_every_page_is_checked() -> None:
    """No generated page is missing from this test."""
    assert set(pages()) == {f"docs/reference/{name}.md" for name in NAMES} | {reference.STACKS_SECRETS}


@pytest.mark.parametrize("name", ["settings", "worker-settings", "environment"])
def test_every_setting_is_described(name: str) -> None:
    """No row of a settings table has an empty meaning."""
    rows = [line for line in pages()[f"docs/reference/{name}.md"].splitlines() if line.startswith("| `")]
    assert [row for row in rows if not row.split(" | ")[3].strip("| ")] == []
