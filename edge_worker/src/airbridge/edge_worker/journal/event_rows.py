"""Journal operations for events: add some, and drop those that the control plane has stored."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from airbridge.edge_worker.journal.rows import Change, Contents, EventRow, Grants, Put, Row, Sum


@dataclass(frozen=True)
class AddEvents:
    """Add events. They never count against the journal's bound: the event log has one of its own."""

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
    """Drop the events up to this number: the control plane has them, or they are too old to keep."""

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

    def update_contents(self, contents: Contents) -> None:
        """See `journal_rows.Change.update_contents`."""
        for number in [number for number in contents.events if number <= self.upto]:
            del contents.events[number]
