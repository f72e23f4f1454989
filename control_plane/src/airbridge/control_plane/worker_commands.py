"""Worker commands of operators (drain, maintenance, resume, revoke), from the command line or the dashboard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from airbridge.control_plane.exceptions import Refused
from airbridge.core.protocol import RefusalReason
from airbridge.executor.ledger import audit, events, workers
from airbridge.executor.ledger.identity import revocations
from airbridge.executor.ledger.models import WorkerRow
from airbridge.executor.ledger.workers import Wanted

COMMENT_LENGTH: Final = 1000


@dataclass(frozen=True, slots=True)
class WorkerCommand:
    """Command to a worker, with the state that it sets."""

    name: str
    wanted: Wanted
    event: str
    #: Scope that an operator's token needs.
    action: str
    comment_required: bool = False


DRAIN: Final = WorkerCommand("drain", "draining", "worker.drain_wanted", "workers:drain")
MAINTENANCE: Final = WorkerCommand(
    "maintenance", "maintenance", "worker.maintenance_wanted", "workers:drain", comment_required=True
)
RESUME: Final = WorkerCommand("resume", "active", "worker.resume_wanted", "workers:drain")
REVOKE: Final = WorkerCommand("revoke", "revoked", "worker.revoked", "workers:revoke")
COMMANDS: Final = {command.name: command for command in (DRAIN, MAINTENANCE, RESUME, REVOKE)}


def apply(
    session: Any,
    command: WorkerCommand,
    row: WorkerRow,
    comment: str,
    actor: str,
    *,
    address: str | None = None,
    rule: str | None = None,
    token: str | None = None,
) -> WorkerRow:
    """Apply `command` to a worker for `actor` at `address`, permitted by `rule` (default: the token's scope).

    Raises `Refused` if the worker is revoked already, or a required comment is missing.
    """
    comment = comment.strip()
    if command.comment_required and not comment:
        raise Refused(400, RefusalReason.MALFORMED, f"{command.name} needs a comment with the reason")
    if len(comment) > COMMENT_LENGTH:
        raise Refused(
            400,
            RefusalReason.MALFORMED,
            f"the comment has {len(comment)} characters, must have at most {COMMENT_LENGTH}",
        )
    if row.wanted == "revoked" and command is not REVOKE:
        raise Refused(409, RefusalReason.REVOKED, f"worker {row.id!r} is revoked; a new name must enrol")
    if command is REVOKE:
        revocations.add(session, "worker", row.id, comment or "revoked by an operator", actor)
    workers.set_wanted(session, row.id, command.wanted, comment or None)
    events.record(session, command.event, actor, region=row.region, worker_id=row.id, comment=comment or None)
    audit.record(
        session,
        command.event,
        "changed",
        actor,
        address=address,
        rule=rule or f"scope {command.action}",
        region=row.region,
        worker_id=row.id,
        comment=comment or None,
        token=token,
    )
    return row


def unknown(worker: str) -> Refused:
    """Return a 404 for an unknown worker."""
    return Refused(404, RefusalReason.UNKNOWN, f"there is no worker {worker[:64]!r}")
