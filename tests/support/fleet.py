"""A busy platform, written straight into a database: regions in every health, workers, work and events.

For what only reads the database: the dashboard's pages, and how fast they are with much to show.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import insert

from airbridge.executor.ledger import audit, clock
from airbridge.executor.ledger.models import EventRow, GatewayRow, ItemState, WorkerRow, WorkItemRow

CATALOGUE = """
home_region = "us-east-1"
[[region]]
name = "us-east-1"
log_bucket = "us-logs"
bundle_bucket = "us-dags"
[[region.pool]]
queue_url = "http://127.0.0.1:1/us"
[[region]]
name = "eu-west-1"
log_bucket = "eu-logs"
bundle_bucket = "eu-dags"
[[region.pool]]
queue_url = "http://127.0.0.1:1/eu"
[[region.pool]]
name = "gpu"
queue_url = "http://127.0.0.1:1/eu-gpu"
[[region]]
name = "ap-south-1"
log_bucket = "ap-logs"
bundle_bucket = "ap-dags"
[[region.pool]]
queue_url = "http://127.0.0.1:1/ap"
[[region]]
name = "sa-east-1"
log_bucket = "sa-logs"
bundle_bucket = "sa-dags"
[[region.pool]]
queue_url = "http://127.0.0.1:1/sa"
"""

_BUNDLE = {
    "name": "dags",
    "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
    "kwargs": {"path": "/nonexistent"},
}
IMAGE = "sha256:" + "4f1c" * 16
OLD_IMAGE = "sha256:" + "9a0b" * 16
VERSIONS = {
    "airbridge": "0.1.0",
    "airflow": "3.0.4",
    "task_sdk": "1.0.4",
    "python": "3.11.7",
    "protocol": 1,
    "image": IMAGE,
}
PLACES = (("us-east-1", "default"), ("eu-west-1", "default"), ("eu-west-1", "gpu"))
_DETAILS = {"failed": "the task's process ended with exit code 137", "lost": "no heartbeat for 600 s"}
ALIVE_SECONDS = 6 * 3600
"""Value of the liveness settings, so that workers stay alive for the length of a test."""


@dataclass(frozen=True)
class Fleet:
    """Names of the written rows, for requests to the pages."""

    dag_id: str
    run_id: str
    done: str
    """A task that ran, failed and ran again."""
    running: str
    waiting: str
    worker: str
    silent_worker: str


def settings(directory: Path, more_regions: Sequence[str] = ()) -> dict[str, str]:
    """Write the region catalogue, with a pool in each further region; return the environment that points a control plane at it."""
    catalogue = directory / "regions.toml"
    catalogue.write_text(
        CATALOGUE
        + "".join(
            f'[[region]]\nname = "{name}"\naws_region = "us-east-1"\nlog_bucket = "{name}-logs"\nbundle_bucket = "{name}-dags"\n'
            f'[[region.pool]]\nqueue_url = "http://127.0.0.1:1/{name}"\n'
            for name in more_regions
        )
    )
    return {
        "AIRFLOW__AIRBRIDGE__REGIONS_FILE": str(catalogue),
        "AIRFLOW__AIRBRIDGE__SECRETS_DIR": str(directory),
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps([_BUNDLE]),
        "AIRFLOW__AIRBRIDGE__WORKER_ALIVE_SECONDS": str(ALIVE_SECONDS),
    }


def seed(session: Any, *, workers: int = 14, items: int = 300) -> Fleet:
    """Write the fleet, and commit."""
    now, dice = clock.now(session), random.Random(7)
    session.execute(insert(WorkerRow), list(_workers(now, workers, dice)))
    session.add(GatewayRow(id="gateway-1", version="0.1.0", started_at=now, seen_at=now + timedelta(days=1)))
    tasks = _dag(session, "daily_sales", ("extract", "transform", "load", "report"))
    names = [row["id"] for row in _workers(now, workers, random.Random(7)) if row["region"] != "ap-south-1"]
    history = list(_history(now, items, names, dice))
    for start in range(0, len(history), 2_000):
        session.execute(insert(WorkItemRow), history[start : start + 2_000])
    session.execute(insert(EventRow), list(_events(now, history, names, dice)))
    _tell(session, tasks, now, names[0])
    _audit(session, names)
    session.commit()
    return Fleet(
        dag_id="daily_sales",
        run_id=tasks["extract"].run_id,
        done="extract",
        running="transform",
        waiting="load",
        worker=names[0],
        silent_worker="ap-south-1-default-1",
    )


def seed_regions(session: Any, regions: Sequence[str], *, workers: int, items: int) -> None:
    """Write workers and an hour's work in further regions, and commit; of every 17th region no worker sends heartbeats."""
    now, dice = clock.now(session), random.Random(11)
    names = [
        (regions[number % len(regions)], f"{regions[number % len(regions)]}-default-{number}")
        for number in range(workers)
    ]
    session.execute(
        insert(WorkerRow),
        [
            _worker(
                now,
                name,
                region,
                used=dice.randrange(9),
                heard=now - timedelta(hours=8) if regions.index(region) % 17 == 5 else None,
            )
            for region, name in names
        ],
    )
    history = []
    for number in range(items):
        # A few regions do most of the work.
        region, name = names[min(dice.randrange(workers), dice.randrange(workers))]
        placed = now - timedelta(seconds=dice.randrange(120, 3_600))
        history.append(_item(placed, region, "default", ItemState.SETTLED, name, number, dice))
    session.execute(insert(WorkItemRow), history)
    session.commit()


