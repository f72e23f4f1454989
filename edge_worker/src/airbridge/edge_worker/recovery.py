"""What an earlier process left in the journal, taken up again.

Results not yet reported are reported; interrupted tasks are reported failed; tasks claimed and not started start.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import structlog
from pydantic import ValidationError

from airbridge.edge_worker.holdings import Entry, Holding
from airbridge.edge_worker.journal_rows import Contents, GrantRow, GrantState, RecordRow, record_of
from airbridge.executor.protocol import Grant

log = structlog.get_logger(__name__)

INTERRUPTED = "The worker stopped while this task ran (killed, or its host restarted); the attempt ends here."


@dataclass
class Leftovers:
    """Holdings by what is to be done with them."""

    unreported: list[Holding] = field(default_factory=list)
    interrupted: list[Holding] = field(default_factory=list)
    unstarted: list[Holding] = field(default_factory=list)
    settled: list[Holding] = field(default_factory=list)
    """Everything was answered; only the grant was not forgotten yet."""

    @property
    def all(self) -> list[Holding]:
        """Every holding whose outcome is still owed."""
        return [*self.unstarted, *self.interrupted, *self.unreported]


def read(contents: Contents) -> Leftovers:
    """Return what the journal holds as holdings. Call it before anything is submitted to the journal."""
    leftovers = Leftovers()
    for key, row in contents.grants.items():
        try:
            grant = Grant.model_validate_json(row.grant)
        except ValidationError as error:
            # Checksums hold, so an incompatible version wrote it. Its lease lapses and the attempt is retried.
            log.error("recovery.grant_unreadable", item_id=key[0], detail=str(error))  # noqa: TRY400
            continue
        _sort(leftovers, _holding(grant, row, contents.records.get(key, {})))
    log.info(
        "recovery.read",
        unreported=len(leftovers.unreported),
        interrupted=len(leftovers.interrupted),
        unstarted=len(leftovers.unstarted),
        records=sum(len(one.outbox) for one in leftovers.all),
    )
    return leftovers


def _holding(grant: Grant, row: GrantRow, records: dict[int, RecordRow]) -> Holding:
    entries = _in_order(row, records)
    finished = any(entry.final for entry in entries)
    state = GrantState(row.state)
    if state is GrantState.ENDED and not finished and len(entries) < len(records):
        state = GrantState.STARTED
    answered = state is GrantState.ENDED and not finished
    return Holding(
        grant,
        state=state,
        seq=max([row.reported, *(entry.record.seq for entry in entries)]),
        outbox=deque(entries),
        finished=finished or answered,
        committed=answered,
        ended=state is not GrantState.CLAIMED,
    )


def _in_order(row: GrantRow, records: dict[int, RecordRow]) -> list[Entry]:
    """Return the records up to the first gap. What lies behind one was never sent: it would stand alone."""
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


def _sort(leftovers: Leftovers, holding: Holding) -> None:
    if holding.state is GrantState.CLAIMED:
        leftovers.unstarted.append(holding)
    elif not holding.finished:
        leftovers.interrupted.append(holding)
    elif holding.outbox:
        leftovers.unreported.append(holding)
    else:
        leftovers.settled.append(holding)
