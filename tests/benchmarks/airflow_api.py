"""Client of any Airflow 3: triggers a run, waits for it, and reads its task instances' times."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx
import psycopg2

_FINISHED = {"success", "failed"}

# SECURITY DEFINER: the platform's services have roles of their own, which may not write to a table that none of them knows.
_WATCH = """
CREATE TABLE IF NOT EXISTS bench_state (ti_id uuid, state text, at timestamptz);
CREATE OR REPLACE FUNCTION bench_note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN INSERT INTO bench_state VALUES (NEW.id, NEW.state, clock_timestamp()); RETURN NULL; END $$;
CREATE OR REPLACE TRIGGER bench_note AFTER UPDATE OF state ON task_instance
  FOR EACH ROW WHEN (NEW.state IS DISTINCT FROM OLD.state) EXECUTE FUNCTION bench_note();
"""

_TIMES = """
SELECT min(at) FILTER (WHERE s.state = 'queued'), min(at) FILTER (WHERE s.state = 'running'),
       max(at) FILTER (WHERE s.state IN ('success', 'failed'))
FROM task_instance t JOIN bench_state s ON s.ti_id = t.id
WHERE t.dag_id = %s AND t.run_id = %s GROUP BY t.id
"""


@dataclass(frozen=True)
class TaskTimes:
    """Times of a task instance's states, by the database's clock."""

    queued: datetime
    started: datetime
    committed: datetime


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
        return self.wait(dag_id, run_id, timeout)

    def wait(self, dag_id: str, run_id: str, timeout: float) -> str:
        """Wait for a run's end and return its state. Raises `TimeoutError`."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            rows = self.query("SELECT state FROM dag_run WHERE dag_id = %s AND run_id = %s", dag_id, run_id)
            if rows and rows[0][0] in _FINISHED:
                return str(rows[0][0])
            time.sleep(0.5)
        raise TimeoutError(f"{dag_id} {run_id} did not end within {timeout:.0f} s")

    def unfinished_runs(self, dag_id: str) -> int:
        """Return how many runs of a DAG have not ended."""
        query = "SELECT count(*) FROM dag_run WHERE dag_id = %s AND state IN ('queued', 'running')"
        return int(self.query(query, dag_id)[0][0])

    def messages_on_queues(self) -> int:
        """Return how many work items wait on regional queues; 0 where there is no ledger."""
        if not self.query("SELECT to_regclass('airbridge_work_item')")[0][0]:
            return 0
        return int(self.query("SELECT count(*) FROM airbridge_work_item WHERE state = 'sent'")[0][0])

    def trigger(self, dag_id: str, run_id: str) -> None:
        """Trigger a run."""
        self._call("POST", f"/api/v2/dags/{dag_id}/dagRuns", {"dag_run_id": run_id, "logical_date": None})

    def watch_states(self) -> None:
        """Have the database note each change of a task instance's state: the same measure for every executor.

        Airflow's own columns will not do: `end_date` is the worker's word, and `updated_at` moves when the scheduler
        looks at a task that has ended.
        """
        self.execute(_WATCH)

    def times(self, dag_id: str, run_id: str) -> list[TaskTimes]:
        """Return the times of a run's task instances that have ended."""
        rows = self.query(_TIMES, dag_id, run_id)
        return [TaskTimes(*row) for row in rows if None not in row]

    def states(self, dag_id: str, run_id: str) -> dict[str, int]:
        """Return how many task instances of a run are in each state."""
        query = "SELECT coalesce(state, 'none'), count(*) FROM task_instance WHERE dag_id = %s AND run_id = %s GROUP BY 1"
        return {state: int(count) for state, count in self.query(query, dag_id, run_id)}

    def query(self, statement: str, *parameters: object) -> list[Any]:
        """Run one query on the metadata database."""
        connection = psycopg2.connect(self._database_url)
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(statement, parameters)
                return list(cursor.fetchall())
        finally:
            connection.close()

    def execute(self, statement: str) -> None:
        """Run statements on the metadata database, and commit."""
        connection = psycopg2.connect(self._database_url)
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(statement)
        finally:
            connection.close()

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        if "Authorization" not in self._client.headers:
            token = self._client.get("/auth/token").raise_for_status().json()["access_token"]
            self._client.headers["Authorization"] = f"Bearer {token}"
        return self._client.request(method, path, json=body).raise_for_status().json()
