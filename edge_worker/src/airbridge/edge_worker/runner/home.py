"""The AIRFLOW_HOME of a worker's tasks: a configuration without a database, a key or a token."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

WITHOUT_ORM: Final = {"PYTHON_OPERATORS_VIRTUAL_ENV_MODE": "1"}
"""What keeps Airflow from setting up its ORM as it is imported; taken away before any task can see it."""

_CONFIGURATION: Final = """\
# Written by the AirBridge worker at every start; changes here are lost.
# Tasks are configured by AIRFLOW__* variables in the worker's task_env.

[core]
load_examples = False
fernet_key =
hostname_callable = airbridge.edge_worker._airflow.hostname
dags_folder = {home}/no-dags

[database]
sql_alchemy_conn = airflow-db-not-allowed:///

[api_auth]
jwt_secret =

[logging]
base_log_folder = {home}/logs

[dag_processor]
dag_bundle_config_list = []
dag_bundle_storage_path = {home}/bundles
"""


def prepare(home: Path, *, shared: bool = False) -> None:
    """Make the directory and write its ``airflow.cfg``: without one, Airflow would write its own, keys included.

    `shared` lets other users read it.
    """
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o755 if shared else 0o700)
    temporary = home / ".airflow.cfg"
    temporary.write_text(_CONFIGURATION.format(home=str(home).replace("%", "%%")))
    temporary.chmod(0o644 if shared else 0o600)
    os.replace(temporary, home / "airflow.cfg")  # noqa: PTH105 - atomic, and named for it
