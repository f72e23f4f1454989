"""Broken gateways that lack a promise on triggers; see `tests.chaos.mutants`, which serves as one of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from airbridge.control_plane.gateway.triggers.placing import is_trigger
from airbridge.control_plane.gateway.work import claims, exchanges
from airbridge.control_plane.gateway.work.fencing import Fence
from airbridge.core.protocol import TRIGGER_EVENT, Record
from airbridge.executor.ledger import clock, leases
from airbridge.executor.ledger.models import ItemState, Outcome


def without_epochs() -> None:
    """Accept a trigger's event from whoever held it once."""
    fence = exchanges.fence

    def anybody(row: Any, worker: str, epoch: int) -> Fence:
        open_trigger = row is not None and is_trigger(row) and row.outcome is None
        return Fence() if open_trigger else fence(row, worker, epoch)

    exchanges.fence = anybody


def without_second_grant() -> None:
    """Settle a trigger that was lost when it is offered again."""
    start = claims._Batch._start_trigger

    def once(self: Any, opened: Any, row: Any, now: Any) -> Any:
        if row.epoch > 0 and row.state != ItemState.CLAIMED:
            leases.settle(self.work.session, row, Outcome.SUCCESS, "its worker was silent")
            return opened.refuse(claims.RefusalReason.SETTLED, "its worker was silent")
        return start(self, opened, row, now)

    claims._Batch._start_trigger = once  # type: ignore[method-assign]


def without_refusal_of_cancelled() -> None:
    """Apply the event of a trigger that was cancelled."""
    _reopen({Outcome.CANCELLED})


def without_memory() -> None:
    """Apply an event again that was applied before."""
    _reopen({Outcome.SUCCESS, Outcome.FAILED})


def without_true_time() -> None:
    """Take the time of an event's arrival for its own."""
    record = exchanges.events.record

    def late(session: Any, event: str, *more: Any, **detail: Any) -> Any:
        if event == "trigger.fired":
            detail["fired_at"] = clock.now(session).isoformat()
        return record(session, event, *more, **detail)

    exchanges.events = _Replaced(exchanges.events, record=late)


class _Replaced:
    """A module with other functions: its own goes on having its own."""

    def __init__(self, module: Any, **others: Any) -> None:
        self.__dict__.update(vars(module) | others)


def _reopen(outcomes: Collection[Outcome]) -> None:
    """Forget, of triggers that were settled so, the end and the records before an event is applied."""
    apply, known = exchanges._Transaction.apply, exchanges.records
    forgotten: set[str] = set()

    def reopened(self: Any, item_records: Sequence[Record]) -> Any:
        first = item_records[0]
        if first.path == TRIGGER_EVENT:
            row = leases.lock(self.work.session, [str(first.item_id)]).get(str(first.item_id))
            if row is not None and row.outcome in outcomes and row.epoch == first.epoch:
                forgotten.add(row.id)
                row.state, row.outcome = ItemState.CLAIMED, None
                self.work.session.flush()
        return apply(self, item_records)

    def find(session: Any, item_id: str, epoch: int) -> Any:
        return {} if item_id in forgotten else known.find(session, item_id, epoch)

    def add(session: Any, item_id: str, *writes: Any, **more: Any) -> None:
        # The gateway's role of the database may delete no record.
        if item_id not in forgotten:
            known.add(session, item_id, *writes, **more)

    exchanges._Transaction.apply = reopened  # type: ignore[method-assign]
    exchanges.records = _Replaced(known, find=find, add=add)


GATEWAYS: dict[str, Callable[[], None]] = {
    "no epoch of triggers": without_epochs,
    "no second grant of triggers": without_second_grant,
    "no refusal of cancelled triggers": without_refusal_of_cancelled,
    "no memory of events": without_memory,
    "no true time of events": without_true_time,
}
