"""Markdown pages of the repository: links, anchors, code blocks and inline code."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Page:
    """One Markdown file."""

    path: Path

    @property
    def name(self) -> str:
        """Path in the repository."""
        return str(self.path.relative_to(ROOT))

    @cached_property
    def text(self) -> str:
        """Content of the file."""
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def prose(self) -> str:
        """Text without code blocks."""
        return _FENCE.sub("", self.text)

    def blocks(self, *languages: str) -> list[str]:
        """Code blocks of these languages."""
        return [body for _, language, body in _FENCE.findall(self.text) if language in languages]

    @property
    def links(self) -> list[str]:
        """Targets of links and images."""
        return _LINK.findall(re.sub(r"`[^`\n]+`", "", self.prose))

    @property
    def inline(self) -> list[str]:
        """Inline code."""
        return re.findall(r"`([^`\n]+)`", self.prose)

    @property
    def anchors(self) -> set[str]:
        """Anchors of the headings, as GitHub makes them."""
        return {_slug(title) for title in re.findall(r"^#+ (.+)$", self.prose, re.MULTILINE)}


def _slug(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def every() -> list[Page]:
    """All Markdown files that git tracks."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [Page(ROOT / name) for name in listed.stdout.splitlines() if (ROOT / name).exists()]


def current() -> list[Page]:
    """Pages that describe the present; the CHANGELOG also names what is gone."""
    return [page for page in every() if page.name != "CHANGELOG.md" and "/vendor/" not in page.name]
