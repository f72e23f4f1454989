"""Query string of a page, parsed into the read model's filters. Malformed values are ignored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlencode

from airbridge.control_plane.read_model.paging import PageRequest

LONGEST: Final = 250
LAST_PAGE: Final = 10_000
PAGE_SIZE: Final = 50


@dataclass(frozen=True, slots=True)
class Query:
    """Parameters of a request."""

    values: Mapping[str, str]

    def text(self, name: str) -> str | None:
        """Return a parameter without control characters and surrounding space; None if it is empty."""
        given = "".join(each for each in self.values.get(name, "") if each.isprintable())[:LONGEST]
        return given.strip() or None

    def number(self, name: str, default: int) -> int:
        """Return a whole number; `default` for anything else."""
        given = self.values.get(name, "")
        return int(given) if given.removeprefix("-").isdecimal() and len(given) < 10 else default

    def page(self) -> PageRequest:
        """Return the requested page of a list."""
        return PageRequest(min(max(self.number("page", 1), 1), LAST_PAGE), PAGE_SIZE)

    def string(self, **changes: object) -> str:
        """Return the query string with some parameters changed or, if they are None, left out: for links to other pages and filters."""
        merged: dict[str, object] = {**self.values, **changes}
        return urlencode({name: value for name, value in merged.items() if value not in {None, ""}})
