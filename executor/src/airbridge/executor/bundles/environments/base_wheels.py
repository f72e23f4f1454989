"""Wheels without content for the packages that workers have: the resolver reads their requirements from these, not from the index.

So a bundle is locked under what is installed, whatever the index has of it, and an index with a team's own packages alone is enough.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Final

_UNUSUAL: Final = re.compile(r"[-_.]+")
_WHEEL: Final = "Wheel-Version: 1.0\nGenerator: airbridge\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_KEPT: Final = ("Requires-Dist", "Requires-Python", "Provides-Extra")


def write(folder: Path, names: Iterable[str]) -> None:
    """Write a wheel for each of the installed packages."""
    folder.mkdir()
    for name in names:
        found = metadata.distribution(name)
        escaped = _UNUSUAL.sub("_", found.name).lower()
        stem = f"{escaped}-{found.version}"
        with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{stem}.dist-info/METADATA", _metadata(found))
            wheel.writestr(f"{stem}.dist-info/WHEEL", _WHEEL)
            wheel.writestr(f"{stem}.dist-info/RECORD", "")


def _metadata(found: metadata.Distribution) -> str:
    lines = ["Metadata-Version: 2.1", f"Name: {found.name}", f"Version: {found.version}"]
    for field in _KEPT:
        lines += [f"{field}: {value}" for value in found.metadata.get_all(field) or ()]
    return "\n".join(lines) + "\n"
