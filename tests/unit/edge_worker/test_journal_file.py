"""The journal's file: durable, bounded in trust, and honest about damage."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest

from airbridge.core.protocol import BundleRef, Grant, Record, StartedAs
from airbridge.edge_worker.exceptions import JournalCorrupt, JournalError
from airbridge.edge_worker.journal.file import JournalFile
from airbridge.edge_worker.journal.rows import (
    AddGrant,
    AddRecord,
    Forget,
    ForgetLog,
    GrantState,
    LogRow,
    MarkReported,
    MarkStarted,
    SetMeta,
    key,
)

NOW = datetime(2025, 8, 8, tzinfo=UTC)


def grant(n: int = 1, epoch: int = 1) -> Grant:
    return Grant(
        item_id=UUID(int=n),
        ti_id=UUID(int=1000 + n),
        epoch=epoch,
        lease_seconds=60,
        ti={"dag_id": "d"},
        ti_context={},
        start_date=NOW,
        started_as=StartedAs(hostname="w", unixname="airbridge", pid=1),
        dag_rel_path="dag.py",
        bundle=BundleRef(name="main", version="sha256:" + "0" * 64),
        log_path="x",
    )


def record(n: int, seq: int, body: str = "{}") -> Record:
    return Record(
        item_id=UUID(int=n),
        epoch=1,
        seq=seq,
        method="PATCH",
        path="task-instances/x/state",
        body=body,
        recorded_at=NOW,
    )


def log_row(n: int = 1) -> LogRow:
    return LogRow(str(UUID(int=n)), 1, "logs/x", "/tmp/x.log")


def open_(path: Path) -> JournalFile:
    journal, damage = JournalFile.open(path, now=NOW)
    assert damage is None
    return journal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


def test_what_was_applied_is_found_again(path: Path) -> None:
    """Grants, states, records, logs and facts survive closing and opening."""
    journal = open_(path)
    journal.apply([AddGrant(grant()), MarkStarted(log_row()), AddRecord(record(1, 1), final=False)])
    journal.apply([AddRecord(record(1, 2), final=True), SetMeta("colour", "blue")])
    before = journal.contents
    journal.close()
    again = open_(path)
    assert again.contents == before
    assert again.contents.grants[key(UUID(int=1), 1)].state == GrantState.ENDED
    assert again.contents.meta["colour"] == "blue"


def test_an_unclosed_journal_is_whole(path: Path) -> None:
    """Nothing depends on closing: a second process reads everything that was applied."""
    journal = open_(path)
    journal.apply([AddGrant(grant())])
    journal.apply([MarkStarted(log_row())])
    found = open_(path).contents
    assert found.grants == journal.contents.grants
    assert found.logs == journal.contents.logs


def test_reported_records_leave_watermark(path: Path) -> None:
    """Answered records are deleted, and the grant keeps the last answered seq."""
    journal = open_(path)
    journal.apply([AddGrant(grant()), *(AddRecord(record(1, n), final=False) for n in (1, 2, 3))])
    journal.apply([MarkReported(key(UUID(int=1), 1), 2)])
    contents = open_(path).contents
    assert [*contents.records[key(UUID(int=1), 1)]] == [3]
    assert contents.grants[key(UUID(int=1), 1)].reported == 2


def test_forgetting_leaves_nothing(path: Path) -> None:
    """A settled work item and a shipped log leave no row, and no bytes are counted."""
    journal = open_(path)
    journal.apply([AddGrant(grant()), MarkStarted(log_row()), AddRecord(record(1, 1), final=True)])
    journal.apply([Forget(key(UUID(int=1), 1)), ForgetLog(key(UUID(int=1), 1))])
    for contents in (journal.contents, open_(path).contents):
        assert (contents.grants, contents.records, contents.logs) == ({}, {}, {})
        assert (contents.bytes, contents.pending) == (0, 0)


def test_grouped_operations_see_each_other(path: Path) -> None:
    """A grant and its start in one transaction: the state is the later one."""
    journal = open_(path)
    journal.apply([AddGrant(grant()), MarkStarted(log_row())])
    assert open_(path).contents.grants[key(UUID(int=1), 1)].state == GrantState.STARTED


def overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def flip_a_body(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute('UPDATE records SET body = \'{"state": "success"}\' WHERE seq = 1')
    connection.close()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:5000]),
    "emptied": lambda path: path.write_bytes(b""),
    "torn page": lambda path: overwrite(path, 4096, b"\xff" * 4096),
    "header": lambda path: overwrite(path, 0, b"not sqlite at all"),
    "deleted": lambda path: path.unlink(),
    "row edited": flip_a_body,
    "old copy": lambda path: path.with_name("old").rename(path),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_file_is_set_aside(path: Path, damage: Callable[[Path], object]) -> None:
    """A damaged file is set aside, its unfinished contents are not used, and a new journal works."""
    journal = open_(path)
    journal.apply([SetMeta("x", "y")])
    journal.close()
    path.with_name("old").write_bytes(path.read_bytes())
    journal = open_(path)
    journal.apply([AddGrant(grant()), AddRecord(record(1, 1, "{}" * 3000), final=False)])
    journal.close()
    damage(path)
    again, found = JournalFile.open(path, now=NOW)
    assert found is not None
    assert again.contents.grants == {}
    assert again.contents.records == {}
    if found.set_aside is not None:
        assert found.set_aside.name == "journal.sqlite.corrupt-20250808T000000.000000Z"
        assert found.set_aside.exists()
    again.apply([AddGrant(grant(2))])
    again.close()
    assert [*open_(path).contents.grants] == [key(UUID(int=2), 1)]


def test_truncated_wal_is_noticed(path: Path) -> None:
    """A lost write-ahead log leaves a sound but old database; the mark beside it reveals that."""
    journal = open_(path)
    journal.apply([AddGrant(grant())])
    journal._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # type: ignore[union-attr]
    journal.apply([MarkStarted(log_row())])
    Path(f"{path}-wal").write_bytes(b"")
    Path(f"{path}-shm").unlink()
    found = JournalFile.open(path, now=NOW)[1]
    assert found is not None


def test_whole_results_are_carried_over(path: Path) -> None:
    """A result that is proven complete by its checksums is kept from a damaged file; an incomplete one is not."""
    journal = open_(path)
    journal.apply(
        [AddGrant(grant(1)), AddRecord(record(1, 1), final=False), AddRecord(record(1, 2), final=True)]
    )
    journal.apply([AddGrant(grant(2)), AddRecord(record(2, 1), final=False)])
    journal.close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE records SET body = 'forged' WHERE item_id = ?", (str(UUID(int=2)),))
    connection.close()
    again, found = JournalFile.open(path, now=NOW)
    assert found is not None
    assert found.carried_over == 1
    assert [*again.contents.grants] == [key(UUID(int=1), 1)]
    assert sorted(again.contents.records[key(UUID(int=1), 1)]) == [1, 2]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: Path(f"{path}-wal").unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:4096]),
        lambda path: (path.unlink(), path.write_bytes(b"another")),
    ],
    ids=["deleted", "log deleted", "truncated", "replaced"],
)
def test_damage_while_running_loses_nothing(path: Path, damage: Callable[[Path], object]) -> None:
    """The next write finds the damage, and a new file gets everything from memory."""
    journal = open_(path)
    journal.apply([AddGrant(grant()), AddRecord(record(1, 1, "x" * 9000), final=False)])
    journal._connection.execute("PRAGMA wal_checkpoint(PASSIVE)")  # type: ignore[union-attr]
    journal.apply([SetMeta("a", "b")])
    damage(path)
    with pytest.raises(JournalCorrupt):
        journal.apply([AddRecord(record(1, 2), final=True)])
    journal.rebuild("damaged", NOW)
    journal.apply([AddRecord(record(1, 2), final=True)])
    journal.close()
    contents = open_(path).contents
    assert sorted(contents.records[key(UUID(int=1), 1)]) == [1, 2]
    assert contents.meta["a"] == "b"


def test_failed_rebuild_keeps_memory(tmp_path: Path) -> None:
    """If the rebuild cannot be written nothing is forgotten, and a later rebuild has it all."""
    directory = tmp_path / "state"
    path = directory / "journal.sqlite"
    journal = open_(path)
    journal.apply([AddGrant(grant())])
    directory.rename(tmp_path / "gone")
    with pytest.raises(JournalError):
        journal.apply([SetMeta("a", "b")])
    with pytest.raises(JournalError):
        journal.rebuild("gone", NOW)
    assert [*journal.contents.grants] == [key(UUID(int=1), 1)]
    directory.mkdir()
    journal.rebuild("gone", NOW)
    journal.close()
    assert [*open_(path).contents.grants] == [key(UUID(int=1), 1)]


def test_a_forgotten_item_stays_forgotten(tmp_path: Path) -> None:
    """Whatever comes after it in the same group: the answer to a final state is noted when its supervisor has ended already."""
    file = JournalFile.open(tmp_path / "journal.sqlite", now=NOW)[0]
    file.apply([AddGrant(grant(1)), AddGrant(grant(2))])
    at = key(grant(1).item_id, 1)
    file.apply([Forget(at), MarkReported(at, 1), AddRecord(record(1, 2), final=True)])
    assert [*file.contents.grants] == [key(grant(2).item_id, 1)]
    assert not file.contents.records
    file.apply([Forget(key(grant(2).item_id, 1)), AddGrant(grant(2))])
    assert [*file.contents.grants] == [key(grant(2).item_id, 1)]
