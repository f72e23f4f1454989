"""Gathers what each side did: the code's own file, the ledger, Airflow's tables, the journals, the buckets."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from cryptography.fernet import Fernet
from tests.chaos.fleet import Worker
from tests.chaos.history import Applied, Death, Effect, Fire, Item, Report, Task, TaskKey
from tests.support.platform import LocalPlatform

from airbridge.control_plane.local.services.aws import EmulatedRegion
from airbridge.core.residency.xcoms import ObjectName

_EPOCH = "extract(epoch from {})::float8"
_ITEM_TIMES = ", ".join(
    _EPOCH.format(name) for name in ("placed_at", "claimed_at", "renewed_at", "settled_at")
)
_OF_RUNS = "dag_id = ANY(%s) AND run_id = ANY(%s)"


class Recorder:
    """Reads one platform; every query is limited to the runs of one history."""

    def __init__(self, platform: LocalPlatform, region: EmulatedRegion) -> None:
        self._platform = platform
        self._region = region

    def runs(self, prefixes: Sequence[str]) -> dict[tuple[str, str], str]:
        """Return the states of runs by prefix of their id: the triggered runs, and those that they triggered."""
        rows = self._platform.query(
            "SELECT dag_id, run_id, state FROM dag_run WHERE run_id LIKE ANY(%s)",
            [f"{each}%" for each in prefixes],
        )
        return {(dag_id, run_id): state for dag_id, run_id, state in rows}

    def open_work(self, runs: Iterable[tuple[str, str]]) -> int:
        """Return the number of the runs' work items that are not settled."""
        rows = self._platform.query(
            f"SELECT count(*) FROM airbridge_work_item WHERE {_OF_RUNS} AND state <> 'settled'", *_ids(runs)
        )
        return int(rows[0][0])

    def items(self, runs: Iterable[tuple[str, str]], kind: str = "task") -> tuple[Item, ...]:
        """Return the ledger's rows of tasks, or those of triggers."""
        rows = self._platform.query(
            "SELECT id::text, dag_id, run_id, task_id, map_index, ti_id::text, try_number, state, outcome,"
            f" coalesce(detail, ''), epoch, worker_id, (disconnect->>'lost_after')::float8, {_ITEM_TIMES}"
            f" FROM airbridge_work_item WHERE {_OF_RUNS} AND kind = %s ORDER BY placed_at",
            *_ids(runs),
            kind,
        )
        return tuple(Item(row[0], tuple(row[1:5]), *row[5:]) for row in rows)

    def settlements(self, items: Iterable[Item]) -> dict[str, int]:
        """Count the settlements of each work item in the ledger's events."""
        rows = self._platform.query(
            "SELECT item_id::text, count(*) FROM airbridge_event"
            " WHERE event = 'item.settled' AND item_id::text = ANY(%s) GROUP BY item_id",
            [item.id for item in items],
        )
        return {item_id: int(times) for item_id, times in rows}

    def applied(self, items: Iterable[Item]) -> tuple[Applied, ...]:
        """Return the events of triggers that were applied."""
        rows = self._platform.query(
            f"SELECT item_id::text, actor, detail->>'fired_at', {_EPOCH.format('at')} FROM airbridge_event"
            " WHERE event = 'trigger.fired' AND item_id::text = ANY(%s) ORDER BY id",
            [item.id for item in items],
        )
        return tuple(
            Applied(item, actor.rpartition("/")[2], datetime.fromisoformat(fired_at).timestamp(), at)
            for item, actor, fired_at, at in rows
        )

    def cancelled(self, items: Iterable[Item]) -> dict[str, float]:
        """Return the times at which work items were cancelled."""
        rows = self._platform.query(
            f"SELECT item_id::text, min({_EPOCH.format('at')}) FROM airbridge_event"
            " WHERE event = 'item.cancelled' AND item_id::text = ANY(%s) GROUP BY item_id",
            [item.id for item in items],
        )
        return dict(rows)

    def lost(self, items: Iterable[Item]) -> frozenset[str]:
        """Return the work items of triggers that were taken from a silent worker."""
        rows = self._platform.query(
            "SELECT DISTINCT item_id::text FROM airbridge_event"
            " WHERE event = 'trigger.lost' AND item_id::text = ANY(%s)",
            [item.id for item in items],
        )
        return frozenset(item for (item,) in rows)

    def objects(self, runs: Iterable[tuple[str, str]]) -> dict[str, str]:
        """Return the digests of the runs' stored XComs, by key."""
        s3 = self._platform.aws_client("s3", self._region.name)
        found: dict[str, str] = {}
        for dag_id, run_id in runs:
            prefix = ObjectName.of(dag_id, run_id, UUID(int=0), "0" * 64).key[
                : -len(f"{UUID(int=0)}/{'0' * 64}")
            ]
            listed = s3.list_objects_v2(Bucket=self._region.log_bucket, Prefix=prefix)
            for entry in listed.get("Contents", ()):
                body = s3.get_object(Bucket=self._region.log_bucket, Key=entry["Key"])["Body"].read()
                found[entry["Key"]] = hashlib.sha256(body).hexdigest()
        return found

    def tasks(self, runs: Iterable[tuple[str, str]]) -> tuple[Task, ...]:
        """Return Airflow's rows of the task instances."""
        rows = self._platform.query(
            f"SELECT dag_id, run_id, task_id, map_index, id::text, state, try_number FROM task_instance WHERE {_OF_RUNS}",
            *_ids(runs),
        )
        return tuple(Task(tuple(row[:4]), *row[4:]) for row in rows)

    def xcoms(self, runs: Iterable[tuple[str, str]]) -> dict[tuple[TaskKey, str], Any]:
        """Return every XCom."""
        rows = self._platform.query(
            f"SELECT dag_id, run_id, task_id, map_index, key, value FROM xcom WHERE {_OF_RUNS}", *_ids(runs)
        )
        return {(tuple(row[:4]), row[4]): row[5] for row in rows}

    def variables(self, prefix: str) -> dict[str, str]:
        """Return the variables with this prefix."""
        key = json.loads(self._platform.directory.keys_file.read_text())["fernet_key"]
        rows = self._platform.query("SELECT key, val FROM variable WHERE key LIKE %s", f"{prefix}%")
        return {name: Fernet(key).decrypt(value.encode()).decode() for name, value in rows}

    def logs(self, items: Iterable[Item]) -> dict[str, str]:
        """Return the shipped full logs by work item."""
        s3 = self._platform.aws_client("s3", self._region.name)
        found: dict[str, str] = {}
        for dag_id, run_id in {(item.key[0], item.key[1]) for item in items}:
            prefix = f"logs/dag_id={dag_id}/run_id={run_id}/"
            pages = s3.get_paginator("list_objects_v2").paginate(
                Bucket=self._region.log_bucket, Prefix=prefix
            )
            for entry in (entry for page in pages for entry in page.get("Contents", ())):
                segment, _, name = entry["Key"].rpartition("/")
                if name == "full.log":
                    # A segment's name ends with the id of its work item, a UUID.
                    item_id = segment[-36:]
                    body = s3.get_object(Bucket=self._region.log_bucket, Key=entry["Key"])["Body"].read()
                    found[item_id] = found.get(item_id, "") + body.decode(errors="replace")
        return found


