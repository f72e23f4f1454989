"""Every use of Airflow 3.0.4's internals on the edge: `tests/contract/test_task_sdk_internals.py` holds them to account.

Only the runner's processes import this package, after `runner.zygote_client` has prepared their environment: the agent
never loads Airflow. Importing it loads the Task SDK, which is slow, and which is the point: it happens once.
"""

from __future__ import annotations

from airbridge.edge_worker._airflow.loading import LOG_CHANNEL, hostname, preload
from airbridge.edge_worker._airflow.parsing import (
    ParsedFile,
    SnapshotBundle,
    log_output,
    parse,
    parsing_ahead,
)
from airbridge.edge_worker._airflow.supervisor import (
    FailureNote,
    SupervisedTask,
    report_failed,
    secrets_reset,
    start_task,
    task_log,
)
from airbridge.edge_worker._airflow.task_process import run_as_task
from airbridge.edge_worker._airflow.warm_up_task import run_in_process, without_listeners

__all__ = [
    "LOG_CHANNEL",
    "FailureNote",
    "ParsedFile",
    "SnapshotBundle",
    "SupervisedTask",
    "hostname",
    "log_output",
    "parse",
    "parsing_ahead",
    "preload",
    "report_failed",
    "run_as_task",
    "run_in_process",
    "secrets_reset",
    "start_task",
    "task_log",
    "without_listeners",
]
