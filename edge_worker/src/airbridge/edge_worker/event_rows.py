"""What the journal does with events: add some, and drop those that the control plane has taken."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from airbridge.edge_worker.journal_rows import Change, Contents, EventRow, Grants, Put, Row, Sum


@dataclass(frozen=True)
class AddEvents:
    """Something happened. Events never count against the journal's bound: the event log has one of its own."""

    rows: Sequence[EventRow]

    def changes(self, grants: Grants) -> Iterator[Change]:  # noqa: ARG002
        """See `journal_rows.Op.changes`."""
        yield from (Put(Row("events", row)) for row in self.rows)

    @property
    def size(self) -> int:
        """See `journal_rows.Op.size`."""
        return 0


@dataclass(frozen=True)
class DropEvents:
    """The control plane has taken every event up to this number, or they are too old to keep."""

    upto: int

    def changes(self, grants: Grants) -> Iterator[Change]:  # noqa: ARG002
        """See `journal_rows.Op.changes`."""
        yield _Drop(self.upto)

    @property
    def size(self) -> int:
        """See `journal_rows.Op.size`."""
        return 0


@dataclass(frozen=True)
class _Drop:
    upto: int

    def write(self, connection: sqlite3.Connection, checksum: Sum) -> None:  # noqa: ARG002
        """See `journal_rows.Change.write`."""
        connection.execute("DELETE FROM events WHERE number <= ?", (self.upto,))

    def remember(self, contents: Contents) -> None:
        """See `journal_rows.Change.remember`."""
        for number in [number for number in contents.events if number <= self.upto]:
            del contents.events[number]
