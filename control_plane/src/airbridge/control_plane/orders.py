"""What an operator can order of a worker, by command line or on a page: one rule, one audit event."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from airbridge.control_plane.exceptions import Refused
from airbridge.executor.ledger import audit, events, revocations, workers
from airbridge.executor.ledger.models import WorkerRow
from airbridge.executor.ledger.workers import Wanted
from airbridge.executor.protocol import RefusalReason

COMMENT_LENGTH: Final = 1000


@dataclass(frozen=True, slots=True)
class Order:
    """An order, and what it does to a worker."""

    name: str
    wanted: Wanted
    event: str
    action: str
    """The scope that an operator's token needs for it."""
    comment_required: bool = False


DRAIN: Final = Order("drain", "draining", "worker.drain_wanted", "workers:drain")
MAINTENANCE: Final = Order(
    "maintenance", "maintenance", "worker.maintenance_wanted", "workers:drain", comment_required=True
)
RESUME: Final = Order("resume", "active", "worker.resume_wanted", "workers:drain")
REVOKE: Final = Order("revoke", "revoked", "worker.revoked", "workers:revoke")
ORDERS: Final = {order.name: order for order in (DRAIN, MAINTENANCE, RESUME, REVOKE)}


def give(
    session: Any,
    order: Order,
    row: WorkerRow,
    comment: str,
    actor: str,
    *,
    address: str | None = None,
    rule: str | None = None,
) -> WorkerRow:
    """Carry out `order` on a worker, for `actor` at `address`, whom `rule` allows it (by default the token's scope).

    Raises `Refused` if the worker is past it, or a comment is owed.
    """
    comment = comment.strip()
    if order.comment_required and not comment:
        raise Refused(400, RefusalReason.MALFORMED, f"{order.name} needs a comment that says why")
    if len(comment) > COMMENT_LENGTH:
        raise Refused(
            400,
            RefusalReason.MALFORMED,
            f"the comment has {len(comment)} characters, must have at most {COMMENT_LENGTH}",
        )
    if row.wanted == "revoked" and order is not REVOKE:
        raise Refused(409, RefusalReason.REVOKED, f"worker {row.id!r} is revoked; a new name must enrol")
    if order is REVOKE:
        revocations.add(session, "worker", row.id, comment or "revoked by an operator", actor)
    workers.set_wanted(session, row.id, order.wanted, comment or None)
    events.record(session, order.event, actor, region=row.region, worker_id=row.id, comment=comment or None)
    audit.record(
        session,
        order.event,
        "changed",
        actor,
        address=address,
        rule=rule or f"scope {order.action}",
        region=row.region,
        worker_id=row.id,
        comment=comment or None,
    )
    return row


def unknown(worker: str) -> Refused:
    """The answer for a worker that there is not."""
    return Refused(404, RefusalReason.UNKNOWN, f"there is no worker {worker[:64]!r}")
