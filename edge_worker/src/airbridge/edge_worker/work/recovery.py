"""Recovery: the attempts that an earlier process left in the journal.

Results not yet reported are reported; interrupted tasks are reported failed; tasks claimed and not started start.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import structlog
from pydantic import ValidationError

from airbridge.core.protocol import Grant
from airbridge.edge_worker.journal.rows import Contents, GrantRow, GrantState, RecordRow, record_of
from airbridge.edge_worker.work.attempts import Attempt, Entry, Outcome, Phase

log = structlog.get_logger(__name__)

INTERRUPTED = "The worker stopped while this task ran (killed, or its host restarted); the attempt ends here."


@dataclass
class Leftovers:
    """Recovered attempts by the action that each needs."""

    unreported: list[Attempt] = field(default_factory=list)
    interrupted: list[Attempt] = field(default_factory=list)
    unstarted: list[Attempt] = field(default_factory=list)
    #: Everything was answered; only the grant is still in the journal.
    settled: list[Attempt] = field(default_factory=list)

    @property
    def all(self) -> list[Attempt]:
        """Attempts whose outcome is not reported yet."""
        return [*self.unstarted, *self.interrupted, *self.unreported]


def read(contents: Contents) -> Leftovers:
    """Return the journal's contents as attempts. Call it before anything is submitted to the journal."""
    leftovers = Leftovers()
    for key, row in contents.grants.items():
        try:
            grant = Grant.model_validate_json(row.grant)
        except ValidationError as error:
            # Checksums hold, so an incompatible version wrote it. Its lease lapses and the attempt is retried.
            log.error("recovery.grant_unreadable", item_id=key[0], detail=str(error))  # noqa: TRY400
            continue
        _sort(leftovers, _attempt(grant, row, contents.records.get(key, {})))
    log.info(
        "recovery.read",
        unreported=len(leftovers.unreported),
        interrupted=len(leftovers.interrupted),
        unstarted=len(leftovers.unstarted),
        records=sum(len(one.unanswered) for one in leftovers.all),
    )
    return leftovers


def _attempt(grant: Grant, row: GrantRow, records: dict[int, RecordRow]) -> Attempt:
    entries = _in_order(row, records)
    finished = any(entry.final for entry in entries)
    state = GrantState(row.state)
    # The final state is behind a gap: it was never sent, so the attempt counts as interrupted.
    lost = state is GrantState.ENDED and not finished and len(entries) < len(records)
    answered = state is GrantState.ENDED and not finished and not lost
    return Attempt(
        grant,
        # A trigger starts again, whatever became of the process that ran it, unless its event is journalled.
        phase=Phase.CLAIMED if state is GrantState.CLAIMED else Phase.ENDED,
        outcome=Outcome.COMMITTED if answered else Outcome.PENDING if finished else Outcome.OPEN,
        seq=max([row.reported, *(entry.record.seq for entry in entries)]),
        unanswered=deque(entries),
    )


def _in_order(row: GrantRow, records: dict[int, RecordRow]) -> list[Entry]:
    """Return the records up to the first gap; records behind it were never sent."""
    entries = []
    seq = row.reported + 1
    while (record := records.get(seq)) is not None:
        entries.append(Entry(record_of(record), write=True, final=bool(record.final), durable=True))
        seq += 1
    if len(entries) < len(records):
        log.error(
            "recovery.gap", item_id=row.item_id, epoch=row.epoch, seq=seq, dropped=len(records) - len(entries)
        )
    return entries


def _sort(leftovers: Leftovers, attempt: Attempt) -> None:
    if attempt.waiting:
        leftovers.unstarted.append(attempt)
    elif not attempt.finished:
        leftovers.interrupted.append(attempt)
    elif attempt.unanswered:
        leftovers.unreported.append(attempt)
    else:
        leftovers.settled.append(attempt)
