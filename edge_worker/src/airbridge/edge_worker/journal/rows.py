"""Tables and rows of the journal, and the operations that change them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from airbridge.core.protocol import Grant, Record

# A work item held under an epoch: (item_id, epoch).
Key = tuple[str, int]

Sum = Callable[[str, Sequence[Any]], bytes]


class GrantState(StrEnum):
    """Progress of a granted work item, as journalled."""

    CLAIMED = "claimed"
    STARTED = "started"
    #: Its final state is journalled (or reported already).
    ENDED = "ended"


class GrantRow(NamedTuple):
    """A grant; `reported` is the last seq that the gateway has answered."""

    item_id: str
    epoch: int
    state: str
    reported: int
    grant: str


class RecordRow(NamedTuple):
    """A write of a task that the gateway has not answered yet."""

    item_id: str
    epoch: int
    seq: int
    final: int
    method: str
    path: str
    query: str
    body: str | None
    recorded_at: str


class LogRow(NamedTuple):
    """A task's log that is not shipped in full yet: its local file, and its prefix in the log bucket."""

    item_id: str
    epoch: int
    prefix: str
    path: str


class MetaRow(NamedTuple):
    """A fact about this worker that outlives the process; nothing secret."""

    key: str
    value: str


class EventRow(NamedTuple):
    """An event that the control plane has not stored yet, as the protocol's JSON."""

    number: int
    event: str


class Row(NamedTuple):
    """A row and the table it is of."""

    table: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Table:
    """A table's statements."""

    name: str
    columns: tuple[str, ...]
    #: How many of the columns, from the first, are its key.
    keys: int

    @property
    def ddl(self) -> str:
        """Make it."""
        key = ", ".join(self.columns[: self.keys])
        return f"CREATE TABLE {self.name} ({', '.join(self.columns)}, sum BLOB, PRIMARY KEY ({key})) WITHOUT ROWID"

    @property
    def upsert(self) -> str:
        """Write one row and its checksum."""
        marks = ", ".join("?" * (len(self.columns) + 1))
        return f"INSERT OR REPLACE INTO {self.name} VALUES ({marks})"  # noqa: S608 - constants

    @property
    def select(self) -> str:
        """Read all rows and checksums, in order of their keys."""
        key = ", ".join(self.columns[: self.keys])
        return f"SELECT * FROM {self.name} ORDER BY {key}"  # noqa: S608 - constants


TABLES = {
    "meta": Table("meta", MetaRow._fields, 1),
    "grants": Table("grants", GrantRow._fields, 2),
    "records": Table("records", RecordRow._fields, 3),
    "logs": Table("logs", LogRow._fields, 2),
    "events": Table("events", EventRow._fields, 1),
}
# Tables that a journal of an earlier version does not have.
ADDED_LATER = ("events",)

# Bytes of a row besides its variable columns, with SQLite's own; a rounded estimate.
_RECORD_OVERHEAD = 256

Grants = Mapping[Key, GrantRow]


@dataclass
class Contents:
    """The journal in memory."""

    meta: dict[str, str] = field(default_factory=dict)
    grants: dict[Key, GrantRow] = field(default_factory=dict)
    records: dict[Key, dict[int, RecordRow]] = field(default_factory=dict)
    logs: dict[Key, LogRow] = field(default_factory=dict)
    events: dict[int, str] = field(default_factory=dict)
    bytes: int = 0
    pending: int = 0

    def add(self, row: Row) -> None:
        """Remember a row, in place of one with the same key."""
        if row.table == "meta":
            self.meta[row.values[0]] = row.values[1]
        elif row.table == "grants":
            grant = GrantRow(*row.values)
            if key_of(grant) not in self.grants:
                self.bytes += len(grant.grant) + _RECORD_OVERHEAD
            self.grants[key_of(grant)] = grant
        elif row.table == "records":
            record = RecordRow(*row.values)
            records = self.records.setdefault(key_of(record), {})
            replaced = records.get(record.seq)
            records[record.seq] = record
            self.bytes += size_of(record) - (size_of(replaced) if replaced else 0)
            self.pending += replaced is None
        elif row.table == "events":
            self.events[row.values[0]] = row.values[1]
        else:
            log = LogRow(*row.values)
            self.logs[key_of(log)] = log

    def drop_records(self, key: Key, upto: int | None = None) -> None:
        """Forget the records of a work item, up to a seq or all."""
        records = self.records.get(key, {})
        for seq in [seq for seq in records if upto is None or seq <= upto]:
            self.bytes -= size_of(records.pop(seq))
            self.pending -= 1
        if not records:
            self.records.pop(key, None)

    def drop_grant(self, key: Key) -> None:
        """Forget a grant and its records."""
        self.drop_records(key)
        grant = self.grants.pop(key, None)
        if grant is not None:
            self.bytes -= len(grant.grant) + _RECORD_OVERHEAD

    def rows(self) -> Iterator[Row]:
        """Yield every row."""
        yield from (Row("meta", item) for item in self.meta.items())
        yield from (Row("grants", row) for row in self.grants.values())
        yield from (Row("records", row) for rows in self.records.values() for row in rows.values())
        yield from (Row("logs", row) for row in self.logs.values())
        yield from (Row("events", item) for item in self.events.items())

    def complete_results(self) -> Contents:
        """Return only what belongs to results that are complete: every record from the last reported to the final one."""
        whole = Contents()
        for key, grant in self.grants.items():
            records = self.records.get(key, {})
            expected = range(grant.reported + 1, grant.reported + 1 + len(records))
            if records and sorted(records) == [*expected] and any(row.final for row in records.values()):
                whole.add(Row("grants", grant))
                for row in records.values():
                    whole.add(Row("records", row))
        return whole


