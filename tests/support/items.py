"""Work items made up for tests that need no task instance behind them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import uuid4

from airbridge.executor.ledger import clock, items
from airbridge.executor.ledger.items import NewItem

DIGEST = "sha256:" + "a" * 64


def new_item(**values: Any) -> NewItem:
    """A new item in the default pool of eu-west-1; `values` replace its parts."""
    defaults: dict[str, Any] = {
        "ti_id": str(uuid4()),
        "dag_id": "dag",
        "run_id": "run",
        "task_id": "task",
        "map_index": -1,
        "try_number": 1,
        "queue": "eu-west-1",
        "region": "eu-west-1",
        "pool": "default",
        "slots": 1,
        "priority": 1,
        "workload": {
            "ti": {},
            "dag_rel_path": "dag.py",
            "bundle": {"name": "dags", "version": DIGEST},
            "log_path": "dag/run/task/1.log",
        },
        "placement": {"fallback": [], "fallback_after": 60.0, "why": "", "tried": []},
        "disconnect": {"lost_after": 600.0, "stop_after": None, "replace": True},
    }
    return NewItem(**{**defaults, **values})


def send(session: Any, ids: Sequence[str], expires_at: datetime, *, at: datetime | None = None) -> None:
    """Reserve placed rows and confirm that a queue took their messages, as the outbox does."""
    items.reserve(session, ids, expires_at)
    items.mark_sent(session, ids, expires_at, at=at or clock.now(session), reserved_until=expires_at)
