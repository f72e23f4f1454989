"""Output of the commands: progress on standard error, results on standard output."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def report(text: str) -> None:
    """Print progress."""
    Console(stderr=True, highlight=False).print(text, soft_wrap=True, markup=False)


def complain(text: str) -> None:
    """Print an error."""
    Console(stderr=True, highlight=False).print(text, style="bold red", soft_wrap=True, markup=False)


def result(text: str) -> None:
    """The command's result, as it is."""
    Console(highlight=False).out(text, highlight=False)


def result_json(content: Any) -> None:
    """The command's result as JSON."""
    result(json.dumps(content, indent=2, ensure_ascii=False))


def result_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The command's result as a table."""
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, width=160).print(table)
