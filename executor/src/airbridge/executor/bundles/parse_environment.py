"""Environment of processes that parse DAG files: no secret of the process that starts them is in it.

What is passed on is listed, not what is withheld: a few variables of the system, those that `[airbridge]
parse_environment` names, and options of Airflow that decide how a DAG file is read. Plugins and cluster policies
(``airflow_local_settings``) are the operator's code; they are found by their paths.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

from airbridge.executor import _airflow

_INHERITED: Final = (
    *(
        "PATH",
        "LANG",
        "LC_ALL",
        "LC_CTYPE",
        "TZ",
        "PYTHONPATH",
        "LD_LIBRARY_PATH",
        "VIRTUAL_ENV",
        "PYTHONUTF8",
    ),
    *("AWS_REGION", "AWS_DEFAULT_REGION"),
)
_SECTIONS: Final = ("core", "dag_processor", "operators", "scheduler")
_WITHHELD: Final = frozenset(
    {
        ("core", "fernet_key"),
        ("core", "auth_manager"),
        ("core", "simple_auth_manager_users"),
        ("core", "simple_auth_manager_passwords_file"),
        ("core", "execution_api_server_url"),
        ("dag_processor", "dag_bundle_config_list"),
        ("dag_processor", "dag_bundle_storage_path"),
    }
)
_FIXED: Final = {
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "sqlite://",
    "AIRFLOW__DATABASE__LOAD_DEFAULT_CONNECTIONS": "False",
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__CORE__DAGBAG_IMPORT_ERROR_TRACEBACKS": "True",
    "AIRFLOW__CORE__DAGBAG_IMPORT_ERROR_TRACEBACK_DEPTH": "50",
    "AIRFLOW__LOGGING__LOGGING_CONFIG_CLASS": "",
    "AIRFLOW__LOGGING__REMOTE_LOGGING": "False",
    "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": "[]",
    "PYTHONDONTWRITEBYTECODE": "1",
}


def of(parent: Mapping[str, str], names: Collection[str] = ()) -> dict[str, str]:
    """Return the environment of a parsing process whose parent has the environment `parent`; without AIRFLOW_HOME.

    `names` are variables to be passed on besides.
    """
    inherited = {name: parent[name] for name in (*_INHERITED, *names) if name in parent}
    options = _airflow.options_set(_SECTIONS, _WITHHELD)
    options["AIRFLOW__CORE__PLUGINS_FOLDER"] = plugins = (
        _airflow.airflow_option("core", "plugins_folder") or ""
    )
    local_settings = str(Path(_airflow.airflow_home(), "config"))
    path = os.pathsep.join(
        part for part in (inherited.get("PYTHONPATH", ""), local_settings, plugins) if part
    )
    return {**inherited, **options, **_FIXED, "PYTHONPATH": path}
