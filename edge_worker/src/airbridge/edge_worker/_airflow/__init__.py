"""Every use of Airflow 3.0.4's internals on the edge: `tests/contract/test_task_sdk_internals.py` holds them to account.

Only the runner's processes import this package, after `runner.nursery` has prepared their environment: the agent
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
from airbridge.edge_worker._airflow.pretending import pretend_to_run, unheard
from airbridge.edge_worker._airflow.running import be_task
from airbridge.edge_worker._airflow.supervising import (
    SupervisedTask,
    forgetting,
    report_failed,
    start_task,
    task_log,
)

__all__ = [
    "LOG_CHANNEL",
    "ParsedFile",
    "SnapshotBundle",
    "SupervisedTask",
    "be_task",
    "forgetting",
    "hostname",
    "log_output",
    "parse",
    "parsing_ahead",
    "preload",
    "pretend_to_run",
    "report_failed",
    "start_task",
    "task_log",
    "unheard",
]