def _workers(now: datetime, count: int, dice: random.Random) -> Iterator[dict[str, Any]]:
    for number in range(count):
        region, pool = PLACES[number % len(PLACES)]
        name = f"{region}-{pool}-{number // len(PLACES) + 1}"
        yield _worker(now, name, region, pool, used=dice.randrange(9), pending=dice.choice((0, 0, 0, 2)))
    hours = timedelta(hours=8)
    yield _worker(now, "ap-south-1-default-1", "ap-south-1", heard=now - hours, pending=31)
    yield _worker(now, "ap-south-1-default-2", "ap-south-1", heard=now - hours)
    old = {**VERSIONS, "airbridge": "0.0.9", "image": OLD_IMAGE}
    yield _worker(now, "eu-west-1-default-old", "eu-west-1", versions=old)
    yield _worker(
        now, "us-east-1-default-disk", "us-east-1", wanted="maintenance", comment="new disk, until 14:00 UTC"
    )


def _worker(
    now: datetime,
    name: str,
    region: str,
    pool: str = "default",
    *,
    heard: datetime | None = None,
    used: int = 0,
    pending: int = 0,
    versions: dict[str, Any] | None = None,
    wanted: str = "active",
    comment: str | None = None,
) -> dict[str, Any]:
    return {
        "id": name,
        "region": region,
        "pool": pool,
        "state": "active" if wanted == "active" else "draining",
        "wanted": wanted,
        "comment": comment,
        "versions": versions or VERSIONS,
        "slots_total": 8,
        "slots_used": used,
        "journal_pending": pending,
        "journal_bytes": pending * 1_900,
        "clock_skew_seconds": 0.012,
        "certificate_expires_at": now + timedelta(hours=20),
        "enrolled_at": now - timedelta(days=3),
        # In the future, so that nobody becomes stale for the length of a test.
        "last_heartbeat_at": heard or now + timedelta(seconds=ALIVE_SECONDS),
    }


def _history(now: datetime, count: int, workers: list[str], dice: random.Random) -> Iterator[dict[str, Any]]:
    """Items over the last hour, a tenth of them not over yet, and some in the region that is cut off."""
    for number in range(count):
        region, pool = ("ap-south-1", "default") if number % 50 == 0 else PLACES[number % len(PLACES)]
        over = number % 10 and region != "ap-south-1"
        placed = now - timedelta(seconds=dice.randrange(3_600 if over else 60))
        if not over and region == "us-east-1":
            placed = now + timedelta(hours=1)  # nothing has waited for long there, however slow the test is
        state = ItemState.SETTLED if number % 10 else dice.choice(list(ItemState)[:3])
        if region == "ap-south-1":
            state = ItemState.PLACED
        yield _item(placed, region, pool, state, dice.choice(workers), number, dice)


