"""Where the command line writes: its result on stdout, what it is doing on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def messages() -> Console:
    """Return the console for progress and errors; plain when stderr is not a terminal."""
    return Console(stderr=True, highlight=False)


def results() -> Console:
    """Return the console for results. Not a terminal: no colour, and lines as long as they are."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=200, no_color=True)


def emit_json(value: Any) -> None:
    """Write one JSON document to stdout."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")
    sys.stdout.flush()


def emit_text(text: str) -> None:
    """Write text to stdout exactly as it is."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def table(title: str | None, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """Return a table of text."""
    built = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        built.add_column(column, overflow="fold")  # a name cut short is of no use
    for row in rows:
        built.add_row(*("" if value is None else str(value) for value in row))
    return built
