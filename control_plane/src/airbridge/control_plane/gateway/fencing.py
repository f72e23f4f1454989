"""Who holds a work item: the one comparison of worker and epoch that stands before every write under a claim."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from airbridge.executor.ledger.models import ItemState, Outcome, WorkItemRow
from airbridge.executor.protocol import RefusalReason


@dataclass(frozen=True, slots=True)
class Fence:
    """The verdict. `reason` of None: the caller holds the item now."""

    reason: RefusalReason | None = None
    detail: str = ""
    held_once: bool = True
    """Whether the caller was the holder of this very epoch: it may ask again for answers it was given."""


_HELD: Final = Fence()
_OUTCOMES: Final = {
    Outcome.LOST: (RefusalReason.LOST, "the lease ran out and the attempt was given up"),
    Outcome.CANCELLED: (RefusalReason.CANCELLED, "Airflow no longer wants this task"),
}


def fence(row: WorkItemRow | None, worker: str, epoch: int) -> Fence:
    """Judge whether `worker` holds `row` under `epoch`."""
    if row is None:
        return Fence(RefusalReason.UNKNOWN_ITEM, "there is no such work item", held_once=False)
    if row.epoch != epoch:
        return Fence(
            RefusalReason.STALE_EPOCH, f"epoch {epoch} is not the current one ({row.epoch})", held_once=False
        )
    if row.worker_id != worker:
        return Fence(RefusalReason.NOT_HOLDER, "this worker does not hold the work item", held_once=False)
    if row.state == ItemState.CLAIMED:
        return _HELD
    if row.state == ItemState.SETTLED:
        reason, detail = _OUTCOMES.get(row.outcome, (RefusalReason.SETTLED, "the work item is settled"))
        return Fence(reason, f"{detail}: {row.detail}" if row.detail else detail)
    return Fence(RefusalReason.NOT_HOLDER, "this worker does not hold the work item", held_once=False)
