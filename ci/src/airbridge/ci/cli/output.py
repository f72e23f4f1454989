"""Output of the commands: progress on standard error, results on standard output."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def report(text: str) -> None:
    """Print progress."""
    _console(stderr=True).print(text, soft_wrap=True)


def complain(text: str) -> None:
    """Print an error."""
    _console(stderr=True).print(text, style="bold red", soft_wrap=True)


def result(text: str) -> None:
    """The command's result, as it is."""
    _console().out(text, highlight=False)


def result_json(content: Any) -> None:
    """The command's result as JSON."""
    result(json.dumps(content, indent=2, ensure_ascii=False))


def result_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The command's result as a table."""
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(Text, row))
    _console(width=160).print(table)


def _console(**options: Any) -> Console:
    """Return a console that interprets neither markup nor emoji codes in what it prints."""
    return Console(highlight=False, markup=False, emoji=False, **options)