def _item(
    placed: datetime,
    region: str,
    pool: str,
    state: ItemState,
    worker: str,
    number: int,
    dice: random.Random,
) -> dict[str, Any]:
    sent = placed + timedelta(milliseconds=dice.randrange(20, 400))
    claimed = sent + timedelta(milliseconds=dice.randrange(30, 9_000))
    settled = claimed + timedelta(seconds=dice.randrange(1, 300) / 3)
    has_claim = state in {ItemState.CLAIMED, ItemState.SETTLED}
    outcome = dice.choices(("success", "failed", "lost", "cancelled"), (95, 3, 1, 1))[0]
    over = state is ItemState.SETTLED
    return {
        "id": str(UUID(int=dice.getrandbits(128), version=4)),
        "ti_id": str(UUID(int=dice.getrandbits(128), version=4)),
        "dag_id": ("daily_sales", "train_model", "sync_stock")[number % 3],
        "run_id": f"scheduled__{placed:%Y-%m-%dT%H}:00:00+00:00",
        "task_id": f"{('load', 'score', 'check')[number % 3]}_{number % 40:02d}",
        "map_index": -1,
        "try_number": 1,
        "queue": region,
        "region": region,
        "pool": pool,
        "team": ("finance", "research", "default")[number % 3],
        "slots": 1,
        "slot_seconds": (settled - claimed).total_seconds() if over else 0.0,
        "priority": 1,
        "state": state,
        "epoch": 1 if has_claim else 0,
        "workload": {"ti": {}, "bundle": {"name": "dags", "version": IMAGE}, "log_path": "x"},
        "placement": {"why": "queue", "fallback": [], "tried": []},
        "disconnect": {"lost_after": 600.0, "stop_after": None, "replace": True},
        "warm": True,
        "trace": {},
        "placed_at": placed,
        "not_before": placed,
        "sends": 0 if state is ItemState.PLACED else 1,
        "sent_at": None if state is ItemState.PLACED else sent,
        "worker_id": worker if has_claim else None,
        "claimed_at": claimed if has_claim else None,
        "lease_until": claimed + timedelta(minutes=1) if has_claim else None,
        "lost_at": claimed + timedelta(minutes=10) if has_claim else None,
        "settled_at": settled if over else None,
        "outcome": outcome if over else None,
        "detail": _DETAILS.get(outcome, outcome) if over else None,
    }


def _events(
    now: datetime, items: list[dict[str, Any]], workers: list[str], dice: random.Random
) -> Iterator[dict[str, Any]]:
    for item in items:
        for event, at in (("item.placed", item["placed_at"]), ("claim.granted", item["claimed_at"])):
            if at is not None:
                yield _event(
                    at,
                    event,
                    "executor",
                    region=item["region"],
                    worker_id=item["worker_id"],
                    item_id=item["id"],
                    ti_id=item["ti_id"],
                    detail={"pool": item["pool"], "why": "queue"},
                )
    for number, worker in enumerate(workers[:40]):
        at = now - timedelta(minutes=number)
        uri = f"spiffe://airbridge.test/region/us-east-1/pool/default/worker/{worker}"
        yield _event(
            at, "worker.enrolled", uri, worker_id=worker, detail={"token": f"{dice.getrandbits(64):x}"}
        )
    yield _event(
        now,
        "request.refused",
        "operator:ci",
        detail={"status": 403, "reason": "forbidden", "why": "no scope of this token allows workers:revoke"},
    )


def _event(at: datetime, event: str, actor: str, **more: Any) -> dict[str, Any]:
    names = ("region", "worker_id", "item_id", "ti_id", "epoch", "began_at", "received_at", "skew_seconds")
    blank: dict[str, Any] = {**dict.fromkeys(names), "detail": {}}
    return {"at": at, "event": event, "actor": actor, "source": "control", **blank, **more}


def _audit(session: Any, workers: list[str]) -> None:
    """A few entries of the audit trail, sealed, and one that is not yet."""
    for worker in workers[:6]:
        uri = f"spiffe://airbridge.test/region/us-east-1/pool/default/worker/{worker}"
        audit.record(session, "claim.granted", "granted", uri, worker_id=worker, rule="scope work:claim")
    audit.record(session, "token.created", "changed", "operator:ana", rule="scope tokens:create", kind="join")
    audit.record(
        session,
        "request.refused",
        "denied",
        "operator:ci",
        address="10.0.4.17:51234",
        why="no scope of this token allows workers:revoke",
    )
    session.flush()
    audit.seal(session, 1_000)
    audit.record(session, "policy.changed", "changed", "operator:ana", rule="scope policy:write")


# --- one task with a story ------------------------------------------------------------------------


