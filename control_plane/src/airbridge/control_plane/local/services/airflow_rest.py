"""Client of Airflow's REST API for local mode."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Self

import httpx

from airbridge.control_plane.local.exceptions import PlatformUnreachable, RunFailed

_TIMEOUT_SECONDS = 30.0
_POLL_SECONDS = 0.5
FINISHED = frozenset({"success", "failed"})


class AirflowRest:
    """Client of an api-server with the simple auth manager, where every user is an admin."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=_TIMEOUT_SECONDS, trust_env=False)

    def __enter__(self) -> Self:
        token = self._json("GET", "/auth/token")["access_token"]
        self._client.headers["Authorization"] = f"Bearer {token}"
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def wait_for_dag(self, dag_id: str, timeout_seconds: float = 120.0) -> None:
        """Wait until the DAG is parsed. Raises `RunFailed` with the import errors after the timeout."""
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            if self._request("GET", f"/api/v2/dags/{dag_id}/details").status_code == 200:
                return
            time.sleep(_POLL_SECONDS)
        errors = self._json("GET", "/api/v2/importErrors")["import_errors"]
        errors_text = "; ".join(
            f"{error['filename']}: {error['stack_trace'].splitlines()[-1]}" for error in errors
        )
        raise RunFailed(f"DAG {dag_id} was not parsed within {timeout_seconds:.0f} s. {errors_text}")

    def unpause(self, dag_id: str) -> None:
        """Unpause the DAG."""
        self._json("PATCH", f"/api/v2/dags/{dag_id}", {"is_paused": False})

    def trigger(self, dag_id: str, conf: dict[str, Any] | None = None, run_id: str | None = None) -> str:
        """Start a run and return its id."""
        body: dict[str, Any] = {"logical_date": None, "conf": conf or {}}
        if run_id is not None:
            body["dag_run_id"] = run_id
        return str(self._json("POST", f"/api/v2/dags/{dag_id}/dagRuns", body)["dag_run_id"])

    def clear_running(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Clear the running task instances of a run, and return them."""
        return self._clear(dag_id, run_id, only_running=True)

    def clear_all(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Clear every task instance of a run, whatever its state is, and return them."""
        return self._clear(dag_id, run_id, only_running=False)

    def _clear(self, dag_id: str, run_id: str, *, only_running: bool) -> list[dict[str, Any]]:
        body = {"dry_run": False, "dag_run_id": run_id, "only_running": only_running, "only_failed": False}
        path = f"/api/v2/dags/{dag_id}/clearTaskInstances"
        return list(self._json("POST", path, body)["task_instances"])

    def run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        """Return the run."""
        return self._json("GET", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}")

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Return every task instance of the run."""
        found: list[dict[str, Any]] = []
        while True:
            path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances?limit=100&offset={len(found)}"
            page = self._json("GET", path)
            found += page["task_instances"]
            if len(found) >= page["total_entries"] or not page["task_instances"]:
                return found

    def wait(
        self,
        dag_id: str,
        run_id: str,
        timeout_seconds: float = 300.0,
        seen: Callable[[list[dict[str, Any]]], None] = lambda _instances: None,
    ) -> str:
        """Wait for the run's end and return its state. Raises `RunFailed` after the timeout."""
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            state = str(self.run(dag_id, run_id)["state"])
            seen(self.task_instances(dag_id, run_id))
            if state in FINISHED:
                return state
            time.sleep(_POLL_SECONDS)
        states = {ti["task_id"]: ti["state"] for ti in self.task_instances(dag_id, run_id)}
        raise RunFailed(f"run {run_id} of {dag_id} has not ended after {timeout_seconds:.0f} s: {states}")

    def xcom(
        self, dag_id: str, run_id: str, task_id: str, key: str = "return_value", map_index: int = -1
    ) -> Any:
        """Return an XCom's value. Raises `KeyError` if there is none."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/{key}"
        answer = self._request("GET", f"{path}?map_index={map_index}&deserialize=false&stringify=false")
        if answer.status_code == 404:
            raise KeyError(f"{dag_id} {run_id} {task_id} has no XCom {key!r}")
        return self._checked(answer)["value"]

    def log(self, dag_id: str, run_id: str, task_id: str, attempt: int = 1, map_index: int = -1) -> list[str]:
        """Return a task's log as lines of text."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{attempt}"
        content = self._json("GET", f"{path}?full_content=true&map_index={map_index}")["content"]
        return [_line(entry) for entry in content]

    def _json(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        return self._checked(self._request(method, path, body))

    def _request(self, method: str, path: str, body: Any = None) -> httpx.Response:
        try:
            return self._client.request(method, path, json=body, headers={"Accept": "application/json"})
        except httpx.HTTPError as error:
            raise PlatformUnreachable(f"{method} {self._client.base_url}{path}: {error}") from error

    @staticmethod
    def _checked(answer: httpx.Response) -> dict[str, Any]:
        if answer.is_error:
            request = answer.request
            raise PlatformUnreachable(
                f"{request.method} {request.url}: {answer.status_code} {answer.text[:500]}"
            )
        body: dict[str, Any] = answer.json()
        return body


def _line(entry: Any) -> str:
    """Return a structured log entry as text: one line, and an exception's frames and message below it."""
    if not isinstance(entry, dict):
        return str(entry)
    words = [str(entry[name]) for name in ("timestamp", "level") if entry.get(name)]
    line = " ".join([*words, str(entry.get("event", "")), *entry.get("sources", ())]).strip()
    return "\n".join(
        [line, *(part for error in entry.get("error_detail") or () for part in _traceback(error))]
    )


def _traceback(error: dict[str, Any]) -> list[str]:
    frames = [
        f"    {frame['name']} ({frame['filename']}:{frame['lineno']})" for frame in error.get("frames") or ()
    ]
    return [*frames, f"    {error.get('exc_type')}: {error.get('exc_value')}"]
