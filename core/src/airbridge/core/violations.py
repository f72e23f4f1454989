"""Violation: a value in a body that may not reach Airflow, with its place and what would be allowed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_LONGEST_KEY: Final = 64
_LONGEST_PATH: Final = 200
_LONGEST_FOUND: Final = 200


class Violation(Exception):  # noqa: N818 - names what it carries
    """A body is refused. Its text names the place, what was found there and what is allowed."""

    def __init__(self, place: Place, found: str, allowed: str) -> None:
        self.place = str(place)
        self.found = found[:_LONGEST_FOUND]
        self.allowed = allowed
        super().__init__(f"{self.place}: {self.found} is refused; allowed: {allowed}")


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a body, like ``next_kwargs.rows[3]``. Written out only when something is refused."""

    name: str
    parent: Place | None = None

    def key(self, key: str) -> Place:
        """Return the place of a dict's member."""
        text = key if key.isidentifier() and len(key) <= _LONGEST_KEY else repr(key[:_LONGEST_KEY])
        return Place(f".{text}", self)

    def index(self, index: int) -> Place:
        """Return the place of a list's member."""
        return Place(f"[{index}]", self)

    def __str__(self) -> str:
        parts: list[str] = []
        place: Place | None = self
        while place is not None:
            parts.append(place.name)
            place = place.parent
        path = "".join(reversed(parts))
        if len(path) <= _LONGEST_PATH:
            return path
        half = _LONGEST_PATH // 2
        return f"{path[:half]}...{path[-half:]}"
