"""Recovery of attempts from a journal after a restart."""

from __future__ import annotations

from uuid import UUID

from tests.unit.edge_worker.test_journal_file import grant, record

from airbridge.core.protocol import TriggerSpec
from airbridge.edge_worker.journal.rows import Contents, GrantRow, GrantState, RecordRow, Row
from airbridge.edge_worker.work import recovery
from airbridge.edge_worker.work.recovery import Leftovers


def journal(
    state: GrantState,
    seqs: tuple[int, ...] = (),
    *,
    final: int | None = None,
    reported: int = 0,
    trigger: TriggerSpec | None = None,
) -> Contents:
    contents = Contents()
    one = grant().model_copy(update={"trigger": trigger})
    contents.add(Row("grants", GrantRow(str(one.item_id), 1, state, reported, one.model_dump_json())))
    for seq in seqs:
        found = record(1, seq)
        row = RecordRow(
            str(UUID(int=1)),
            1,
            seq,
            int(seq == final),
            found.method,
            found.path,
            "",
            "{}",
            found.recorded_at.isoformat(),
        )
        contents.add(Row("records", row))
    return contents


def counts(found: Leftovers) -> tuple[int, int, int, int]:
    return len(found.unstarted), len(found.interrupted), len(found.unreported), len(found.settled)


def test_claimed_starts() -> None:
    """Claimed and not started: it will start."""
    assert counts(recovery.read(journal(GrantState.CLAIMED))) == (1, 0, 0, 0)


def test_started_is_interrupted() -> None:
    """Started, with or without records, and no final state: interrupted, and its records stay in order."""
    assert counts(recovery.read(journal(GrantState.STARTED))) == (0, 1, 0, 0)
    found = recovery.read(journal(GrantState.STARTED, (3, 4), reported=2))
    [attempt] = found.interrupted
    assert [entry.record.seq for entry in attempt.unanswered] == [3, 4]
    assert attempt.seq == 4


def test_ended_is_reported() -> None:
    """A final state in the journal: everything from the last answered record on is reported."""
    found = recovery.read(journal(GrantState.ENDED, (2, 3), final=3, reported=1))
    assert counts(found) == (0, 0, 1, 0)
    assert found.unreported[0].finished


def test_answered_is_settled() -> None:
    """Its final state was answered and only the grant is left in the journal: nothing is to be reported or run."""
    found = recovery.read(journal(GrantState.ENDED, reported=4))
    assert counts(found) == (0, 0, 0, 1)
    assert found.settled[0].done


def test_records_behind_gap_are_dropped() -> None:
    """A record whose predecessor is missing is not sent: the attempt counts as interrupted there."""
    found = recovery.read(journal(GrantState.ENDED, (1, 3), final=3))
    assert counts(found) == (0, 1, 0, 0)
    assert [entry.record.seq for entry in found.interrupted[0].unanswered] == [1]


def test_unreadable_grant_is_skipped() -> None:
    """A row that cannot be read does not stop the others; its lease lapses."""
    contents = journal(GrantState.CLAIMED)
    contents.add(
        Row("grants", GrantRow(str(UUID(int=9)), 1, GrantState.CLAIMED, 0, '{"from": "the future"}'))
    )
    assert counts(recovery.read(contents)) == (1, 0, 0, 0)


def test_trigger_starts_again_unless_it_fired() -> None:
    """A trigger without a journalled event starts again; one with an event reports it, and does not run."""
    trigger = TriggerSpec(trigger_id=7, classpath="mine.Waits")
    [attempt] = recovery.read(journal(GrantState.CLAIMED, trigger=trigger)).unstarted
    assert attempt.is_trigger
    found = recovery.read(journal(GrantState.ENDED, (1,), final=1, trigger=trigger))
    assert counts(found) == (0, 0, 1, 0)
    assert found.unreported[0].ended
