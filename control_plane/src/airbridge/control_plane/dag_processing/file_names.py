"""Names of files in Airflow's import errors: those of the author's folder, not of the directory of a version."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from airbridge.executor.bundles.missing_module import with_remedy

# The directory of an unpacked snapshot, as `get_bundle_version_path` of Airflow names it.
_VERSION: Final = re.compile(r"(?:/[^/\s\"':]+)*/sha256:[0-9a-f]{64}/")


def own(path: str) -> str:
    """Return a file's path within its bundle; a path that is in none as it is."""
    found = _VERSION.match(path)
    return path[found.end() :] if found else path


def own_errors(errors: Mapping[str, str]) -> dict[str, str]:
    """Return import errors by the author's file; paths in their texts are those, too, and missing modules have a remedy."""
    return {own(path): with_remedy(_text(path, text)) for path, text in errors.items()}


def _text(path: str, text: str) -> str:
    found = _VERSION.match(path)
    return text.replace(found[0], "") if found else text
