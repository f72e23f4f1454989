"""Output of the command line: results on stdout, progress and errors on stderr, values as they are.

While a command runs under `stdout_for_results`, `sys.stdout` is stderr: whatever libraries print or log there (Airflow
configures its loggers to write to stdout) does not mix with the result.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

# The stream of results while `sys.stdout` is another.
_reserved: list[TextIO] = []
# Control characters but line feed and tab, and those that change the direction of text.
_INVISIBLE: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class LiteralConsole(Console):
    """Console that interprets nothing in what it prints: no markup, no emoji codes, no control characters.

    Names and reasons come from others, also from callers that the gateway refused.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """See `Console.render_str`."""
        return super().render_str(visible(text), **options)


def visible(text: str) -> str:
    """Return a text with its control characters as escapes, such as ``\\x1b``."""
    return _INVISIBLE.sub(lambda found: ascii(found[0])[1:-1], text)


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
    return LiteralConsole(stderr=True)


def results() -> Console:
    """Return the console for results; without colour, and 200 columns wide, when stdout is not a terminal."""
    console = LiteralConsole(file=_stdout())
    if console.is_terminal:
        return console
    return LiteralConsole(width=200, no_color=True, file=_stdout())


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
    """Return a table of text, whatever console prints it."""
    heading = None if title is None else Text(visible(title), "table.title")
    built = Table(title=heading, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        built.add_column(Text(visible(column)), overflow="fold")  # a name cut short is of no use
    for row in rows:
        built.add_row(*(Text("" if value is None else visible(str(value))) for value in row))
    return built


def _stdout() -> TextIO:
    return _reserved[-1] if _reserved else sys.stdout
