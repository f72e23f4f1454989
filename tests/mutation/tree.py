"""A copy of the repository: faults are put there, never into the working tree."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Final

from tests.mutation.operators import Mutant

_STAMPS: Final = count(1)


@dataclass(frozen=True, slots=True)
class Tree:
    """A copy of the repository's files at `root`."""

    root: Path

    @classmethod
    def copy(cls, repository: Path, to: Path) -> Tree:
        """Copy every file that Git tracks or would add."""
        for name in _files(repository):
            target = to / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(repository / name, target, follow_symlinks=False)
        return cls(to)

    @property
    def sources(self) -> list[Path]:
        """Directories of the distributions' packages."""
        return sorted(self.root.glob("*/src"))

    @property
    def python_path(self) -> str:
        """PYTHONPATH that puts this copy before the installed packages, in child processes too."""
        return os.pathsep.join(map(str, (*self.sources, self.root)))

    @contextmanager
    def with_fault(self, path: str, mutant: Mutant) -> Iterator[None]:
        """Put a mutant in its module's place for the block."""
        file = self.root / path
        before = file.stat()
        original = file.read_bytes()
        file.write_text(mutant.source)
        # Python takes a compiled file for current when time and size agree: each fault has a time of its own.
        stamp = next(_STAMPS)
        os.utime(file, (stamp, stamp))
        try:
            yield
        finally:
            file.write_bytes(original)
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def digest(repository: Path, *paths: str) -> str:
    """Return a digest of these files and directories."""
    wanted = [name for name in _files(repository) if name.startswith(paths)]
    found = hashlib.sha256()
    for name in wanted:
        found.update(name.encode() + b"\0" + (repository / name).read_bytes())
    return found.hexdigest()


def _files(repository: Path) -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=repository,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    return sorted(name for name in listed if name and (repository / name).is_file())
