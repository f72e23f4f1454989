"""Options that several commands share, and their parsing."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Directory = Annotated[
    Path,
    typer.Option(
        "--dir", envvar="AIRBRIDGE_DIR", help="The local platform's state directory.", resolve_path=True
    ),
]
BreakGlass = Annotated[
    bool,
    typer.Option(
        "--break-glass",
        help="Where two operators are required: do it alone, at once. Needs scope break_glass:use, and raises an alarm.",
    ),
]
CacheDirectory = Annotated[
    Path | None,
    typer.Option(
        "--cache-dir",
        envvar="AIRBRIDGE_CACHE_DIR",
        help="Directory of the database template.",
        show_default="~/.cache/airbridge",
        resolve_path=True,
    ),
]

DEFAULT_DIRECTORY = Path(".airbridge")


def cache_directory(given: Path | None) -> Path:
    """Return the cache directory."""
    return given or Path.home() / ".cache" / "airbridge"


def pairs(words: Sequence[str], option: str) -> dict[str, str]:
    """Read ``name=value`` words; a word without ``=`` is a usage error that names the option."""
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"{word!r} must be written name=value", param_hint=option)
        found[name] = value
    return found


def environ() -> Mapping[str, str]:
    """Return a copy of this process's environment, for child processes."""
    return dict(os.environ)
