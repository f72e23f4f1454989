"""Selection of the records that share one request to the gateway.

Records that ended tasks left a while ago (during a cut, or before a restart) are the backlog. It never shares a request with
new records: however slowly the gateway works it off, new work does not wait for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from airbridge.edge_worker.work.attempts import Attempt, Entry

MAX_RECORDS: Final = 500
# A batch ends with the record that crosses this bound, so a request may be larger by one record.
MAX_BYTES: Final = 1024 * 1024
# Age of an ended task's first due record from which it is backlog.
BACKLOG_SECONDS: Final = 5.0

Batch = list[tuple[Attempt, list[Entry]]]


def is_backlog(attempt: Attempt, now: float) -> bool:
    """Return whether an ended task's records have been due for so long that new records go first."""
    first = attempt.unanswered[0] if attempt.ended and attempt.unanswered else None
    return first is not None and now - first.due_at > BACKLOG_SECONDS


def collect(attempts: Sequence[Attempt], now: float) -> Batch:
    """Return the records of the next request: new ones, or else some of the backlog."""
    new = [one for one in attempts if not is_backlog(one, now)]
    return _fill(new, now) or _fill([one for one in attempts if is_backlog(one, now)], now)


def sendable(attempt: Attempt) -> Iterator[Entry]:
    """Yield the entries that may be sent, from the first: up to one that is not on the disk yet."""
    for entry in attempt.unanswered:
        if not entry.durable:
            return
        if not entry.abandoned:
            yield entry


def _fill(attempts: Sequence[Attempt], now: float) -> Batch:
    batch: Batch = []
    records = size = 0
    # Running tasks first: they may be waiting for the answers.
    for attempt in sorted(attempts, key=lambda one: one.ended):
        if attempt.isolated and batch:
            continue
        entries = _ready(attempt, now, MAX_RECORDS - records)
        if not entries:
            continue
        batch.append((attempt, entries))
        records += len(entries)
        size += sum(len(entry.record.body or "") for entry in entries)
        if attempt.isolated or records >= MAX_RECORDS or size >= MAX_BYTES:
            break
    return batch


def _ready(attempt: Attempt, now: float, limit: int) -> list[Entry]:
    """Return the entries to send, from the first: all that are on the disk, if one of them is due."""
    while attempt.unanswered and attempt.unanswered[0].abandoned:
        attempt.unanswered.popleft()
    candidates = [*sendable(attempt)]
    if not any(entry.due_at <= now for entry in candidates):
        return []
    entries: list[Entry] = []
    size = 0
    for entry in candidates:
        if len(entries) >= limit or size >= MAX_BYTES:
            break
        entries.append(entry)
        size += len(entry.record.body or "")
    return entries[:1] if attempt.isolated else entries
