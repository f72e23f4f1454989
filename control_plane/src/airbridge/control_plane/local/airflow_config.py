"""The control plane's airflow.cfg in local mode."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from airbridge.control_plane.airflow_settings import (
    RECOMMENDED,
    Bundle,
    Setting,
    as_config,
    dag_bundles,
    merged,
)
from airbridge.control_plane.local import ports
from airbridge.control_plane.local.keys import Keys
from airbridge.control_plane.local.layout import StateDir
from airbridge.executor.exceptions import ConfigurationError

TRUST_DOMAIN = "airbridge.local"
FOLDER_BUNDLE = "dags"
PUSH_BUNDLE = "pushed"
_REFRESH_SECONDS = 5


def settings(
    directory: StateDir, keys: Keys, database_url: str, dags: Path, overrides: Mapping[str, str]
) -> tuple[Setting, ...]:
    """Return every setting of the local control plane: recommended, then local, then the user's own."""
    return merged(RECOMMENDED, _local(directory, keys, database_url, dags), parse_overrides(overrides))


def write(directory: StateDir, settings: Iterable[Setting]) -> None:
    """Write airflow.cfg, readable by its owner alone: it holds the keys."""
    path = directory.airflow_home / "airflow.cfg"
    path.touch(mode=0o600)
    path.write_text(as_config(settings))


def environment(directory: StateDir) -> dict[str, str]:
    """Return what a control plane process needs in its environment: where its configuration is, and nothing else."""
    return {"AIRFLOW_HOME": str(directory.airflow_home), "PYTHONUNBUFFERED": "1"}


def parse_overrides(overrides: Mapping[str, str]) -> tuple[Setting, ...]:
    """Read ``{"core.parallelism": "16"}``. Raises `ConfigurationError` for a name without a section."""
    found = []
    for name, value in overrides.items():
        section, dot, option = name.partition(".")
        if not dot:
            raise ConfigurationError(
                f"Airflow setting {name!r} has no section; write it as section.option=value"
            )
        found.append(Setting(section, option, value, "given on the command line"))
    return tuple(found)


def _local(directory: StateDir, keys: Keys, database_url: str, dags: Path) -> tuple[Setting, ...]:
    url = f"http://{ports.LOOPBACK}:{keys.ports['api-server']}"
    rows = [
        (
            "core",
            "auth_manager",
            "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager",
        ),
        ("core", "simple_auth_manager_all_admins", "True"),
        ("core", "dags_folder", str(dags)),
        ("core", "fernet_key", keys.fernet_key),
        ("core", "execution_api_server_url", f"{url}/execution/"),
        ("core", "hostname_callable", "socket.gethostname"),
        ("database", "sql_alchemy_conn", database_url),
        ("api", "base_url", url),
        ("api", "secret_key", keys.api_secret_key),
        ("api_auth", "jwt_secret", keys.jwt_secret),
        ("logging", "base_log_folder", str(directory.logs / "airflow")),
        ("dag_processor", "dag_bundle_storage_path", str(directory.airflow_home / "bundles")),
        ("dag_processor", "refresh_interval", str(_REFRESH_SECONDS)),
        ("dag_processor", "bundle_refresh_check_interval", "2"),
        ("dag_processor", "min_file_process_interval", "10"),
        ("airbridge", "regions_file", str(directory.regions_file)),
        # The emulator forgets its queues when it is killed; what was lost with them is sent again after this long.
        ("airbridge", "message_ttl", "60"),
        ("airbridge", "trust_domain", TRUST_DOMAIN),
        ("airbridge", "gateway_host", ports.LOOPBACK),
        ("airbridge", "gateway_port", str(keys.ports["gateway"])),
        ("airbridge", "operator_port", str(keys.ports["operator"])),
        ("airbridge", "gateway_names", ports.LOOPBACK),
        ("airbridge", "secrets_dir", str(directory.secrets)),
        ("airbridge", "policy_file", str(directory.policy_file)),
    ]
    local = [Setting(section, option, value, "local mode") for section, option, value in rows]
    bundles = (
        # A file in the making must not hold back the others, and each save should be seen soon.
        Bundle(FOLDER_BUNDLE, {"kind": "folder", "path": str(dags)}, _REFRESH_SECONDS, refuse_broken=False),
        Bundle(PUSH_BUNDLE, {"kind": "push"}, _REFRESH_SECONDS),
    )
    return (*local, dag_bundles(bundles))
