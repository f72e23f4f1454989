"""Installed packages as a directory with equal content wherever it was made.

Left out: scripts (their first line is this interpreter's path), what the installer notes for itself, byte code, and ``.pth`` files, which are
code that runs when an interpreter starts.
"""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path
from typing import Final

from airbridge.core.code import folder
from airbridge.core.exceptions import BundleError

_INSTALLERS_OWN: Final = frozenset(
    {"INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json", "uv_build.json"}
)


def tidy(root: Path) -> int:
    """Remove what would differ, or run; return the bytes of what is left. Raises `BundleError` for a link."""
    shutil.rmtree(root / "bin", ignore_errors=True)
    for path in sorted(root.rglob("*")):
        if path.is_symlink():
            raise BundleError(
                f"{path.relative_to(root)} of a package is a symbolic link: use a version without"
            )
        if path.is_dir():
            continue
        if _is_left_out(path.relative_to(root)):
            path.unlink()
    for record in root.glob("*.dist-info/RECORD"):
        _rewrite(record, root)
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def _is_left_out(path: Path) -> bool:
    at_root = len(path.parts) == 1
    if any(folder.is_ignored(part) for part in path.parts) or (
        at_root and path.name in {".lock", ".gitignore"}
    ):
        return True
    if path.suffix == ".pth" and at_root:
        return True
    return path.name in _INSTALLERS_OWN and len(path.parts) == 2 and path.parts[0].endswith(".dist-info")


def _rewrite(record: Path, root: Path) -> None:
    """Keep the lines of a RECORD whose files are here, sorted."""
    rows = list(csv.reader(io.StringIO(record.read_text())))
    kept = sorted(row for row in rows if row and ".." not in row[0] and (root / row[0]).is_file())
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(kept)
    record.write_text(text.getvalue())
