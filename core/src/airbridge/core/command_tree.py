"""Command trees of click and Typer, corrected where both print Python's ``None`` to the user. Imports neither."""

from __future__ import annotations

from typing import Any


def without_none(command: Any) -> Any:
    """Return a command whose help and errors name no environment variable and no default where there is none.

    Typer shows the variable of every option, so that click's errors read ``(env var: 'None')``; its help shows
    ``[default: None]`` for what has no default.
    """
    for parameter in command.params:
        if getattr(parameter, "envvar", None) is None and hasattr(parameter, "show_envvar"):
            parameter.show_envvar = False
        if parameter.default is None and getattr(parameter, "show_default", False) is True:
            parameter.show_default = False
    for each in getattr(command, "commands", {}).values():
        without_none(each)
    return command
