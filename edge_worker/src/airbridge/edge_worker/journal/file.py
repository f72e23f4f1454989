"""The journal's file: SQLite in WAL mode, a checksum per row, verified on opening.

Beside the file is ``<name>.mark``, the number of the last commit: a write-ahead log that was cut short leaves a
database that is consistent but old, which only the mark reveals. A file that fails any check is set aside as
``<name>.corrupt-<time>`` and a new one begun. Nothing in it is followed, but for whole results: a final state whose
grant and every record before it carry right checksums.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from airbridge.edge_worker.exceptions import JournalCorrupt, JournalError, JournalFull
from airbridge.edge_worker.journal.rows import (
    ADDED_LATER,
    TABLES,
    Change,
    Contents,
    DropGrant,
    GrantRow,
    Key,
    Op,
    Put,
    Row,
    Table,
    key_of,
)

SCHEMA_VERSION: Final = "1"
_COMMITS: Final = "commits"
_FULL_CODES: Final = frozenset(
    {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE}
)
_DISK_RETRY_CODES: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_CHECKPOINT_PAGES: Final = 1000


@dataclass(frozen=True)
class Damage:
    """Damage of a journal, and the path at which the file was set aside."""

    reason: str
    set_aside: Path | None
    #: Whole results that were proven by their checksums and written to the new file.
    carried_over: int


class _GrantView(Mapping[Key, GrantRow]):
    """The journal's grants as a group's earlier changes leave them, before these are written."""

    def __init__(self, before: Mapping[Key, GrantRow]) -> None:
        self._before = before
        self._changed: dict[Key, GrantRow | None] = {}

    def note(self, change: Change) -> None:
        """Take a change into account."""
        if isinstance(change, Put) and isinstance(change.row.values, GrantRow):
            self._changed[key_of(change.row.values)] = change.row.values
        elif isinstance(change, DropGrant):
            self._changed[change.key] = None

    def __getitem__(self, key: Key) -> GrantRow:
        found = self._changed[key] if key in self._changed else self._before[key]
        if found is None:
            raise KeyError(key)
        return found

    def __iter__(self) -> Iterator[Key]:
        return (key for key in {**self._before, **self._changed} if key in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


@dataclass
class JournalFile:
    """An open journal and, in memory, what is in it. For one thread."""

    path: Path
    fsync: bool
    contents: Contents = field(default_factory=Contents)
    _connection: sqlite3.Connection | None = None
    _mark: int | None = None
    _commits: int = 0
    _identity: tuple[int, int] = (0, 0)
    _size: int = 0

    @classmethod
    def open(cls, path: Path, *, now: datetime, fsync: bool = True) -> tuple[JournalFile, Damage | None]:
        """Open or make the journal. A file that fails its checks is set aside. Raises `JournalError`."""
        journal = cls(path, fsync)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            journal._open_checked()
        except JournalCorrupt as corrupt:
            salvage = _complete_results(path)
            return journal, journal._start_new_file(str(corrupt), now, salvage)
        return journal, None

    def apply(self, ops: Sequence[Op]) -> None:
        """Write all `ops` in one transaction, durable on return. All or none.

        Raises `JournalFull` when the disk is, `JournalCorrupt` when the file cannot be trusted any more.
        """
        self._check_undamaged()
        changes = self._changes(ops)
        with self._transaction() as connection:
            for change in changes:
                change.write(connection, _sum)
        for change in changes:
            change.update_contents(self.contents)

    def _changes(self, ops: Sequence[Op]) -> list[Change]:
        """Return the changes of all ops; a later one sees the grants as the earlier ones leave them."""
        grants = _GrantView(self.contents.grants)
        changes: list[Change] = []
        for op in ops:
            for change in op.changes(grants):
                changes.append(change)
                grants.note(change)
        return changes

    def rebuild(self, reason: str, now: datetime) -> Damage:
        """Set the damaged file aside and write a new one from memory: nothing that was journalled is lost."""
        kept, self.contents = self.contents, Contents()
        try:
            return self._start_new_file(reason, now, kept)
        except JournalError:
            self.contents = kept
            raise

    def close(self) -> None:
        """Close the file; the write-ahead log is folded in if it can be."""
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None
        if self._mark is not None:
            os.close(self._mark)
            self._mark = None

    # --- opening ---------------------------------------------------------------------------------

    def _open_checked(self) -> None:
        marked = self._read_mark()
        if not self.path.exists():
            if marked:
                raise JournalCorrupt("the journal file is gone; its mark is not")
            self._create()
            return
        try:
            self._connection = self._connect()
            self._load(marked)
        except sqlite3.Error as error:
            self.close()
            raise _wrap(error) from error
        except JournalCorrupt:
            self.close()
            raise
        self._record_identity()

    def _create(self) -> None:
        try:
            self._connection = self._connect()
            with self._transaction() as connection:
                for table in TABLES.values():
                    connection.execute(table.ddl)
                meta = (("schema", SCHEMA_VERSION), (_COMMITS, "0"))
                for row in meta:
                    _insert(connection, TABLES["meta"], row)
        except sqlite3.Error as error:
            self.close()
            raise _wrap(error) from error
        self._record_identity()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, isolation_level=None, check_same_thread=False, cached_statements=64
        )
        self.path.chmod(0o600)
        # WAL: one fsync a commit; a rollback journal needs several.
        connection.execute("PRAGMA journal_mode = WAL")
        # FULL: with WAL and NORMAL a power cut may lose commits.
        connection.execute(f"PRAGMA synchronous = {'FULL' if self.fsync else 'OFF'}")
        connection.execute("PRAGMA cell_size_check = ON")
        connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        # 8 MiB: the write-ahead log of a long cut shrinks again.
        connection.execute("PRAGMA journal_size_limit = 8388608")
        return connection

    def _load(self, marked: int) -> None:
        assert self._connection is not None  # noqa: S101 - for the type checker
        # One error is enough, and quick_check skips the indexes, of which there are none.
        (verdict,) = self._connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise JournalCorrupt(f"SQLite's quick_check failed: {verdict}")
        for name in ADDED_LATER:
            self._connection.execute(
                TABLES[name].ddl.replace("CREATE TABLE", "CREATE TABLE IF NOT EXISTS", 1)
            )
        contents = Contents()
        for row in _read(self._connection, TABLES.values()):
            contents.add(row)
        schema = contents.meta.pop("schema", None)
        if schema != SCHEMA_VERSION:
            raise JournalCorrupt(f"schema {schema!r}, not {SCHEMA_VERSION!r}")
        self._commits = int(contents.meta.pop(_COMMITS, "0"))
        if self._commits < marked:
            raise JournalCorrupt(f"it ends at commit {self._commits}; {marked} were made")
        self.contents = contents

    # --- damage ----------------------------------------------------------------------------------

    def _start_new_file(self, reason: str, now: datetime, kept: Contents) -> Damage:
        self.close()
        # Kept, not deleted: an operator may want to see what happened to the disk.
        set_aside = self._set_aside(now)
        self._commits = 0
        self._create()
        rows = [*kept.rows()]
        with self._transaction() as connection:
            for row in rows:
                _insert(connection, TABLES[row.table], row.values)
        for row in rows:
            self.contents.add(row)
        return Damage(reason, set_aside, len(kept.grants))

    def _set_aside(self, now: datetime) -> Path | None:
        stamp = now.strftime("%Y%m%dT%H%M%S.%fZ")
        target = self.path.with_name(f"{self.path.name}.corrupt-{stamp}")
        found = self.path.exists()
        for suffix in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                Path(f"{self.path}{suffix}").rename(f"{target}{suffix}")
        self._mark_path.unlink(missing_ok=True)
        return target if found else None

    def _check_undamaged(self) -> None:
        """Notice a file that was deleted, replaced or cut short beneath us. Costs two system calls."""
        try:
            found = self.path.stat()
            Path(f"{self.path}-wal").stat()
        except FileNotFoundError as error:
            raise JournalCorrupt(f"{error.filename} is gone") from error
        if (found.st_dev, found.st_ino) != self._identity:
            raise JournalCorrupt("another file is in the journal's place")
        if found.st_size < self._size:
            raise JournalCorrupt(f"the file was cut from {self._size} to {found.st_size} bytes")
        self._size = found.st_size

    def _record_identity(self) -> None:
        found = self.path.stat()
        self._identity, self._size = (found.st_dev, found.st_ino), found.st_size

    # --- writing ---------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All of the block's statements or none, durable at the end; SQLite's errors come out as `JournalError`s."""
        connection = self._connection
        if connection is None:
            raise JournalCorrupt("the journal could not be opened anew")
        try:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            row = (_COMMITS, str(self._commits + 1))
            _insert(connection, TABLES["meta"], row)
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise _wrap(error) from error
        self._committed()

    @property
    def _mark_path(self) -> Path:
        return self.path.with_name(f"{self.path.name}.mark")

    def _read_mark(self) -> int:
        try:
            text = self._mark_path.read_text()
        except FileNotFoundError:
            return 0
        return int(text) if text.strip().isdigit() else 0

    def _committed(self) -> None:
        self._commits += 1
        # A mark that lags proves less, but never accuses a sound file.
        with suppress(OSError):
            if self._mark is None:
                self._mark = os.open(self._mark_path, os.O_WRONLY | os.O_CREAT, 0o600)
            os.pwrite(self._mark, b"%020d" % self._commits, 0)


