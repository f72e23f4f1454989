"""What a worker is doing, for people and probes: numbers and names, no secrets."""

from __future__ import annotations

from typing import Any

from airbridge.edge_worker.disk import Disk
from airbridge.edge_worker.holdings import Holding, Holdings
from airbridge.edge_worker.journal import Journal
from airbridge.edge_worker.link import Link
from airbridge.edge_worker.logs import LogShipper

Status = dict[str, Any]


def describe(holdings: Holdings, link: Link, journal: Journal, logs: LogShipper, disk: Disk) -> Status:
    """Return the state of the worker's parts as a JSON object."""
    return {
        "link": {"up": link.up, "silent_seconds": round(link.silent_for(), 3)},
        "slots": {"total": holdings.slots, "used": holdings.used, "held": holdings.held},
        "tasks": [_task(one) for one in holdings],
        "journal": {
            "bytes": journal.bytes,
            "pending": journal.pending,
            "full": journal.full,
            "damages": [damage.reason for damage in journal.damages],
        },
        "logs": {"pending": logs.pending, "bytes": logs.bytes},
        "disk_free_bytes": disk.free_bytes,
    }


def _task(holding: Holding) -> Status:
    ti = holding.grant.ti
    return {
        "item_id": holding.key[0],
        "epoch": holding.key[1],
        "dag_id": ti.get("dag_id"),
        "task_id": ti.get("task_id"),
        "run_id": ti.get("run_id"),
        "map_index": ti.get("map_index"),
        "state": holding.state.value,
        "stopping": None if holding.stop is None else holding.stop.reason.value,
        "unreported": len(holding.outbox),
    }
