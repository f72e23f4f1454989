"""A DAG run over regions, written straight into a database: extracts near their data, transforms, and a load at home."""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy import insert

from airbridge.executor.ledger import clock
from airbridge.executor.ledger.models import EventRow, ItemState, Outcome, WorkItemRow
from airbridge.executor.ledger.sharing.usage import XCOM_READ, XCOM_WRITTEN

DAG, RUN = "world_etl", "scheduled__2026-01-01T00:00:00+00:00"
REGIONS = ("us-east-1", "eu-west-1", "ap-south-1")


class _Writer:
    """Collects the rows of a run."""

    def __init__(self, session: Any, began: datetime) -> None:
        self.session, self.began = session, began
        self.rows: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.of: dict[str, dict[str, Any]] = {}

    def item(self, task: str, region: str, at: float, runs: float | None, **more: Any) -> None:
        """Add an attempt that is placed after `at` seconds, and held for `runs`, or waits."""
        placed = self.began + timedelta(seconds=at)
        claimed = placed + timedelta(seconds=0.4) if runs is not None else None
        settled = claimed + timedelta(seconds=runs) if claimed and runs is not None else None
        row = {
            "id": str(uuid4()),
            "ti_id": str(uuid4()),
            "dag_id": DAG,
            "run_id": RUN,
            "task_id": task,
            "map_index": -1,
            "try_number": 1,
            "queue": region,
            "region": region,
            "pool": "default",
            "slots": 1,
            "priority": 1,
            "state": ItemState.SETTLED if settled else ItemState.PLACED,
            "epoch": 1,
            "workload": {},
            "placement": {"why": f"it is near s3://{region}-data"},
            "disconnect": {"lost_after": 600.0, "stop_after": None, "replace": True},
            "trace": {},
            "placed_at": placed,
            "not_before": placed,
            "claimed_at": claimed,
            "settled_at": settled,
            "worker_id": f"{region}-default-1" if claimed else None,
            "outcome": Outcome.SUCCESS if settled else None,
            **more,
        }
        self.rows.append(row)
        self.of[task] = row

    def xcom(self, writer: str, reader: str | None, size: int, stored: str | None = None) -> None:
        """Add the events of an XCom, of its writing without a reader."""
        name = XCOM_WRITTEN if reader is None else XCOM_READ
        row = self.of[reader or writer]
        detail: dict[str, Any] = {"key": "return_value", "bytes": size}
        if stored:
            detail["stored"] = stored
        if reader is not None:
            detail |= {"of_dag": DAG, "of_run": RUN, "of_task": writer, "of_index": -1}
        self.events.append(
            {
                "at": row["settled_at"] or row["placed_at"],
                "event": name,
                "actor": "worker",
                "region": row["region"],
                "item_id": row["id"],
                "ti_id": row["ti_id"],
                "detail": detail,
                "source": "control",
                "moved_bytes": size,
            }
        )

    def flush(self) -> None:
        """Write the rows."""
        self.session.execute(insert(WorkItemRow), self.rows)
        self.session.execute(insert(EventRow), self.events)
        self.session.commit()


def seed_run(session: Any, tasks: int = 12) -> None:
    """Write a run with about so many tasks: one that is retried in another region, one that failed, one that waits."""
    chance = random.Random(7)
    writer = _Writer(session, clock.now(session) - timedelta(seconds=70))
    extracts = max(3, tasks - 4)
    for number in range(extracts):
        region = REGIONS[number % 3]
        writer.item(f"extract_{number}", region, number % 7 * 0.8, 4 + 9 * chance.random())
        writer.xcom(f"extract_{number}", None, 40_000 * (number % 40 + 1), region)
    writer.item("clean", "ap-south-1", 16, 6, outcome=Outcome.LOST)
    writer.item("clean", "eu-west-1", 25, 8, try_number=2)
    writer.item("join", "eu-west-1", 36, 9)
    for number in range(extracts):
        stored = REGIONS[number % 3]
        writer.xcom(f"extract_{number}", "join", 40_000 * (number % 40 + 1), stored)
    writer.item("check", "ap-south-1", 37, 3, outcome=Outcome.FAILED)
    writer.xcom("clean", None, 900)
    writer.xcom("clean", "check", 900)
    writer.item("load", "us-east-1", 47, 5)
    writer.xcom("join", None, 3_000)
    writer.xcom("join", "load", 3_000)
    writer.item("report", "us-east-1", 53, None)
    writer.flush()
