"""The fence: the comparison of worker and epoch that stands before every write under a claim."""

from __future__ import annotations

import pytest

from airbridge.control_plane.gateway.work.fencing import Fence, fence
from airbridge.core.protocol import RefusalReason
from airbridge.executor.ledger.models import ItemState, Outcome, WorkItemRow

WORKER, EPOCH = "worker-1", 3


def row(
    state: ItemState = ItemState.CLAIMED, outcome: Outcome | None = None, detail: str = ""
) -> WorkItemRow:
    return WorkItemRow(epoch=EPOCH, worker_id=WORKER, state=state, outcome=outcome, detail=detail or None)


def test_holder_passes() -> None:
    """The worker of the claim, under its epoch, is not fenced, and may fetch its answers again."""
    assert fence(row(), WORKER, EPOCH) == Fence(None, "", was_holder=True)


@pytest.mark.parametrize("epoch", [EPOCH - 1, EPOCH + 1])
def test_other_epoch_is_stale(epoch: int) -> None:
    """An epoch before or after the current one is refused, and gets no answers of it."""
    found = fence(row(), WORKER, epoch)
    assert (found.reason, found.was_holder) == (RefusalReason.STALE_EPOCH, False)
    assert found.detail == f"epoch {epoch} is not the current one ({EPOCH})"


def test_other_worker_is_refused() -> None:
    """Another worker under the current epoch holds nothing, claimed or settled."""
    for state in (ItemState.CLAIMED, ItemState.SETTLED):
        found = fence(row(state, Outcome.SUCCESS), "worker-2", EPOCH)
        assert (found.reason, found.was_holder) == (RefusalReason.NOT_HOLDER, False)


def test_unknown_item_is_refused() -> None:
    """An item without a row has no holder."""
    found = fence(None, WORKER, EPOCH)
    assert (found.reason, found.was_holder) == (RefusalReason.UNKNOWN_ITEM, False)


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (Outcome.LOST, RefusalReason.LOST),
        (Outcome.CANCELLED, RefusalReason.CANCELLED),
        (Outcome.SUCCESS, RefusalReason.SETTLED),
        (Outcome.FAILED, RefusalReason.SETTLED),
    ],
)
def test_settled_item_refuses_with_outcome(outcome: Outcome, reason: RefusalReason) -> None:
    """The last holder's new writes are refused, with the outcome as the reason; it may fetch old answers again."""
    found = fence(row(ItemState.SETTLED, outcome, "marked failed"), WORKER, EPOCH)
    assert (found.reason, found.was_holder) == (reason, True)
    assert found.detail.endswith(": marked failed")
    assert ": " not in fence(row(ItemState.SETTLED, outcome), WORKER, EPOCH).detail


@pytest.mark.parametrize("state", [ItemState.PLACED, ItemState.SENT])
def test_released_item_is_not_held(state: ItemState) -> None:
    """An item that waits for a worker again has no holder, not even its last one."""
    found = fence(row(state), WORKER, EPOCH)
    assert (found.reason, found.was_holder) == (RefusalReason.NOT_HOLDER, False)
