"""What ``[logging] logging_config_class = airbridge.control_plane.logging_config.LOGGING_CONFIG`` names.

Airflow takes `LOGGING_CONFIG` from here and, from the same module, `REMOTE_TASK_LOG`: in the api-server the reader
of task logs, in the scheduler's other executors and the triggerer where logs are uploaded to. All else is Airflow's default.
Both are made when asked for, so importing this module reads no configuration.
"""

from __future__ import annotations

import copy
from typing import Any

from airbridge.executor.exceptions import ConfigurationError

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
    config["handlers"]["task"]["class"] = "airbridge.control_plane.log_handler.RegionalTaskHandler"
    return config


def _remote_task_log() -> Any:
    from airbridge.control_plane.logs import RegionalLogs

    return RegionalLogs()
