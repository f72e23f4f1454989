"""What the harness asks of any Airflow 3: trigger a run, wait for it, and its task instances' times."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx
import psycopg2

_FINISHED = {"success", "failed"}


@dataclass(frozen=True)
class TaskTimes:
    """When a task instance was queued, started, ended, and when its final state was committed."""

    queued: datetime
    started: datetime
    ended: datetime
    committed: datetime
    state: str


class AirflowApi:
    """The REST API of one api-server (simple auth manager, everybody admin) and its database, read only."""

    def __init__(self, base_url: str, database_url: str) -> None:
        self._client = httpx.Client(base_url=base_url, timeout=30)
        self._database_url = database_url.replace("+psycopg2", "")

    def wait_for_dags(self, count: int, timeout: float = 120) -> None:
        """Wait until the dag-processor has stored `count` DAGs, and unpause them all. Raises `TimeoutError`."""
        deadline = time.monotonic() + timeout
        while len(found := self._dag_ids()) < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(found)} of {count} DAGs were parsed within {timeout:.0f} s")
            time.sleep(0.5)
        for dag_id in found:
            self._call("PATCH", f"/api/v2/dags/{dag_id}", {"is_paused": False})

    def _dag_ids(self) -> list[str]:
        try:
            return [dag["dag_id"] for dag in self._call("GET", "/api/v2/dags?limit=100")["dags"]]
        except (httpx.HTTPError, KeyError):
            return []

    def run(self, dag_id: str, run_id: str, timeout: float) -> str:
        """Trigger a run, wait for its end and return its state. Raises `TimeoutError`."""
        self.trigger(dag_id, run_id)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            rows = self.query("SELECT state FROM dag_run WHERE dag_id = %s AND run_id = %s", dag_id, run_id)
            if rows and rows[0][0] in _FINISHED:
                return str(rows[0][0])
            time.sleep(0.25)
        raise TimeoutError(f"{dag_id} {run_id} did not end within {timeout:.0f} s")

    def trigger(self, dag_id: str, run_id: str) -> None:
        """Trigger a run."""
        self._call("POST", f"/api/v2/dags/{dag_id}/dagRuns", {"dag_run_id": run_id, "logical_date": None})

    def times(self, dag_id: str, run_id: str) -> list[TaskTimes]:
        """Return the times of a run's task instances that have run."""
        rows = self.query(
            "SELECT queued_dttm, start_date, end_date, updated_at, state FROM task_instance"
            " WHERE dag_id = %s AND run_id = %s AND start_date IS NOT NULL AND end_date IS NOT NULL",
            dag_id,
            run_id,
        )
        return [TaskTimes(*row) for row in rows]

    def running(self, dag_id: str, run_id: str) -> int:
        """Return how many task instances of a run are running."""
        query = "SELECT count(*) FROM task_instance WHERE dag_id = %s AND run_id = %s AND state = 'running'"
        return int(self.query(query, dag_id, run_id)[0][0])

    def query(self, statement: str, *parameters: object) -> list[Any]:
        """Run one query on the metadata database."""
        connection = psycopg2.connect(self._database_url)
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(statement, parameters)
                return list(cursor.fetchall())
        finally:
            connection.close()

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        if "Authorization" not in self._client.headers:
            token = self._client.get("/auth/token").raise_for_status().json()["access_token"]
            self._client.headers["Authorization"] = f"Bearer {token}"
        return self._client.request(method, path, json=body).raise_for_status().json()