def key_of(row: GrantRow | RecordRow | LogRow) -> Key:
    """Return the work item and epoch that a row belongs to."""
    return row.item_id, row.epoch


def key(item_id: UUID, epoch: int) -> Key:
    """Return the key of a work item held under an epoch."""
    return str(item_id), epoch


def size_of(row: RecordRow) -> int:
    """Return about how many bytes a record takes."""
    return len(row.path) + len(row.query) + len(row.body or "") + _RECORD_OVERHEAD


# --- changes: single statements --------------------------------------------------------------------


class Change(Protocol):
    """One statement, and what it does to the contents."""

    def write(self, connection: sqlite3.Connection, checksum: Sum) -> None:
        """Run the statement."""

    def update_contents(self, contents: Contents) -> None:
        """Do the same to the contents in memory."""


@dataclass(frozen=True)
class Put:
    """Write a row."""

    row: Row

    def write(self, connection: sqlite3.Connection, checksum: Sum) -> None:
        """See `Change.write`."""
        table, values = self.row
        connection.execute(TABLES[table].upsert, (*values, checksum(table, values)))

    def update_contents(self, contents: Contents) -> None:
        """See `Change.update_contents`."""
        contents.add(self.row)


@dataclass(frozen=True)
class DropRecords:
    """Delete a work item's records, up to a seq or all."""

    key: Key
    upto: int | None = None

    def write(self, connection: sqlite3.Connection, checksum: Sum) -> None:  # noqa: ARG002
        """See `Change.write`."""
        # Larger than any seq, and within SQLite's 64-bit integers.
        last = 2**62 if self.upto is None else self.upto
        connection.execute(
            "DELETE FROM records WHERE item_id = ? AND epoch = ? AND seq <= ?", (*self.key, last)
        )

    def update_contents(self, contents: Contents) -> None:
        """See `Change.update_contents`."""
        contents.drop_records(self.key, self.upto)


@dataclass(frozen=True)
class DropGrant:
    """Delete a grant."""

    key: Key

    def write(self, connection: sqlite3.Connection, checksum: Sum) -> None:  # noqa: ARG002
        """See `Change.write`."""
        connection.execute("DELETE FROM grants WHERE item_id = ? AND epoch = ?", self.key)

    def update_contents(self, contents: Contents) -> None:
        """See `Change.update_contents`."""
        contents.drop_grant(self.key)


@dataclass(frozen=True)
class DropLog:
    """Delete a log row."""

    key: Key

    def write(self, connection: sqlite3.Connection, checksum: Sum) -> None:  # noqa: ARG002
        """See `Change.write`."""
        connection.execute("DELETE FROM logs WHERE item_id = ? AND epoch = ?", self.key)

    def update_contents(self, contents: Contents) -> None:
        """See `Change.update_contents`."""
        contents.logs.pop(self.key, None)


# --- operations -------------------------------------------------------------------------------


class Op(Protocol):
    """One thing to journal."""

    def changes(self, grants: Grants) -> Iterator[Change]:
        """Yield its changes, given the grants that the journal holds now."""

    @property
    def size(self) -> int:
        """About how many bytes it adds; 0 for what only takes away."""