def _dag(session: Any, dag_id: str, task_ids: tuple[str, ...]) -> dict[str, Any]:
    """Write a DAG of a chain of tasks with a running run, as the scheduler does; return its task instances."""
    from airflow.models import dag as models
    from airflow.models.dagbundle import DagBundleModel
    from airflow.models.serialized_dag import SerializedDagModel
    from airflow.providers.standard.operators.empty import EmptyOperator
    from airflow.sdk import DAG
    from airflow.serialization.serialized_objects import SerializedDAG
    from airflow.utils.state import DagRunState
    from airflow.utils.types import DagRunTriggeredByType, DagRunType

    now = datetime.now(UTC)
    with DAG(dag_id, schedule=None, start_date=datetime(2025, 1, 1, tzinfo=UTC)) as dag:
        made = [EmptyOperator(task_id=task_id, retries=2) for task_id in task_ids]
        for before, after in pairwise(made):
            before >> after
    serialised = SerializedDAG.deserialize_dag(SerializedDAG.serialize_dag(dag))
    session.merge(DagBundleModel(name="dags"))
    session.flush()
    models.DAG.bulk_write_to_db("dags", None, [serialised], session=session)
    session.flush()
    SerializedDagModel.write_dag(dag, bundle_name="dags", session=session)
    for other in ("train_model", "sync_stock"):
        session.add(
            models.DagModel(dag_id=other, bundle_name="dags", fileloc="x.py", relative_fileloc="x.py")
        )
    session.flush()
    run = serialised.create_dagrun(
        run_id="manual__2026-11-24T09:00:00+00:00",
        run_type=DagRunType.MANUAL,
        state=DagRunState.RUNNING,
        run_after=now,
        logical_date=now,
        data_interval=(now, now),
        triggered_by=DagRunTriggeredByType.TEST,
        session=session,
    )
    run.start_date = now
    return {ti.task_id: ti for ti in run.get_task_instances(session=session)}


def _tell(session: Any, tasks: dict[str, Any], now: datetime, worker: str) -> None:
    """One task was lost and succeeded at its second try, the next runs, the third waits in the region that is cut off."""
    dice = random.Random(3)
    second = timedelta(seconds=1)
    story = (
        ("extract", 1, now - 95 * second, ItemState.SETTLED, "us-east-1", "lost"),
        ("extract", 2, now - 40 * second, ItemState.SETTLED, "us-east-1", "success"),
        ("transform", 1, now - 22 * second, ItemState.CLAIMED, "us-east-1", None),
        ("load", 1, now - 15 * second, ItemState.SENT, "ap-south-1", None),
    )
    for task_id, number, placed, state, region, outcome in story:
        ti = tasks[task_id]
        row = _item(placed, region, "default", state, worker, 0, dice)
        row |= {
            "id": str(uuid4()),
            "ti_id": str(ti.id) if (task_id, number) != ("extract", 1) else str(uuid4()),
            "dag_id": ti.dag_id,
            "run_id": ti.run_id,
            "task_id": task_id,
            "try_number": number,
            "outcome": outcome,
            "settled_at": placed + 30 * second if outcome else None,
            "detail": "no heartbeat for 20 s" if outcome == "lost" else outcome,
        }
        session.execute(insert(WorkItemRow), [row])
        session.execute(insert(EventRow), list(_told(row, worker)))
        ti.try_number = number
        ti.queued_dttm = placed
        ti.state = {"success": "success", None: "running" if state is ItemState.CLAIMED else "queued"}.get(
            outcome
        )
        ti.start_date = row["claimed_at"]
        ti.end_date = row["settled_at"]
        ti.hostname = worker if row["worker_id"] else ""


def _told(row: dict[str, Any], worker: str) -> Iterator[dict[str, Any]]:
    names = {key: row[key] for key in ("region", "item_id", "ti_id", "worker_id") if key in row}
    names |= {"item_id": row["id"]}
    yield _event(
        row["placed_at"], "item.placed", "executor", **names, detail={"pool": "default", "why": "its data"}
    )
    if row["sent_at"]:
        yield _event(row["sent_at"], "item.sent", "outbox", **names)
    if not row["claimed_at"]:
        return
    yield _event(row["claimed_at"], "claim.granted", f"worker {worker}", **names)
    begun = row["claimed_at"]
    for event, took, detail in (
        ("message.claimed", 0.08, {}),
        ("bundle.fetched", 1.9, {"bundle": "dags"}),
        ("task.forked", 0.12, {"start": "warm"}),
        ("task.ended", 11.0, {"how": "exit code 0"}),
    ):
        ended = begun + timedelta(seconds=took)
        if row["settled_at"] is None and event == "task.ended":
            return
        yield {
            **_event(ended, event, worker, **names, detail=detail),
            "source": "edge",
            "began_at": begun,
            "received_at": ended,
            "skew_seconds": 0.012,
        }
        begun = ended
    outcome = row["outcome"]
    yield _event(
        row["settled_at"],
        "item.lost" if outcome == "lost" else "item.settled",
        "reconciler",
        **names,
        detail={"outcome": outcome, "reason": row["detail"]},
    )
