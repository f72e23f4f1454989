"""The AIRFLOW_HOME of a worker's tasks: a configuration without a database, a key or a token."""

from __future__ import annotations

import configparser
import io
from pathlib import Path
from typing import Final

from airbridge.core.task_options import Options
from airbridge.edge_worker.runner.sandbox import task_files
from airbridge.edge_worker.runner.sandbox.task_user import TaskUser

# Variable that keeps Airflow from setting up its ORM at import; removed before any task runs.
WITHOUT_ORM: Final = {"PYTHON_OPERATORS_VIRTUAL_ENV_MODE": "1"}

_NOTE: Final = """\
# Written by the AirBridge worker; changes here are lost. The operator's options come from the gateway, and AIRFLOW__*
# variables in the worker's task_env override them.

"""

# Masked in task logs as later versions of Airflow do (CVE-2025-68675, CVE-2026-25219).
_SENSITIVE_NAMES: Final = "access_key,connection_string,proxies,proxy"


def prepare(home: Path, options: Options, user: TaskUser | None = None) -> None:
    """Make the directory and write its ``airflow.cfg``: without one, Airflow would write its own, keys included.

    `options` are those that the operator has set for tasks; one of them may be a password. `user` runs the tasks, None for the
    agent's own.
    """
    task_files.make_directory(home, user)
    task_files.replace(home / "airflow.cfg", _text(home, options), user)


def _text(home: Path, options: Options) -> str:
    parser = configparser.RawConfigParser()
    for section, values in (*options.items(), *_own(home, options).items()):
        if not parser.has_section(section):
            parser.add_section(section)
        for name, value in values.items():
            # Airflow interpolates `%` in values that it reads from a file.
            parser.set(section, name, value.replace("%", "%%"))
    text = io.StringIO()
    parser.write(text)
    return _NOTE + text.getvalue()


def _own(home: Path, options: Options) -> dict[str, dict[str, str]]:
    """Return what holds on every worker, whatever the operator has set."""
    names = options.get("core", {}).get("sensitive_var_conn_names", "")
    return {
        "core": {
            "load_examples": "False",
            "fernet_key": "",
            "hostname_callable": "airbridge.edge_worker._airflow.hostname",
            # In a task, the root of its bundle: see `_airflow.parsing`.
            "dags_folder": f"{home}/no-dags",
            "sensitive_var_conn_names": ",".join(filter(None, (_SENSITIVE_NAMES, names))),
        },
        "database": {"sql_alchemy_conn": "airflow-db-not-allowed:///"},
        "api_auth": {"jwt_secret": ""},
        "logging": {"base_log_folder": f"{home}/logs"},
        "dag_processor": {"dag_bundle_config_list": "[]", "dag_bundle_storage_path": f"{home}/bundles"},
    }
