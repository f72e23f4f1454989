"""Airflow's task log handler without HTTP requests to edge workers.

Airflow 3.0.4 requests ``http://<host name>:8793`` for the log of a running or deferred task, and of a finished one that
has none in remote storage. Edge workers serve no logs and their names do not resolve here: every view of a log would
wait for a time-out. Logs of triggers and other executors are requested as usual.

This depends on `FileTaskHandler`'s internals, pinned to 3.0.4 by tests/contract/test_airflow_logging.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from airflow.utils.log.file_task_handler import FileTaskHandler

from airbridge.control_plane import task_locations


class RegionalTaskHandler(FileTaskHandler):  # type: ignore[misc]  # Airflow publishes no types
    """`FileTaskHandler` that leaves the logs of edge workers to `airbridge.control_plane.task_logs.reader.RegionalLogs`."""

    def _read_from_logs_server(self, ti: Any, worker_log_rel_path: str) -> Any:
        if getattr(ti, "triggerer_job", None) is None and task_locations.of_try(ti).edge:
            return [], []
        return super()._read_from_logs_server(ti, worker_log_rel_path)

    def _get_executor_get_task_log(self, ti: Any) -> Callable[[Any, int], tuple[list[str], list[str]]]:
        if task_locations.of_try(ti).edge:
            return lambda _ti, _try_number: ([], [])
        found: Callable[[Any, int], tuple[list[str], list[str]]] = super()._get_executor_get_task_log(ti)
        return found
