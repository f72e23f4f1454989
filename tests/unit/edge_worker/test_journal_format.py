"""The journal's file as other versions and other users find it: checksums, keys, modes and errors."""

from __future__ import annotations

import sqlite3
import stat
from pathlib import Path
from uuid import UUID

import pytest
from tests.unit.edge_worker.test_journal_file import NOW, grant, log_row, open_, record

from airbridge.edge_worker.exceptions import JournalCorrupt, JournalError, JournalFull
from airbridge.edge_worker.journal.file import JournalFile, _sum, _wrap
from airbridge.edge_worker.journal.rows import (
    TABLES,
    AddGrant,
    AddRecord,
    Contents,
    GrantRow,
    GrantState,
    MarkStarted,
    Row,
    SetMeta,
    key,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


def test_checksum_is_stable() -> None:
    """The checksum of a known row never changes: an upgraded worker must accept the rows of the version before it."""
    assert _sum("meta", ("schema", "1")).hex() == "27f5be466209a9f3"


def test_keys_of_tables_are_stable() -> None:
    """Each table's rows replace those with the same key, and no others."""
    assert {name: table.columns[: table.keys] for name, table in TABLES.items()} == {
        "meta": ("key",),
        "grants": ("item_id", "epoch"),
        "records": ("item_id", "epoch", "seq"),
        "logs": ("item_id", "epoch"),
        "events": ("number",),
    }


def test_only_the_owner_reads_it(path: Path) -> None:
    """Grants and XComs are in it: neither the file nor its mark is readable by others."""
    journal = open_(path)
    journal.apply([SetMeta("a", "b")])
    for file in (path, path.with_name("journal.sqlite.mark")):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def failure(code: int | None) -> sqlite3.Error:
    error = sqlite3.OperationalError("it failed")
    if code is not None:
        error.sqlite_errorcode = code
        error.sqlite_errorname = "SQLITE_X"
    return error


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (sqlite3.SQLITE_FULL, JournalFull),
        (sqlite3.SQLITE_IOERR_WRITE, JournalFull),
        (sqlite3.SQLITE_IOERR_SHMSIZE, JournalFull),
        (sqlite3.SQLITE_BUSY, JournalError),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, JournalError),
        (sqlite3.SQLITE_LOCKED, JournalError),
        (sqlite3.SQLITE_LOCKED_SHAREDCACHE, JournalError),
        (sqlite3.SQLITE_CORRUPT, JournalCorrupt),
        (sqlite3.SQLITE_IOERR_READ, JournalCorrupt),
        (None, JournalCorrupt),
    ],
)
def test_sqlite_errors_are_distinguished(code: int | None, kind: type[JournalError]) -> None:
    """A full disk makes room, another worker's lock is tried again, anything else ends the file's use."""
    assert type(_wrap(failure(code))) is kind


def test_error_names_its_code() -> None:
    """The message has SQLite's name of the error; for a lock, what may be the cause."""
    assert str(_wrap(failure(sqlite3.SQLITE_FULL))) == "SQLITE_X: it failed"
    assert str(_wrap(failure(None))) == "OperationalError: it failed"
    assert "another worker" in str(_wrap(failure(sqlite3.SQLITE_BUSY)))


def test_contents_equal_what_was_written(path: Path) -> None:
    """A new process reads the contents that the previous one had in memory, for every table."""
    journal = open_(path)
    journal.apply([AddGrant(grant()), MarkStarted(log_row()), AddRecord(record(1, 1), final=False)])
    journal.apply([SetMeta("a", "b")])
    assert journal.contents.logs == {key(UUID(int=1), 1): log_row()}
    again = open_(path).contents
    assert again.logs == journal.contents.logs
    assert (again.bytes, again.pending) == (journal.contents.bytes, 1)
    assert [row.table for row in again.rows() if row.table != "meta"] == ["grants", "records", "logs"]


def test_grant_counts_once() -> None:
    """A grant that changes its state is not counted again, and takes its bytes with it when it goes."""
    contents = Contents()
    for state in (GrantState.CLAIMED, GrantState.STARTED):
        contents.add(Row("grants", GrantRow(str(UUID(int=1)), 1, state, 0, "x" * 100)))
    assert contents.bytes == 356
    contents.drop_grant(key(UUID(int=1), 1))
    assert contents.bytes == 0


def test_rebuilt_file_counts_commits_anew(path: Path) -> None:
    """A journal that was set aside leaves no mark that would accuse the new one."""
    journal = open_(path)
    for number in range(5):
        journal.apply([SetMeta("n", str(number))])
    path.unlink()
    with pytest.raises(JournalCorrupt):
        journal.apply([SetMeta("n", "5")])
    journal.rebuild("gone", NOW)
    journal.close()
    again, damage = JournalFile.open(path, now=NOW)
    assert damage is None
    assert again.contents.meta["n"] == "4"
