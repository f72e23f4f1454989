"""Records that an earlier process left, as they are sent again."""

from __future__ import annotations

import pytest
from tests.unit.edge_worker.test_recovery import journal

from airbridge.edge_worker.journal.rows import GrantState
from airbridge.edge_worker.work import recovery
from airbridge.edge_worker.work.attempts import Phase


def test_recovered_records_are_durable_writes() -> None:
    """Recovered records are durable already and are writes: no caller waits for them, and they are not abandoned as reads are."""
    [attempt] = recovery.read(journal(GrantState.ENDED, (2, 3), final=3, reported=1)).unreported
    assert [(entry.write, entry.durable, entry.final) for entry in attempt.unanswered] == [
        (True, True, False),
        (True, True, True),
    ]
    assert not any(entry.abandoned for entry in attempt.unanswered)


@pytest.mark.parametrize(
    ("state", "ended"), [(GrantState.CLAIMED, False), (GrantState.STARTED, True), (GrantState.ENDED, True)]
)
def test_nothing_runs_after_a_restart(state: GrantState, ended: bool) -> None:
    """The process of a task that had started is gone; one that had only been claimed is yet to start."""
    found = recovery.read(journal(state, (1,), final=1 if state is GrantState.ENDED else None))
    [attempt] = [*found.all, *found.settled]
    assert (attempt.phase is Phase.ENDED) is ended


def test_next_record_follows_the_last() -> None:
    """Numbers go on after the last record in the journal, or after the last one answered."""
    [attempt] = recovery.read(journal(GrantState.STARTED, (3, 4), reported=2)).interrupted
    assert attempt.seq == 4
    [attempt] = recovery.read(journal(GrantState.STARTED, reported=7)).interrupted
    assert attempt.seq == 7
