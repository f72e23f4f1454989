"""Teams and limits of a local platform: entries that a user's file adds to the region catalogue."""

from __future__ import annotations

import tomllib
from pathlib import Path

from airbridge.core.catalogue import Catalogue
from airbridge.core.exceptions import ConfigurationError


def with_teams(catalogue: str, file: Path | None) -> str:
    """Return a catalogue with the teams and limits of `file`. Raises `ConfigurationError`, which names the file."""
    if file is None:
        return catalogue
    try:
        text = file.read_text()
        keys = tomllib.loads(text).keys()
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"--teams {file}: {error}") from error
    if not keys or not keys <= {"team", "limit"}:
        found = ", ".join(sorted(keys - {"team", "limit"})) or "nothing"
        raise ConfigurationError(
            f"--teams {file} must have [[team]] and [[limit]] entries alone; it has {found}"
        )
    if twice := sorted(keys & tomllib.loads(catalogue).keys()):
        raise ConfigurationError(
            f"--teams {file}: the deployment's catalogue has {' and '.join(f'{key}s' for key in twice)} of its own"
        )
    joined = f"{catalogue}\n{text}"
    Catalogue.parse(joined, source=f"--teams {file}")
    return joined
