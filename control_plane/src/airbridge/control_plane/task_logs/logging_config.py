"""Logging configuration for ``[logging] logging_config_class`` in Airflow's configuration.

Airflow loads `LOGGING_CONFIG` and, from the same module, `REMOTE_TASK_LOG`: the reader of task logs in the api-server,
and the uploader in the triggerer and in the scheduler's other executors. The rest is Airflow's default. Both are created
on first access, so that importing this module reads no configuration.
"""

from __future__ import annotations

import copy
from typing import Any

from airbridge.core.exceptions import ConfigurationError

DEFAULT_REMOTE_CONN_ID: str | None = None

_made: dict[str, Any] = {}


def __getattr__(name: str) -> Any:
    makers = {"LOGGING_CONFIG": _logging_config, "REMOTE_TASK_LOG": _remote_task_log}
    if name not in makers:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name not in _made:
        _made[name] = makers[name]()
    return _made[name]


def _logging_config() -> dict[str, Any]:
    from airflow.configuration import conf

    if conf.getboolean("logging", "remote_logging"):
        raise ConfigurationError(
            "[logging] remote_logging is True; it must be False: that is Airflow's own remote logging, "
            "and logging_config_class already has AirBridge read the logs of all regions"
        )
    from airflow.config_templates.airflow_local_settings import DEFAULT_LOGGING_CONFIG

    config: dict[str, Any] = copy.deepcopy(DEFAULT_LOGGING_CONFIG)
    config["handlers"]["task"]["class"] = "airbridge.control_plane.task_logs.handler.RegionalTaskHandler"
    return config


def _remote_task_log() -> Any:
    from airbridge.control_plane.task_logs.reader import RegionalLogs

    return RegionalLogs()
