"""Output of the command line: results on stdout, progress and errors on stderr.

While a command runs under `stdout_for_results`, `sys.stdout` is stderr: whatever libraries print or log there (Airflow
configures its loggers to write to stdout) does not mix with the result.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table

# The stream of results while `sys.stdout` is another.
_reserved: list[TextIO] = []


@contextmanager
def stdout_for_results() -> Iterator[None]:
    """Reserve stdout for results within the block."""
    before = sys.stdout
    _reserved.append(before)
    sys.stdout = sys.stderr
    try:
        yield
    finally:
        sys.stdout = before
        _reserved.pop()


def messages() -> Console:
    """Return the console for progress and errors; plain when stderr is not a terminal."""
    return Console(stderr=True, highlight=False)


def results() -> Console:
    """Return the console for results; without colour, and 200 columns wide, when stdout is not a terminal."""
    console = Console(highlight=False, file=_stdout())
    if console.is_terminal:
        return console
    return Console(highlight=False, width=200, no_color=True, file=_stdout())


def emit_json(value: Any) -> None:
    """Write one JSON document to stdout."""
    emit_text(json.dumps(value, indent=2, default=str))


def emit_json_line(value: Any) -> None:
    """Write one JSON document as one line to stdout, where others follow (JSON Lines)."""
    emit_text(json.dumps(value, default=str))


def emit_text(text: str) -> None:
    """Write text to stdout unchanged."""
    stdout = _stdout()
    stdout.write(text + "\n")
    stdout.flush()


def table(title: str | None, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """Return a table of text."""
    built = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        built.add_column(column, overflow="fold")  # a name cut short is of no use
    for row in rows:
        built.add_row(*("" if value is None else str(value) for value in row))
    return built


def _stdout() -> TextIO:
    return _reserved[-1] if _reserved else sys.stdout
