"""Fencing: the comparison of worker and epoch before every write under a claim."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from airbridge.core.protocol import RefusalReason
from airbridge.executor.ledger.models import ItemState, Outcome, WorkItemRow


@dataclass(frozen=True, slots=True)
class Fence:
    """Result of the comparison. `reason` of None: the caller holds the item now."""

    reason: RefusalReason | None = None
    detail: str = ""
    #: True if the caller held the item under this epoch: it may repeat requests and gets the stored answers.
    was_holder: bool = True


_HELD: Final = Fence()
_OUTCOMES: Final = {
    Outcome.LOST: (RefusalReason.LOST, "the lease ran out and the attempt was given up"),
    Outcome.CANCELLED: (RefusalReason.CANCELLED, "Airflow no longer wants this task"),
}


def fence(row: WorkItemRow | None, worker: str, epoch: int) -> Fence:
    """Compare `worker` and `epoch` with the holder of `row`."""
    if row is None:
        return Fence(RefusalReason.UNKNOWN_ITEM, "there is no such work item", was_holder=False)
    if row.epoch != epoch:
        return Fence(
            RefusalReason.STALE_EPOCH, f"epoch {epoch} is not the current one ({row.epoch})", was_holder=False
        )
    if row.worker_id != worker:
        return Fence(RefusalReason.NOT_HOLDER, "this worker does not hold the work item", was_holder=False)
    if row.state == ItemState.CLAIMED and row.outcome is None:
        return _HELD
    if row.state == ItemState.CLAIMED:
        return Fence(RefusalReason.CANCELLED, f"{_OUTCOMES[Outcome.CANCELLED][1]}: {row.detail}")
    if row.state == ItemState.SETTLED:
        reason, detail = _OUTCOMES.get(row.outcome, (RefusalReason.SETTLED, "the work item is settled"))
        return Fence(reason, f"{detail}: {row.detail}" if row.detail else detail)
    return Fence(RefusalReason.NOT_HOLDER, "this worker does not hold the work item", was_holder=False)


def is_claimed(row: WorkItemRow, worker: str, epoch: int) -> bool:
    """Return whether `worker` holds the lease of `row` under `epoch`, even if it has been ordered to stop the task."""
    return (row.state, row.worker_id, row.epoch) == (ItemState.CLAIMED, worker, epoch)
