"""Remedy for the import of a module that is not there."""

from __future__ import annotations

import re
from typing import Final

_MISSING: Final = re.compile(
    r"ModuleNotFoundError: No module named '(?P<module>[^']{1,200})'\s*(?:\(imported by .*\))?\Z"
)


def with_remedy(error: str) -> str:
    """Return an import error's text, with where to add what is missing if its last line says that a module is."""
    found = _MISSING.search(error.rstrip())
    if found is None:
        return error
    top = found["module"].partition(".")[0]
    return (
        f"{error.rstrip()}; add the package that has {top!r} to requirements.txt in the bundle's root "
        f"(or to pyproject.toml and uv.lock), or your own module beside the DAG files"
    )
