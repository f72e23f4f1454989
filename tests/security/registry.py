"""Attacks that assert: functions that play one attack, and fail if it gains anything, in the list of all attacks.

A function takes the running gateway (`world`), an empty directory (`folder`), or both.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tests.security.attacks import registry
from tests.security.attacks.registry import Result

Played = TypeVar("Played", bound=Callable[..., Any])


def attack(row: int) -> Callable[[Played], Played]:
    """Put the function below into the list; a failed assertion is the harm."""

    def register(run: Played) -> Played:
        wanted = inspect.signature(run).parameters

        def play(world: Any, folder: Path) -> Result:
            given = {"world": world, "folder": folder}
            try:
                run(**{name: given[name] for name in wanted})
            except AssertionError as error:
                return Result(harm=str(error) or run.__doc__ or run.__name__)
            return Result()

        play.__name__ = run.__name__
        registry.attack(row)(play)
        return run

    return register
