"""The list of attacks: a name, the row of the review's table that it proves, and the function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Result:
    """Result of an attack. `harm` is empty if it was stopped; `answer` is the attacker's response."""

    harm: str = ""
    answer: str = ""

    @property
    def stopped(self) -> bool:
        return not self.harm


@dataclass(frozen=True, slots=True)
class Attack:
    """One attack. `run` takes the running gateway (`tests.integration.gateway.world.World`) and an empty directory."""

    name: str
    row: int
    run: Callable[[Any, Path], Result]

    def __str__(self) -> str:
        return self.name


_ATTACKS: dict[str, Attack] = {}


def attack(row: int) -> Callable[[Callable[[Any, Path], Result]], Callable[[Any, Path], Result]]:
    """Put a function into the list under its own name."""

    def register(run: Callable[[Any, Path], Result]) -> Callable[[Any, Path], Result]:
        name = run.__name__.replace("_", "-")
        _ATTACKS[name] = Attack(name, row, run)
        return run

    return register


def attacks(*rows: int) -> list[Attack]:
    """Return the attacks of these rows, or all."""
    from tests.security.attacks import bodies, bundles, timeline  # noqa: F401 - each registers its own

    return [each for each in _ATTACKS.values() if not rows or each.row in rows]
