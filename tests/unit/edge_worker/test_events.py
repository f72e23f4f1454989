"""The edge's event log: bounded, journalled, taken in order and once."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Coroutine
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from tests.unit.edge_worker.test_journal import open_
from tests.unit.edge_worker.test_journal_file import open_ as open_file

from airbridge.edge_worker.clock import SystemClock
from airbridge.edge_worker.ops import events
from airbridge.edge_worker.ops.events import EventLog

ITEM = (str(UUID(int=1)), 1)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


def test_events_outlive_the_process(tmp_path: Path) -> None:
    """Flushed events are there after a restart, in order, without the acknowledged ones."""

    async def scenario() -> None:
        journal = await open_(tmp_path)
        log = EventLog(journal, SystemClock())
        for name in ("task.one", "task.two", "task.three"):
            log.emit(name, ITEM)
        await log.flush()
        log.acknowledge(log.pending(1))
        await journal.close()

        journal = await open_(tmp_path)
        log = EventLog(journal, SystemClock())
        log.emit("task.four", ITEM)
        assert ["task.two", "task.three", "task.four"] == [event.event for event in log.pending()]
        await log.flush()
        log.acknowledge(log.pending())
        await journal.close()
        assert {} == (await open_(tmp_path)).events

    run(scenario())


def test_a_late_answer_takes_nothing_else(tmp_path: Path) -> None:
    """An answer to an earlier heartbeat takes only the events that that heartbeat carried."""

    async def scenario() -> None:
        journal = await open_(tmp_path)
        log = EventLog(journal, SystemClock())
        log.emit("task.one", ITEM)
        taken = log.pending()
        log.acknowledge(taken)
        log.emit("task.two", ITEM)
        log.acknowledge(taken)
        assert ["task.two"] == [event.event for event in log.pending()]
        await journal.close()

    run(scenario())


def test_the_oldest_events_give_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cut that is longer than the bound loses its oldest events, counts them, and keeps the newest."""
    monkeypatch.setattr(events, "MOST_KEPT", 3)

    async def scenario() -> None:
        journal = await open_(tmp_path)
        log = EventLog(journal, SystemClock())
        for name in "abcde":
            log.emit(f"task.{name}")
        assert ["task.c", "task.d", "task.e"] == [event.event for event in log.pending()]
        assert 2 == log.dropped
        await journal.close()

    run(scenario())


def test_long_texts_are_cut(tmp_path: Path) -> None:
    """An event stays small, however long an error message is."""

    async def scenario() -> None:
        journal = await open_(tmp_path)
        log = EventLog(journal, SystemClock())
        log.emit("task.failed", ITEM, why="x" * 10_000)
        assert events.LONGEST_TEXT == len(str(log.pending()[0].detail["why"]))
        await journal.close()

    run(scenario())


def test_journal_without_events_table_opens(tmp_path: Path) -> None:
    """A journal that was written before there were events opens, and is not damaged."""
    path = tmp_path / "journal.sqlite"
    open_file(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE events")
    connection.close()
    journal = open_file(path)
    assert {} == journal.contents.events
    journal.close()
