"""Command trees of click and Typer, corrected where they print something else than what was written. Imports neither."""

from __future__ import annotations

import re
from typing import Any, Final

# What Rich takes for a tag of its markup, with the backslashes before it; as in `rich.markup.escape`.
_TAG: Final = re.compile(r"(\\*)(\[[a-z#/@][^\[]*?\])")


def printable(command: Any) -> Any:
    """Return a command whose help and errors are as written.

    Typer shows the variable of every option, so that click's errors read ``(env var: 'None')``; its help shows
    ``[default: None]`` for what has no default. It parses help as Rich markup, which drops names in brackets, such as a
    section of a file, and fails at ``[/name]``.
    """
    markup = getattr(command, "rich_markup_mode", None) == "rich"
    if markup:
        _escape(command)
    for parameter in command.params:
        _without_none(parameter)
        if markup:
            _escape(parameter)
    for each in getattr(command, "commands", {}).values():
        printable(each)
    return command


def _without_none(parameter: Any) -> None:
    if getattr(parameter, "envvar", None) is None and hasattr(parameter, "show_envvar"):
        parameter.show_envvar = False
    if parameter.default is None and getattr(parameter, "show_default", False) is True:
        parameter.show_default = False


def _escape(described: Any) -> None:
    for name in ("help", "short_help", "epilog"):
        text = getattr(described, name, None)
        if text:
            setattr(described, name, _TAG.sub(lambda found: f"{found[1]}{found[1]}\\{found[2]}", text))