def effects(path: Path) -> tuple[Effect, ...]:
    """Read the effects that task code wrote."""
    if not path.exists():
        return ()
    found = []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        key = (row["dag_id"], row["run_id"], row["task_id"], row["map_index"])
        found.append(Effect(key, row["ti_id"], row["try_number"], row["what"], row["outcome"], row["at"]))
    return tuple(found)


def fires(path: Path) -> tuple[Fire, ...]:
    """Read what the triggers of a history wrote beside its tasks' effects."""
    path = path.with_name(f"{path.name}.fires")
    if not path.exists():
        return ()
    rows = map(json.loads, path.read_text().splitlines())
    return tuple(Fire(row["ti_id"], row["at"]) for row in rows)


def reports(workers: Iterable[Worker]) -> tuple[Report, ...]:
    """Return the responses that the workers logged for final states."""
    return tuple(
        Report(worker.name, str(event["item_id"]), int(str(event["status"])))
        for worker in workers
        for event in worker.events()
        if event.get("event") == "task.reported"
    )


def death(worker: Worker, at: float) -> Death:
    """A worker that was killed a moment ago, and the results in its journal."""
    rows = _read(worker.journal, "SELECT item_id FROM records WHERE final = 1")
    held = _read(worker.journal, "SELECT item_id FROM grants")
    # What a worker logs as fired is in its journal, according to it.
    fired = {str(event["item_id"]) for event in worker.events() if event.get("event") == "trigger.fired"}
    return Death(
        worker.name, at, frozenset(item for (item,) in rows) | fired, frozenset(item for (item,) in held)
    )


def left_in_journal(worker: Worker) -> int:
    """Return the number of records that a worker has yet to report."""
    return int(next(iter(_read(worker.journal, "SELECT count(*) FROM records")), (0,))[0])


def logs_left(worker: Worker) -> int:
    """Return the number of logs that a worker has yet to ship."""
    return int(next(iter(_read(worker.journal, "SELECT count(*) FROM logs")), (0,))[0])


def _read(journal: Path, statement: str) -> list[tuple[Any, ...]]:
    """Query a copy: opening the file itself would checkpoint its write-ahead log, which the worker must do."""
    with tempfile.TemporaryDirectory() as folder:
        for suffix in ("", "-wal"):
            if Path(f"{journal}{suffix}").exists():
                shutil.copyfile(f"{journal}{suffix}", Path(folder) / f"copy{suffix}")
        connection = sqlite3.connect(Path(folder) / "copy")
        try:
            return connection.execute(statement).fetchall()
        except sqlite3.DatabaseError:
            return []  # there is no journal yet, or it was copied while it changed
        finally:
            connection.close()


def _ids(runs: Iterable[tuple[str, str]]) -> tuple[list[str], list[str]]:
    pairs = [*runs]
    return sorted({dag_id for dag_id, _ in pairs}), sorted({run_id for _, run_id in pairs})