@dataclass(frozen=True)
class AddGrant:
    """Add a granted work item."""

    grant: Grant

    def changes(self, grants: Grants) -> Iterator[Change]:  # noqa: ARG002
        """See `Op.changes`."""
        row = GrantRow(
            str(self.grant.item_id), self.grant.epoch, GrantState.CLAIMED, 0, self.grant.model_dump_json()
        )
        yield Put(Row("grants", row))

    @property
    def size(self) -> int:
        """See `Op.size`."""
        # Typical: a context with some assets and parameters. The exact size would mean to encode the grant twice.
        return 4096


@dataclass(frozen=True)
class MarkStarted:
    """Mark an attempt started: it never starts again under this epoch. Its log is to be shipped."""

    log: LogRow

    def changes(self, grants: Grants) -> Iterator[Change]:
        """See `Op.changes`."""
        yield from _advance(grants, key_of(self.log), GrantState.STARTED)
        yield Put(Row("logs", self.log))

    @property
    def size(self) -> int:
        """See `Op.size`."""
        return 0


@dataclass(frozen=True)
class AddRecord:
    """Add a task's write; `final` if it is its final state."""

    record: Record
    final: bool

    def changes(self, grants: Grants) -> Iterator[Change]:
        """See `Op.changes`. Of an item that is forgotten there are none: nobody would ever drop the record."""
        record = self.record
        if (str(record.item_id), record.epoch) not in grants:
            return
        row = RecordRow(
            str(record.item_id),
            record.epoch,
            record.seq,
            int(self.final),
            record.method,
            record.path,
            record.query,
            record.body,
            record.recorded_at.isoformat(),
        )
        if self.final:
            yield from _advance(grants, key_of(row), GrantState.ENDED)
        yield Put(Row("records", row))

    @property
    def size(self) -> int:
        """See `Op.size`."""
        return len(self.record.path) + len(self.record.query) + len(self.record.body or "") + _RECORD_OVERHEAD


@dataclass(frozen=True)
class MarkReported:
    """Drop every record up to this seq: the gateway has answered them."""

    key: Key
    upto: int

    def changes(self, grants: Grants) -> Iterator[Change]:
        """See `Op.changes`."""
        grant = grants.get(self.key)
        if grant is not None:
            yield Put(Row("grants", grant._replace(reported=max(grant.reported, self.upto))))
        yield DropRecords(self.key, self.upto)

    @property
    def size(self) -> int:
        """See `Op.size`."""
        return 0


@dataclass(frozen=True)
class Forget:
    """Drop a work item: nothing is left to report for it."""

    key: Key

    def changes(self, grants: Grants) -> Iterator[Change]:  # noqa: ARG002
        """See `Op.changes`."""
        yield DropRecords(self.key)
        yield DropGrant(self.key)

    @property
    def size(self) -> int:
        """See `Op.size`."""
        return 0


@dataclass(frozen=True)
class KeepLog:
    """Note a log that is to be shipped, of a work item that may start again: a trigger's."""

    log: LogRow

    def changes(self, grants: Grants) -> Iterator[Change]:  # noqa: ARG002
        """See `Op.changes`."""
        yield Put(Row("logs", self.log))

    @property
    def size(self) -> int:
        """See `Op.size`."""
        return 0


@dataclass(frozen=True)
class ForgetLog:
    """Drop a log that is shipped in full."""

    key: Key

    def changes(self, grants: Grants) -> Iterator[Change]:  # noqa: ARG002
        """See `Op.changes`."""
        yield DropLog(self.key)

    @property
    def size(self) -> int:
        """See `Op.size`."""
        return 0


@dataclass(frozen=True)
class SetMeta:
    """Set a fact about this worker."""

    name: str
    value: str

    def changes(self, grants: Grants) -> Iterator[Change]:  # noqa: ARG002
        """See `Op.changes`."""
        yield Put(Row("meta", (self.name, self.value)))

    @property
    def size(self) -> int:
        """See `Op.size`."""
        return 0


def _advance(grants: Grants, at: Key, state: GrantState) -> Iterator[Change]:
    grant = grants.get(at)
    if grant is not None:
        yield Put(Row("grants", grant._replace(state=state)))


def record_of(row: RecordRow) -> Record:
    """Return the protocol's record of a row."""
    return Record.model_validate(
        {
            "item_id": row.item_id,
            "epoch": row.epoch,
            "seq": row.seq,
            "method": row.method,
            "path": row.path,
            "query": row.query,
            "body": row.body,
            "recorded_at": datetime.fromisoformat(row.recorded_at),
        }
    )
