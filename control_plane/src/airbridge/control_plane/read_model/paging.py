"""Pages of a list."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from sqlalchemy import func, select

T = TypeVar("T")
U = TypeVar("U")

LARGEST: Final = 500
# Rows are counted up to here: counting a million rows is slow, and page 200 is never read.
COUNTED: Final = 10_000


@dataclass(frozen=True, slots=True)
class PageRequest:
    """Requested page of a list. `number` starts at 1."""

    number: int = 1
    size: int = 50

    def __post_init__(self) -> None:
        if self.number < 1 or not 1 <= self.size <= LARGEST:
            raise ValueError(
                f"page {self.number} of {self.size} rows: pages start at 1 and have 1 to {LARGEST} rows"
            )

    @property
    def offset(self) -> int:
        """Number of rows before this page."""
        return (self.number - 1) * self.size


FIRST: Final = PageRequest()


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Page of a list. `total` is exact below `COUNTED`, else a lower bound."""

    rows: tuple[T, ...]
    number: int
    size: int
    total: int

    @property
    def counted(self) -> bool:
        """True if `total` is exact."""
        return self.total < COUNTED

    @property
    def last(self) -> int:
        """Number of the last known page."""
        return max(1, -(-self.total // self.size))


def fetch(session: Any, query: Any, page: PageRequest, view: Callable[[Any], T]) -> Page[T]:
    """Run an ordered query for one page; `view` converts each row."""
    bounded = query.order_by(None).limit(COUNTED).subquery()
    total = session.execute(select(func.count()).select_from(bounded)).scalar_one()
    rows = session.execute(query.offset(page.offset).limit(page.size)).all()
    return Page(tuple(view(row) for row in rows), page.number, page.size, int(total))
