"""Checkout of the project: its files, their content by line, and its commit."""

from __future__ import annotations

import re
import tarfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from airbridge.ci.exceptions import CheckoutError
from airbridge.ci.tools import Run, run


@lru_cache(maxsize=64)
def _toml(text: str) -> dict[str, Any]:
    """A TOML text, parsed once: the lock is large, and several checks read it in one process. Not to be changed."""
    return tomllib.loads(text)


@dataclass(frozen=True)
class Source:
    """One text file. `path` is relative to the checkout; lines count from 1."""

    path: str
    text: str

    @cached_property
    def lines(self) -> tuple[str, ...]:
        """The file's lines, without their ends."""
        return tuple(self.text.splitlines())

    @cached_property
    def toml(self) -> dict[str, Any]:
        """The file as TOML."""
        try:
            return _toml(self.text)
        except tomllib.TOMLDecodeError as error:
            raise CheckoutError(f"{self.path}: {error}") from error

    def line(self, pattern: str, *, after: str | None = None) -> int:
        """The first line that `pattern` matches, after the first that `after` matches; 1 if there is none."""
        start = self._find(after, 0) if after is not None else 0
        return self._find(pattern, start) + 1

    def _find(self, pattern: str, start: int) -> int:
        expression = re.compile(pattern)
        for number in range(start, len(self.lines)):
            if expression.search(self.lines[number]):
                return number
        return start


def replace(root: Path, texts: Mapping[str, str | None]) -> None:
    """Write files of a checkout by their paths; None removes one. What was read of them before is not read again."""
    for path, text in texts.items():
        target = root / path
        if text is None:
            target.unlink(missing_ok=True)
        else:
            target.write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class Checkout:
    """The project's files under `root`. Files are read once."""

    root: Path
    run: Run = run
    _cache: dict[str, Source] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def find(cls, start: Path) -> Checkout:
        """Return the checkout that contains `start`."""
        for folder in (start, *start.parents):
            if (folder / "compatibility.toml").is_file() and (folder / "uv.lock").is_file():
                return cls(folder)
        raise CheckoutError(
            f"{start} is not in a checkout of AirBridge: no compatibility.toml and uv.lock above it"
        )

    def has(self, path: str) -> bool:
        """Return whether the file exists."""
        return (self.root / path).is_file()

    def source(self, path: str) -> Source:
        """A text file of the checkout."""
        if path not in self._cache:
            try:
                text = (self.root / path).read_text(encoding="utf-8")
            except OSError as error:
                raise CheckoutError(f"{path}: cannot be read: {error.strerror}") from error
            except UnicodeDecodeError as error:
                raise CheckoutError(f"{path}: is not text: {error}") from error
            self._cache[path] = Source(path, text)
        return self._cache[path]

    def text(self, path: str) -> str | None:
        """Return a file's text; None if there is no such file."""
        return self.source(path).text if self.has(path) else None

    def glob(self, pattern: str) -> tuple[str, ...]:
        """Paths of the files that match, in order."""
        return tuple(
            sorted(str(found.relative_to(self.root)) for found in self.root.glob(pattern) if found.is_file())
        )

    def tracked(self) -> tuple[str, ...]:
        """Paths of the files that Git tracks or would track, in order, but no synthesised stacks. Without Git: all others."""
        made = "infra/cdktf.out/"
        if not (self.root / ".git").exists():
            return tuple(path for path in self.glob("**/*") if not path.startswith(made))
        listed = self.run(
            "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=self.root
        )
        return tuple(
            sorted(
                {path for path in listed.split("\0") if path and not path.startswith(made) and self.has(path)}
            )
        )

    def history(self, path: str) -> tuple[str, ...] | None:
        """Earlier texts of a file, the last one first; None if Git's history is not here, or not all of it."""
        if not (self.root / ".git").exists():
            return None
        if self.run("git", "rev-parse", "--is-shallow-repository", cwd=self.root).strip() == "true":
            return None
        commits = self.run("git", "log", "--format=%H", "--diff-filter=AM", "--", path, cwd=self.root).split()
        return tuple(self.run("git", "show", f"{commit}:{path}", cwd=self.root) for commit in commits)

    def revision(self) -> str:
        """The commit that is checked out: 40 hexadecimal digits."""
        return self.run("git", "rev-parse", "HEAD", cwd=self.root).strip()

    def committed_at(self, revision: str = "HEAD") -> datetime:
        """Return the time of a commit, in UTC."""
        stamp = self.run("git", "show", "--no-patch", "--format=%ct", revision, cwd=self.root).strip()
        return datetime.fromtimestamp(int(stamp), tz=UTC)

    def export(self, revision: str, target: Path) -> Checkout:
        """The files of a commit as they were committed, whatever the work tree looks like."""
        target.mkdir(parents=True)
        archive = target.with_suffix(".tar")
        self.run("git", "archive", "--format=tar", f"--output={archive}", revision, cwd=self.root)
        with tarfile.open(archive) as packed:
            packed.extractall(target, filter="data")
        archive.unlink()
        return Checkout(target, self.run)
