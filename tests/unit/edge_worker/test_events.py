"""The edge's event log: bounded, journalled, told in order and once."""

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

from airbridge.edge_worker import events
from airbridge.edge_worker.clock import SystemClock
from airbridge.edge_worker.events import EventLog

ITEM = (str(UUID(int=1)), 1)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


def test_events_outlive_the_process(tmp_path: Path) -> None:
    """What was flushed is there after a restart, in order, and what was taken is not."""

    async def scenario() -> None:
        journal = await open_(tmp_path)
        log = EventLog(journal, SystemClock())
        for name in ("task.one", "task.two", "task.three"):
            log.note(name, ITEM)
        await log.flush()
        log.taken(log.waiting(1))
        await journal.close()

        journal = await open_(tmp_path)
        log = EventLog(journal, SystemClock())
        log.note("task.four", ITEM)
        assert ["task.two", "task.three", "task.four"] == [said.event for said in log.waiting()]
        await log.flush()
        log.taken(log.waiting())
        await journal.close()
        assert {} == (await open_(tmp_path)).events

    run(scenario())


def test_a_late_answer_takes_nothing_else(tmp_path: Path) -> None:
    """An answer to an earlier heartbeat takes only the events that that heartbeat carried."""

    async def scenario() -> None:
        journal = await open_(tmp_path)
        log = EventLog(journal, SystemClock())
        log.note("task.one", ITEM)
        told = log.waiting()
        log.taken(told)
        log.note("task.two", ITEM)
        log.taken(told)
        assert ["task.two"] == [said.event for said in log.waiting()]
        await journal.close()

    run(scenario())


def test_the_oldest_events_give_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cut that is longer than the bound loses its oldest events, counts them, and keeps the newest."""
    monkeypatch.setattr(events, "MOST_KEPT", 3)

    async def scenario() -> None:
        journal = await open_(tmp_path)
        log = EventLog(journal, SystemClock())
        for name in "abcde":
            log.note(f"task.{name}")
        assert ["task.c", "task.d", "task.e"] == [said.event for said in log.waiting()]
        assert 2 == log.dropped
        await journal.close()

    run(scenario())


def test_long_texts_are_cut(tmp_path: Path) -> None:
    """An event stays small whatever an error message says."""

    async def scenario() -> None:
        journal = await open_(tmp_path)
        log = EventLog(journal, SystemClock())
        log.note("task.failed", ITEM, why="x" * 10_000)
        assert events.LONGEST_TEXT == len(str(log.waiting()[0].detail["why"]))
        await journal.close()

    run(scenario())


def test_a_journal_of_an_earlier_version_is_opened(tmp_path: Path) -> None:
    """A journal that was written before there were events is no damaged one."""
    path = tmp_path / "journal.sqlite"
    open_file(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE events")
    connection.close()
    journal = open_file(path)
    assert {} == journal.contents.events
    journal.close()
