"""Status of a worker for operators and probes: numbers and names, no secrets."""

from __future__ import annotations

from typing import Any

from airbridge.edge_worker.gateway_client.connectivity import Connectivity
from airbridge.edge_worker.journal.journal import Journal
from airbridge.edge_worker.storage.disk import Disk
from airbridge.edge_worker.storage.logs import LogShipper
from airbridge.edge_worker.work.attempts import Attempt, Attempts
from airbridge.edge_worker.work.task import HeldBy

Status = dict[str, Any]


def describe(
    attempts: Attempts,
    connectivity: Connectivity,
    journal: Journal,
    logs: LogShipper,
    disk: Disk,
    *,
    queue_error: str | None,
    limits: HeldBy,
) -> Status:
    """Return the state of the worker's components as a JSON object."""
    return {
        "link": {"up": connectivity.up, "silent_seconds": round(connectivity.silent_for(), 3)},
        "queue": {"error": queue_error},
        "slots": {"total": attempts.slots, "used": attempts.used, "held": attempts.held},
        "limits": {"held_by": limits.name, "why_no_cgroup": limits.why_no_cgroup or None},
        "tasks": [_task(one) for one in attempts if not one.is_trigger],
        "triggers": {"held": len(attempts.triggers)},
        "journal": {
            "bytes": journal.bytes,
            "pending": journal.pending,
            "full": journal.full,
            "damages": [damage.reason for damage in journal.damages],
        },
        "logs": {"pending": logs.pending, "bytes": logs.bytes},
        "disk_free_bytes": disk.free_bytes,
    }


def _task(attempt: Attempt) -> Status:
    ti = attempt.grant.ti
    return {
        "item_id": attempt.key[0],
        "epoch": attempt.key[1],
        "dag_id": ti.get("dag_id"),
        "task_id": ti.get("task_id"),
        "run_id": ti.get("run_id"),
        "map_index": ti.get("map_index"),
        "state": attempt.phase.value,
        "stopping": None if attempt.stop is None else attempt.stop.reason.value,
        "unreported": len(attempt.unanswered),
    }