def _sum(table: str, values: Sequence[Any]) -> bytes:
    return hashlib.blake2b(msgspec.msgpack.encode((table, *values)), digest_size=8).digest()


def _insert(connection: sqlite3.Connection, table: Table, values: Sequence[Any]) -> None:
    connection.execute(table.upsert, (*values, _sum(table.name, values)))


def _read(connection: sqlite3.Connection, tables: Iterable[Table]) -> Iterator[Row]:
    for table in tables:
        for *values, found in connection.execute(table.select):
            if found != _sum(table.name, values):
                raise JournalCorrupt(f"a row of {table.name} does not match its checksum: {values[:3]}")
            yield Row(table.name, tuple(values))


def read_meta(path: Path) -> dict[str, str]:
    """Return the meta data of a journal that another process may have open; empty if it cannot be read."""
    if not path.exists():
        return {}
    found = Contents()
    with suppress(sqlite3.Error, JournalCorrupt), closing(sqlite3.connect(path)) as connection:
        for row in _read(connection, [TABLES["meta"]]):
            found.add(row)
    return found.meta


def _complete_results(path: Path) -> Contents:
    """Return the results in a damaged file that are proven whole; empty if it cannot be read."""
    found = Contents()
    if not path.exists():
        return found
    with suppress(sqlite3.Error):
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            for name in ("grants", "records"):
                _collect(connection, TABLES[name], found)
        finally:
            connection.close()
    return found.complete_results()


def _collect(connection: sqlite3.Connection, table: Table, into: Contents) -> None:
    cursor = connection.execute(table.select)
    with suppress(sqlite3.Error):
        while (row := cursor.fetchone()) is not None:
            *values, found = row
            with suppress(TypeError):
                if found == _sum(table.name, values):
                    into.add(Row(table.name, tuple(values)))


def _wrap(error: sqlite3.Error) -> JournalError:
    code = getattr(error, "sqlite_errorcode", 0) or 0
    name = getattr(error, "sqlite_errorname", "") or type(error).__name__
    if code in _FULL_CODES:
        return JournalFull(f"{name}: {error}")
    if code & 0xFF in _DISK_RETRY_CODES:
        return JournalError(f"{name}: {error}; is another worker using this state_dir?")
    return JournalCorrupt(f"{name}: {error}")
